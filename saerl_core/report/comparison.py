"""A comparison of arms: what came out and how sure it is, the curves behind it, and what each arm trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from saerl_core.compare.arms import CONTROLS
from saerl_core.compare.result import Arm, Comparison, Estimate
from saerl_core.report import markdown
from saerl_core.report.markup import count, figure, percent, render, shorten, svg
from saerl_core.report.verdict import lead, main_arm, points, share_interval, until, warnings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparison_page(comparison: Comparison) -> str:
    """The comparison as one HTML page."""
    from saerl_core.report.figures import comparison as figures

    baseline, colours = comparison.arms[0], _colours(comparison)
    curves = {arm.name: arm.curve for arm in comparison.arms}
    shown = {arm.name: arm.curve for arm in _shown(comparison)}
    gained = [arm for arm in _shown(comparison) if arm.gain_by_step]
    others = comparison.arms[1:]
    return render(
        "comparison.html.jinja",
        name=shorten(comparison.name, 80),
        comparison=comparison,
        lead=lead(comparison),
        figures=_headline(comparison),
        warnings=warnings(comparison),
        accuracy=svg(_accuracy(comparison), "Accuracy of sampled answers by step"),
        panels=[svg(figures.greedy_accuracy(shown, colours), "Accuracy of greedy answers by step"),
                *([svg(figures.gain_by_step(gained, colours), "Gain over the baseline by step")] if gained else [])],
        each=svg(figures.each_against(baseline.curve, {arm.name: curves[arm.name] for arm in others}, colours),
                 "Accuracy of every arm by step, before the baseline's") if len(shown) < len(curves) else "",
        gains=svg(_gains(comparison), "Gains over the baseline with 95% intervals") if others else "",
        controls=any(arm.name in CONTROLS for arm in others),
        arms=[_row(arm, baseline) for arm in comparison.arms],
        composition=svg(figures.composition(baseline, others, colours), "What each arm trained on, step by step"),
        groups=_groups(comparison, colours),
        runs=[(arm.name, run) for arm in comparison.arms for run in arm.runs],
    )


def comparison_markdown(comparison: Comparison) -> str:
    """The same in short, with inline pictures."""
    baseline, *others = comparison.arms
    rows = [(baseline.name, percent(baseline.final.mean))]
    rows += [(arm.name, f"{percent(arm.final.mean)}, {points(arm.gain)} points, {_share(arm)} of the steps")
             for arm in others]
    pictures = [("Accuracy by step", _accuracy(comparison))]
    if others:
        pictures.append(("Gains over the baseline with 95% intervals", _gains(comparison)))
    return markdown.assemble(_title(comparison), lead(comparison), warnings(comparison),
                             [*rows, *_headline(comparison)], pictures)


def _title(comparison: Comparison) -> str:
    return f"Comparison {shorten(comparison.name, 80)}"


def _headline(comparison: Comparison) -> list[tuple[str, str]]:
    return [("arms", count(len(comparison.arms))), ("trainings", count(sum(len(arm.runs) for arm in comparison.arms))),
            ("steps each", count(comparison.steps)), ("problems held out", count(comparison.problems)),
            ("answers to each", count(comparison.samples))]


def _colours(comparison: Comparison) -> dict[str, str]:
    from saerl_core.report.figures.comparison import arm_colours

    return arm_colours([arm.name for arm in comparison.arms], comparison.arms[0].name, main_arm(comparison).name)


def _shown(comparison: Comparison) -> list[Arm]:
    """The arms that share one pair of axes, the main arm first: all, or that and the baseline where they are too
    many."""
    from saerl_core.report.figures.comparison import TOGETHER

    main, baseline = main_arm(comparison), comparison.arms[0]
    first = list({arm.name: arm for arm in (main, baseline)}.values())
    if len(comparison.arms) > TOGETHER:
        return first
    return first + [arm for arm in comparison.arms if arm not in first]


def _accuracy(comparison: Comparison) -> Figure:
    from saerl_core.report.figures.comparison import accuracy

    shown = _shown(comparison)
    reached = {arm.name: arm.reach.step for arm in shown if arm.reach.step is not None}
    return accuracy({arm.name: arm.curve for arm in shown}, _colours(comparison), comparison.target, reached)


def _gains(comparison: Comparison) -> Figure:
    from saerl_core.report.figures.comparison import gains

    arms = sorted(comparison.arms[1:], key=lambda arm: -arm.gain.mean if arm.gain else float("inf"))
    columns = {"Final accuracy, sampled": [arm.gain for arm in arms],
               "Final accuracy, greedy": [arm.gain_greedy for arm in arms],
               "Area under the curve": [arm.gain_area for arm in arms]}
    return gains(columns, [arm.name for arm in arms], _colours(comparison), frozenset(CONTROLS))


def _row(arm: Arm, baseline: Arm) -> dict[str, Any]:
    """What the table says of one arm; figures as (mean, interval)."""
    step, low, high = (None if value is None else count(value) for value in
                       (arm.reach.step, arm.reach.low, arm.reach.high))
    return {
        "name": arm.name, "about": shorten(arm.about, 200), "fields": arm.fields, "seeds": arm.final.seeds,
        "final": _accuracies(arm.final), "greedy": _accuracies(arm.final_greedy), "area": _accuracies(arm.area),
        "gain": _split(points(arm.gain)), "steps": (step or "never", until(low, high)),
        "share": (_share(arm), "" if arm is baseline else share_interval(arm.reach)),
        "flops": "–" if arm.reach.flops_share is None else percent(arm.reach.flops_share, 0),
        "curation": figure(arm.cost.curation_steps, 1),
    }


def _share(arm: Arm) -> str:
    return "–" if arm.reach.share is None else percent(arm.reach.share, 0)


def _accuracies(found: Estimate) -> tuple[str, str]:
    if found.low is None or found.high is None:
        return percent(found.mean), ""
    return percent(found.mean), f"{percent(found.low)} to {percent(found.high)}"


def _split(words: str) -> tuple[str, str]:
    mean, _, interval = words.partition(" (")
    return mean, interval.removesuffix(")")


def _groups(comparison: Comparison, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """For each kind of group a figure of the baseline and the main arm, and a table of all arms."""
    from saerl_core.report.figures.comparison import by_group

    ends = list({arm.name: arm for arm in (comparison.arms[0], main_arm(comparison))}.values())
    made = []
    for kind in dict.fromkeys(kind for arm in comparison.arms for kind in arm.groups):
        found = {arm.name: arm.groups.get(kind, {}) for arm in comparison.arms}
        names = list(dict.fromkeys(name for groups in found.values() for name in groups))
        drawing: Markup = svg(by_group(f"By {kind}", {arm.name: found[arm.name] for arm in ends}, colours),
                              f"Final accuracy by {kind}")
        cells = [(arm, [_accuracies(groups[name]) if name in groups else ("–", "") for name in names])
                 for arm, groups in found.items()]
        made.append({"kind": kind, "names": names, "drawing": drawing, "cells": cells})
    return made
