"""Two manifests → what differs between them, and what is the likeliest cause.

A prompt is known by its key, so it is the same prompt wherever it moved in the file; copies of one prompt are told
apart by their order. Numbers of clusters mean nothing across two fits: each cluster of B takes the place of the one of
A with which it shares most prompts (the assignment that maximises what is shared, Kuhn 1955), and a prompt has changed
its cluster where it does not follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score

from saerl_core.manifest import verify_manifest
from saerl_core.probes import spearman

EXAMPLES = 5
"""Prompts shown of each kind of change; their total is always said."""
_FIGURES = ("batches", "batch_size", "epochs", "difficulty.method", "difficulty.used", "difficulty.spearman",
            "quality.method", "quality.used", "quality.auc", "suspicion.used")
_ROLES = {"data": "data", "heldout": "held-out set", "decontaminate": "evaluation sets", "model": "reader",
          "sae": "SAE", "policy": "policy", "rewards": "rewards of an earlier training"}
_PROMPT = ("key", "copy")


def diff(a: Path, b: Path) -> dict[str, Any]:
    """Compare two manifests, from A to B.

    Args:
        a: The folder of the one, usually the older.
        b: The folder of the other.

    Returns:
        JSON values. `a`, `b`: their ids; `equal`; `why`: the likeliest causes, a sentence; `inputs`, `settings`,
        `libraries`, `counts`, `figures`: what differs, each a list of `{name, a, b}` with null for what one side lacks;
        `prompts`: `common`, and a `{total, examples}` for each of `came`, `went`, `left_out`, `taken_up`,
        `other_reason`, `other_cluster`, `other_batch`; `clusters`: `agreement`, the adjusted mutual information of both
        clusterings; `order`: `spearman` of the places of the `prompts` that both train on. The figures that
        cannot be computed are null.

    Raises:
        ArtifactError: one is no manifest, or damaged.
    """
    old, new = verify_manifest(a), verify_manifest(b)
    inputs = _changes(_hashes(old), _hashes(new))
    settings = _changes(_flat(old["settings"]), _flat(new["settings"]))
    libraries = _changes(old["libraries"], new["libraries"])
    both = _prompts(a).join(_prompts(b), on=_PROMPT, how="full", suffix="_b", coalesce=True,
                            maintain_order="left_right")
    common = both.filter(pl.col("id").is_not_null(), pl.col("id_b").is_not_null())
    common = common.with_columns(followed=_followed(common))
    prompts = {"common": common.height, **_moves(both, common)}
    return {
        "a": old["id"],
        "b": new["id"],
        "equal": old["id"] == new["id"],
        "why": _why(old["id"] == new["id"], inputs, settings, libraries, prompts),
        "inputs": inputs,
        "settings": settings,
        "libraries": libraries,
        "counts": _changes(_counts(old, new), _counts(new, old)),
        "figures": _changes(_figures(old), _figures(new)),
        "prompts": prompts,
        "clusters": {"agreement": _agreement(common)},
        "order": _order(common),
    }


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "a": a.get(name), "b": b.get(name)} for name in dict.fromkeys([*a, *b])
            if a.get(name) != b.get(name)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree as one level: `{"schedule.seed": 0}`."""
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _hashes(header: Mapping[str, Any]) -> dict[str, Any]:
    """Input → its hash; several make one line."""
    found = {}
    for role, source in header["inputs"].items():
        sources = source if isinstance(source, list) else [source] if source else []
        found[role] = ", ".join(entry["sha256"] for entry in sources) or None
    return found


def _counts(header: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, int]:
    """Read, kept, dropped, and dropped by every reason that either manifest knows."""
    number, by_reason = header["prompts"], header["prompts"]["dropped_by_reason"]
    reasons = sorted({*by_reason, *other["prompts"]["dropped_by_reason"]})
    return {name: number[name] for name in ("read", "kept", "dropped")} | {
        f"dropped as {reason}": by_reason.get(reason, 0) for reason in reasons}


def _figures(header: Mapping[str, Any]) -> dict[str, Any]:
    flat = _flat(header)
    return {name: flat.get(name) for name in _FIGURES} | {"clusters": len(header["clusters"]["sizes"])}


def _prompts(folder: Path) -> pl.DataFrame:
    """A row a prompt: key, copy, id, dropped, cluster; batch and place of its first turn, null where it has none."""
    copy = pl.int_range(pl.len()).over("key").alias("copy")
    scores = pl.read_parquet(folder / "scores.parquet", columns=["key", "id", "dropped", "cluster"]).with_columns(copy)
    turns = pl.read_parquet(folder / "train.parquet", columns=["extra_info"])["extra_info"].struct.unnest()
    first = turns.select("key", "batch", pl.col("index").alias("place")).unique("key", keep="first")
    # of several copies only one is trained on
    return scores.join(first.with_columns(dropped=pl.lit(None, pl.String)), on=["key", "dropped"], how="left",
                       nulls_equal=True, maintain_order="left")


def _followed(common: pl.DataFrame) -> pl.Series:
    """The cluster of A that each prompt's cluster of B stands for; -1 for a prompt or a cluster without one."""
    a, b = common["cluster"].to_numpy(), common["cluster_b"].to_numpy()
    both = (a >= 0) & (b >= 0)
    shared = np.zeros((a.max(initial=-1) + 1, b.max(initial=-1) + 1), dtype=np.int64)
    np.add.at(shared, (a[both], b[both]), 1)
    stands_for = np.full(shared.shape[1] + 1, -1)  # the last one: no cluster
    rows, columns = linear_sum_assignment(shared, maximize=True)
    stands_for[columns] = rows
    return pl.Series(stands_for[b], dtype=pl.Int32)


def _moves(both: pl.DataFrame, common: pl.DataFrame) -> dict[str, Any]:
    """Each kind of change: how many prompts, and the first of them."""
    kept, kept_b = pl.col("dropped").is_null(), pl.col("dropped_b").is_null()
    clustered = (pl.col("cluster") >= 0) & (pl.col("cluster_b") >= 0)
    reason = {"reason_a": "dropped", "reason_b": "dropped_b"}
    kinds = {
        "came": (both.filter(pl.col("id").is_null()), {"reason_b": "dropped_b"}),
        "went": (both.filter(pl.col("id_b").is_null()), {"reason_a": "dropped"}),
        "left_out": (common.filter(kept & ~kept_b), reason),
        "taken_up": (common.filter(~kept & kept_b), reason),
        "other_reason": (common.filter(~kept & ~kept_b & (pl.col("dropped") != pl.col("dropped_b"))), reason),
        "other_cluster": (common.filter(clustered & (pl.col("followed") != pl.col("cluster"))),
                          {"cluster_a": "cluster", "cluster_b": "cluster_b"}),
        "other_batch": (common.filter(kept & kept_b & (pl.col("batch") != pl.col("batch_b"))),
                        {"batch_a": "batch", "batch_b": "batch_b"}),
    }
    return {kind: {"total": rows.height, "examples": rows.head(EXAMPLES).select(
        pl.coalesce("id_b", "id").alias("id"), **{name: pl.col(column) for name, column in shown.items()}).to_dicts()}
        for kind, (rows, shown) in kinds.items()}


def _agreement(common: pl.DataFrame) -> float | None:
    clustered = common.filter((pl.col("cluster") >= 0) & (pl.col("cluster_b") >= 0))
    if not clustered.height:
        return None
    return round(float(adjusted_mutual_info_score(clustered["cluster"], clustered["cluster_b"])), 6)


def _order(common: pl.DataFrame) -> dict[str, Any]:
    trained = common.drop_nulls(["place", "place_b"])
    rho = spearman(trained["place"].to_numpy(), trained["place_b"].to_numpy()) if trained.height > 1 else None
    return {"prompts": trained.height, "spearman": None if rho is None else round(rho, 6)}


def _why(equal: bool, inputs: list[dict[str, Any]], settings: list[dict[str, Any]], libraries: list[dict[str, Any]],
         prompts: Mapping[str, Any]) -> str:
    """The likeliest causes, what weighs most first."""
    if equal:
        return "The manifests are equal."
    causes = []
    for change in inputs:
        came, went = prompts["came"]["total"], prompts["went"]["total"]
        moved = ([f"{came} prompts are new"] if came else []) + ([f"{went} are gone"] if went else [])
        note = f" ({', '.join(moved) or 'the same prompts, in another order or with other columns'})"
        causes.append(f"{_ROLES.get(change['name'], change['name'])}{note if change['name'] == 'data' else ''}")
    parts = [f"inputs changed: {', '.join(causes)}"] if causes else []
    for what, changes in (("settings", settings), ("library versions", libraries)):
        if changes:
            more = f" and {len(changes) - EXAMPLES} more" if len(changes) > EXAMPLES else ""
            parts.append(f"{what} changed: {', '.join(change['name'] for change in changes[:EXAMPLES])}{more}")
    if not parts:
        return ("Inputs, settings and library versions are the same, yet the contents differ: another version of the "
                "code, or a bug.")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
