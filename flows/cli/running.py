"""Commands that run a flow in this process and wait for it: run, curate, train, train-sae."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.cli.conventions import AsJson, ConfigArgument, ManifestArgument, Overrides, load, print_json, tell
from saerl_core.config import RunConfig

if TYPE_CHECKING:
    from flows.stages import StageRecord


def run(config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Curate the prompts into a manifest, train on it with verl, measure before and after.

    Run it again at any time: what has not changed is taken from the cache, what was interrupted goes on.
    """
    _run_flow(load(config, overrides), as_json, train=True)


def curate(config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Curate the prompts into a manifest; train nothing."""
    _run_flow(load(config, overrides), as_json, train=False)


def train(
    manifest: ManifestArgument,
    config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False,
) -> None:
    """Train the config's policy on a manifest that exists, batch for batch in its order; resume where it stopped."""
    from flows.check import check_training

    settings = load(config, overrides)
    check_training(settings, manifest)

    def go() -> dict[str, Any]:
        from flows.outcome import manifest_figures
        from flows.train import train as train_flow

        return {**manifest_figures(manifest), "train": train_flow(settings, manifest)}

    finish(go, as_json, _show)


def train_sae(config: ConfigArgument = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train an SAE for the reader, `features.model`, on your prompts or a corpus of yours, with sae-lens.

    The section `sae_training` says how; `sae_training: {}` takes every default. The SAE is written to the folder that
    `features.sae` (or `sae_training.out`) names, with a report page, and is measured on text that was held out:
    explained variance, features a token, dead features, loss recovered. Run it again at any time: what was interrupted
    goes on, what is done is not done again.
    """
    settings = load(config, overrides)
    from flows.check import check_sae_training

    check_sae_training(settings)

    def go() -> dict[str, Any]:
        from flows.train_sae import train_sae as train_sae_flow

        return train_sae_flow(settings)

    def show(outcome: dict[str, Any]) -> None:
        from flows.terminal import show_sae

        show_sae(outcome)
        tell(f"report: {Path(outcome['sae']) / 'report.html'}")
        tell(f"sae: {outcome['sae']}")

    finish(go, as_json, show)


def _run_flow(config: RunConfig, as_json: bool, *, train: bool) -> None:
    from flows.check import check_inputs

    check_inputs(config, train=train)  # what a user did wrong shows before the server starts

    def go() -> dict[str, Any]:
        from flows.curate import curate as curate_flow
        from flows.outcome import manifest_figures

        if train:
            from flows.pipeline import pipeline

            return pipeline(config)
        curated = curate_flow(config)
        return {**manifest_figures(curated.manifest.path), **curated.figures()}

    finish(go, as_json, _show)


def finish(go: Callable[[], dict[str, Any]], as_json: bool, show: Callable[[dict[str, Any]], None],
           only: Callable[[StageRecord], bool] | None = None) -> None:
    """Run a flow, guarded and watched, and print its outcome.

    Args:
        go: Runs it and gives its outcome.
        as_json: Print the outcome as JSON.
        show: Prints it for people.
        only: Which stages get a line when they end. Default: all.

    Raises:
        ServerError: the Prefect server is away, or refuses.
    """
    from flows.events import answered
    from flows.guard import guard
    from flows.terminal import watching

    guard()  # Prefect's server and verl's processes end with this one, however it ends
    with watching(only), answered("run the same command: it goes on where it stopped"):
        outcome = go()
    if as_json:
        print_json(outcome)
    else:
        show(outcome)


def _show(outcome: dict[str, Any]) -> None:
    from flows.terminal import show_counts

    show_counts(outcome)
    tell(f"report: {Path(outcome['manifest']) / 'report.html'}")
    tell(f"manifest: {outcome['manifest']}")
