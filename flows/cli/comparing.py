"""The command on experiments: compare."""

from __future__ import annotations

from typing import Any

from flows.cli.conventions import AsJson, ConfigArgument, Overrides, load, tell
from flows.cli.running import finish
from saerl_core.compare.arms import BUILT_IN, check_arms


def compare(config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Does it help? Train several ways of curating side by side, with several seeds each, on the same budget."""
    from flows.check import check_inputs

    settings = load(config, overrides)
    check_arms(settings)
    check_inputs(settings, train=True)

    def go() -> dict[str, Any]:
        from flows.compare import compare as compare_flow

        return compare_flow(settings)

    def show(outcome: dict[str, Any]) -> None:
        from flows.terminal import show_comparison

        show_comparison(outcome)
        tell(f"report: {outcome['report']}")

    finish(go, as_json, show, only=lambda entry: entry.stage.startswith("arm "))


compare.__doc__ = f"""{compare.__doc__}

The section `compare` names the arms, the seeds, and how often accuracy is measured (`saerl fields compare`); without
one, the config as it stands (`saerl`) is compared with plain GRPO (`vanilla`). An arm is a few changed fields, and
yours are as good as the built-in ones. The report shows accuracy by step with 95% intervals over seeds, steps and
FLOPs to the baseline's final accuracy, and what each arm trained on.

Run it again at any time: what is done is not done again, what was interrupted goes on, and a new arm or seed costs only
itself.

Built-in arms:

{chr(10).join(f"- `{name}`: {about}" for name, (about, _) in BUILT_IN.items())}
"""
