"""How the SAE sees the data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saerl_core.controls import ENCODERS
from saerl_core.report.facts import part
from saerl_core.report.markup import count, percent, sentence, svg


def section(header: Mapping[str, Any]) -> dict[str, Any]:
    """What `health.html.jinja` prints."""
    from saerl_core.report.figures import health as figures

    health, model, sae = (part(header, *path) for path in (("health",), ("inputs", "model"), ("inputs", "sae")))
    if not health:
        return {"words": "This manifest holds no health figures.", "warnings": [], "drawings": [], "facts": []}
    layer = f" after layer {model['layer']} of {model['layers']}" if {"layer", "layers"} <= set(model) else ""
    width = f" of {count(sae['d_sae'], 'feature')}" if "d_sae" in sae else ""
    if sae.get("architecture") in ENCODERS:
        words = (f"The reader's residual stream{layer}, and in the SAE's place a control, a {sae['architecture']}"
                 f"{width}. It reconstructs nothing, so there is no variance that it misses.")
    else:
        words = (f"The reader's residual stream{layer}, seen through an SAE{width}. A healthy SAE fires different "
                 "features on different prompts: few that fire everywhere, many that fire somewhere.")
    histogram, unexplained = health.get("active_histogram"), health.get("fvu_quantiles")
    drawings = []
    if histogram:
        fig = figures.active_features(histogram["edges"], histogram["counts"], health["active_quantiles"][2])
        drawings.append(svg(fig, "Histogram of active features per prompt"))
    if unexplained:
        drawings.append(svg(figures.unexplained(unexplained, health["fvu_limit"]),
                            "Quantiles of the variance of a prompt that the SAE misses"))
    facts = [("prompts read by the model", count(health["prompts"])), ("tokens", count(health["tokens"])),
             ("median active features", count(health["active_quantiles"][2])),
             ("features that fire at all", percent(health["firing_share"])),
             ("of these, on nearly every prompt", percent(health["ubiquitous_share"])),
             ("tokens masked (BOS, sinks)", percent(health["masked_share"])),
             ("prompts read in part", count(health["cut_prompts"]))]
    if unexplained:
        facts += [("variance that it misses, median prompt", percent(unexplained[2])),
                  (f"prompts of which it misses over {percent(health['fvu_limit'], 0)}",
                   f"{percent(health['far_share'])} of {count(health['fvu_prompts'])}")]
    return {"words": words, "warnings": [sentence(text) for text in health.get("warnings") or ()],
            "drawings": drawings, "facts": facts}
