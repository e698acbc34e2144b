"""A manifest as a page: what was read, what is trained on and in which order, and what each decision rests on.

The templates only print. What they print is put together in `sections`, a module and a template each. A part of the
header that a run does not have (no labels, a probe that is switched off) becomes a sentence that says so, not a hole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saerl_core.report import facts
from saerl_core.report.markup import count
from saerl_core.report.markup import render as fill
from saerl_core.report.sections import batches, clusters, difficulty, funnel, health, hygiene, provenance, quality

if TYPE_CHECKING:
    from saerl_core.manifest import Curation


def render(header: Mapping[str, Any], curation: Curation) -> str:
    """The page.

    Args:
        header: The manifest's header. Optional parts may be missing or None.
        curation: The findings behind it.
    """
    prompts = header["prompts"]
    return fill(
        "page.html.jinja",
        name=facts.data_name(header),
        lead=facts.lead(header, curation),
        figures=[("read", count(prompts["read"])), ("trained on", count(prompts["kept"])),
                 ("left out", count(prompts["dropped"])), ("batches", count(header["batches"])),
                 ("prompts a batch", count(header["batch_size"]))],
        warnings=facts.warnings(header),
        decisions=facts.decisions(header, curation),
        funnel=funnel.section(header, curation),
        hygiene=hygiene.section(header),
        batches=batches.section(header, curation),
        difficulty=difficulty.section(header, curation),
        quality=quality.section(header, curation),
        clusters=clusters.section(header, curation),
        health=health.section(header),
        provenance=provenance.section(header),
        format=header.get("format", "unknown"),
    )
