"""The records of all trainings → one `Comparison`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from saerl_core.compare import arms, cost, curves
from saerl_core.compare.cost import Size
from saerl_core.compare.curves import Trained
from saerl_core.compare.estimate import area, estimate, gain, reach
from saerl_core.compare.result import Arm, Batch, Comparison, Cost, Curve, Estimate, Run
from saerl_core.config import RunConfig
from saerl_core.manifest import read_manifest
from saerl_core.rl.metrics import read_metrics
from saerl_core.rl.validations import read_validation


@dataclass(frozen=True)
class Seeded:
    """One arm with one seed, read back."""

    seed: int
    rounds: list[Trained]
    curve: pl.DataFrame
    problems: int
    """held-out ones in each evaluation"""
    groups: dict[str, dict[str, float]]
    batches: pl.DataFrame
    curation_flops: float
    step_flops: list[float]

    @property
    def final(self) -> float:
        return float(self.curve["sampled"][-1])

    @property
    def area(self) -> float:
        return area(self.curve["step"].to_list(), self.curve["sampled"].to_list())


def read_back(config: RunConfig, seed: int, rounds: list[Trained], heldout: pl.DataFrame, reader: Size,
              policy: Size) -> Seeded:
    """Read what one training of an arm left.

    Args:
        config: The arm's.
        seed: Its seed.
        rounds: Its trainings, in order.
        heldout: Rows in verl's schema.
        reader: Of the model that reads.
        policy: Of the model that is trained.

    Raises:
        ArtifactError: a record is missing or damaged.
    """
    answers = config.schedule.batch_size * config.train.rollouts
    curation, steps = 0.0, []
    for part in rounds:
        metrics = read_metrics(part.run_dir / "metrics").filter(pl.col("reward_mean").is_not_null())
        steps += cost.training_flops(metrics, policy, answers)
        curation += cost.curation_flops(config, read_manifest(part.manifest), reader, policy,
                                        float(metrics["response_length_mean"][0]))
    final = read_validation(rounds[-1].run_dir, rounds[-1].steps)
    return Seeded(seed, rounds, curves.accuracy_curve(rounds, config.train), final["id"].n_unique(),
                  curves.by_group(final, heldout), curves.batches(rounds), curation, steps)


def compare(config: RunConfig, found: Mapping[str, Sequence[Seeded]]) -> Comparison:
    """Set the arms side by side.

    Args:
        config: The comparison's.
        found: Arm → its seeds, for the arms that have any; the baseline's among them.
    """
    comparison = config.compare
    baseline = found[comparison.baseline]
    step_flops = sum(sum(one.step_flops) for one in baseline) / sum(len(one.step_flops) for one in baseline)
    names = [comparison.baseline, *(name for name in found if name != comparison.baseline)]
    return Comparison(
        name=config.name,
        baseline=comparison.baseline,
        steps=int(baseline[0].curve["step"][-1]),
        batch_size=config.schedule.batch_size,
        rollouts=config.train.rollouts,
        evaluate_every=comparison.evaluate_every,
        problems=baseline[0].problems,
        samples=config.evaluation.samples,
        target=estimate([one.final for one in baseline]).mean,
        arms=[_arm(config, name, found[name], baseline, step_flops) for name in names],
    )


def _arm(config: RunConfig, name: str, ours: Sequence[Seeded], baseline: Sequence[Seeded], step_flops: float) -> Arm:
    mine = [one.curve for one in ours]
    steps = mine[0]["step"].to_list()
    sampled, greedy = curves.matrix(mine, "sampled"), curves.matrix(mine, "greedy")
    theirs = {one.seed: one for one in baseline}
    shared = [one for one in ours if one.seed in theirs]
    us, them = (curves.matrix([one.curve for one in side], "sampled")
                for side in ((shared, [theirs[one.seed] for one in shared]) if shared else (ours, baseline)))
    other = ours is not baseline
    curation, theirs_curation = (_mean([one.curation_flops for one in side]) for side in (ours, baseline))
    return Arm(
        name=name,
        about=arms.describe(name, config.compare.arms[name]),
        fields={field: value if isinstance(value, str) else json.dumps(value)
                for field, value in arms.arm_fields(config.compare, name).items()},
        curve=Curve(steps=steps, sampled=[estimate(column) for column in sampled.T.tolist()],
                    greedy=[estimate(column) for column in greedy.T.tolist()]),
        groups={group: {value: estimate([one.groups[group][value] for one in ours]) for value in ours[0].groups[group]}
                for group in ours[0].groups},
        final=estimate(sampled[:, -1].tolist()),
        final_greedy=estimate(greedy[:, -1].tolist()),
        area=estimate([one.area for one in ours]),
        gain=_gain(ours, baseline, lambda one: one.final) if other else None,
        gain_greedy=_gain(ours, baseline, lambda one: float(one.curve["greedy"][-1])) if other else None,
        gain_area=_gain(ours, baseline, lambda one: one.area) if other else None,
        gain_by_step=_gains_by_step(ours, baseline, len(steps)) if other else [],
        reach=reach(steps, us, them, paired=bool(shared), curation_steps=curation / step_flops,
                    baseline_curation_steps=theirs_curation / step_flops),
        cost=Cost(curation=curation, training=_mean([sum(one.step_flops) for one in ours]),
                  curation_steps=curation / step_flops),
        batches=[Batch(**row) for row in curves.mean_over_seeds([one.batches for one in ours]).iter_rows(named=True)],
        runs=[_run(one) for one in ours],
    )


def _run(one: Seeded) -> Run:
    dropped: dict[str, int] = {}
    keys: set[str] = set()
    for part in one.rounds:
        for reason, count in read_manifest(part.manifest)["prompts"]["dropped_by_reason"].items():
            dropped[reason] = dropped.get(reason, 0) + count
        rows = pl.read_parquet(part.manifest / "train.parquet", columns=["extra_info"])["extra_info"]
        keys |= set(rows.struct.field("key"))
    return Run(seed=one.seed, manifests=[part.manifest.name for part in one.rounds],
               runs=[part.run_dir.name for part in one.rounds], final_sampled=one.final,
               final_greedy=float(one.curve["greedy"][-1]), area=one.area, kept=len(keys), dropped=dropped)


def _gain(ours: Sequence[Seeded], baseline: Sequence[Seeded], figure: Callable[[Seeded], float]) -> Estimate | None:
    return gain({one.seed: figure(one) for one in ours}, {one.seed: figure(one) for one in baseline})


def _gains_by_step(ours: Sequence[Seeded], baseline: Sequence[Seeded], evaluations: int) -> list[Estimate]:
    found = (_gain(ours, baseline, lambda one, at=at: float(one.curve["sampled"][at])) for at in range(evaluations))
    return [one for one in found if one is not None]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
