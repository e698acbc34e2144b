"""What a comparison says, in words: what came out, and what a person must not miss."""

from __future__ import annotations

from collections.abc import Sequence

from saerl_core.compare.arms import CONTROLS
from saerl_core.compare.estimate import gain
from saerl_core.compare.result import Arm, Comparison, Estimate, Reach
from saerl_core.report.markup import count, percent, signed

_FEW = 5
"""Seeds below which the bootstrap of the steps is not left without a word."""


def main_arm(comparison: Comparison) -> Arm:
    """The arm that the page is about: `saerl` where it is one of those that are measured, else the first of them; the
    baseline where it is alone."""
    others = comparison.arms[1:] or comparison.arms
    return next((arm for arm in others if arm.name == "saerl"), others[0])


def points(found: Estimate | None) -> str:
    """`+2.9 (+0.4 to +5.4)`, in percentage points; without its interval where there is none."""
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return signed(100 * found.mean, 1)
    mean, low, high = (signed(100 * value, 1) for value in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})"


def until(low: str | None, high: str | None) -> str:
    """`48% to 81%`, `48% to never`; empty without an interval."""
    return "" if low is None else f"{low} to {high or 'never'}"


def share_interval(reach: Reach) -> str:
    """The interval of the share of the baseline's steps, as `until` writes it."""
    return until(*(None if end is None else percent(end, 0) for end in (reach.share_low, reach.share_high)))


def lead(comparison: Comparison) -> str:
    """The comparison in a few sentences."""
    baseline, arm = comparison.arms[0], main_arm(comparison)
    if arm is baseline:
        first, final = baseline.curve.sampled[0], baseline.final
        return (f"{baseline.name} goes from {percent(first.mean)} to {percent(final.mean)} in "
                f"{count(comparison.steps, 'step')} ({count(final.seeds, 'seed')}). No other arm is there to compare "
                "it with.")
    ends = f"{arm.name} ends at {percent(arm.final.mean)} against {percent(baseline.final.mean)} for {baseline.name}"
    return " ".join(filter(None, (f"{ends}: {_gained(arm)}, and {_reaches(comparison, arm)}.", _doubt(arm))))


def warnings(comparison: Comparison) -> list[str]:
    """What a person must not miss: what is not better than it looks, and figures that say little."""
    baseline, arm = comparison.arms[0], main_arm(comparison)
    found = []
    if arm is not baseline:
        rivals = comparison.arms[1:]
        found += _not_beaten(arm, [rival for rival in rivals if rival.name in CONTROLS], "Controls",
                             "While a control does as well, the gain is not shown to come from what it lacks.")
        found += _not_beaten(arm, [rival for rival in rivals if rival.name not in CONTROLS], "Other arms", "")
    if baseline.final.mean <= baseline.curve.sampled[0].mean:
        found.append(f"{baseline.name} does not end above where it began ({percent(baseline.curve.sampled[0].mean)} → "
                     f"{percent(baseline.final.mean)}): steps to its final accuracy say nothing here.")
    seeds = arm.gain.seeds if arm.gain else min(arm.final.seeds, baseline.final.seeds)
    if arm.reach.share_low is not None and seeds < _FEW and arm is not baseline:
        found.append(f"The interval of the steps rests on {seeds} seeds: a bootstrap over so few is too narrow. That "
                     "of the gain is not.")
    single = [each.name for each in comparison.arms if each.final.seeds == 1]
    if single:
        found.append(f"One seed only: {', '.join(single)}. There is no interval, and a difference may be chance.")
    if len({frozenset(run.seed for run in each.runs) for each in comparison.arms}) > 1:
        found.append("Not all arms have the same seeds. Gains are over the seeds that an arm shares with "
                     f"{baseline.name}; accuracies are over all that it has.")
    return found


def _gained(arm: Arm) -> str:
    if arm.gain is None:
        return "no seed is common to both, so there is no paired gain"
    if arm.gain.low is None:
        return f"{points(arm.gain)} points (one pair, no interval)"
    return f"{points(arm.gain).replace(' (', ' points (95% interval ')[:-1]}, {arm.gain.seeds} pairs)"


def _reaches(comparison: Comparison, arm: Arm) -> str:
    baseline, reach = comparison.arms[0], arm.reach
    if reach.step is None:
        return f"does not reach {baseline.name}'s final accuracy within {count(comparison.steps, 'step')}"
    if reach.share is None or reach.flops_share is None:
        return f"need not be trained to reach what {baseline.name} ends with"
    within = share_interval(reach)
    return (f"reaches {baseline.name}'s final accuracy after {percent(reach.share, 0)} of its steps"
            f"{f' ({within})' if within else ''} and {percent(reach.flops_share, 0)} of its FLOPs, curation counted")


def _doubt(arm: Arm) -> str:
    if arm.gain is None or arm.gain.low is None or arm.gain.high is None:
        return ""
    if arm.gain.low <= 0 <= arm.gain.high:
        return "The interval of the gain holds zero, so it may be chance."
    return "It is worse, not better." if arm.gain.high < 0 else ""


def _not_beaten(arm: Arm, rivals: Sequence[Arm], what: str, moral: str) -> list[str]:
    """The arms that `arm` is not clearly ahead of, with how far it is, pair by pair."""
    found = []
    for rival in rivals:
        ahead = None if rival is arm else _ahead(arm, rival)
        if ahead is not None and (ahead.mean if ahead.low is None else ahead.low) <= 0:
            found.append(f"{rival.name} {points(ahead)}")
    words = f"{what} that {arm.name} does not clearly beat, and by how many points it is ahead: {', '.join(found)}."
    return [f"{words} {moral}".strip()] if found else []


def _ahead(arm: Arm, rival: Arm) -> Estimate | None:
    ours, theirs = ({run.seed: run.final_sampled for run in each.runs} for each in (arm, rival))
    return gain(ours, theirs)
