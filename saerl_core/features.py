"""Pooled sparse feature rows: in memory (`FeatureRows`) and on disk (the feature store).

The store is a folder of immutable segments, each named by its own hash. A row's key is the hash of the messages
that were read, so a row keeps its features wherever it moves, and only rows never seen before are run. The folder
belongs to one model, one SAE and one way of extracting.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import scipy.sparse as sp

from saerl_core.artifact import ArtifactRef, file_hash, write_file
from saerl_core.errors import ArtifactError
from saerl_core.hashing import hash_value

VERSION = 2
_KEY_BYTES = 16
_QUARTILES = (0, 0.25, 0.5, 0.75, 1)
_FVU_LIMIT = 0.2
"""A prompt of which more is unexplained counts as far from what the SAE was trained on, unless the SAE is coarse."""
_FAR_SHARE = 0.1
"""A warning is due where more of the prompts than this are far from what the SAE reconstructs."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureRows:
    """Compressed sparse rows, one a prompt: the features that fire on any of its tokens.

    Shapes: n rows, nnz stored entries in total. Columns within a row are ascending.
    """

    indptr: np.ndarray
    """int64 [n + 1]"""
    indices: np.ndarray
    """int32 [nnz], feature numbers"""
    mean: np.ndarray
    """float32 [nnz], mean activation over the prompt's pooled tokens (tokens on which it is silent count as 0)"""
    max: np.ndarray
    """float32 [nnz], largest activation"""
    tokens: np.ndarray
    """int32 [n], tokens pooled"""
    masked: np.ndarray
    """int32 [n], tokens masked as BOS or attention sink"""
    cut: np.ndarray
    """int32 [n], tokens beyond `features.max_tokens`, which were not read"""
    fvu: np.ndarray
    """float32 [n], fraction of variance unexplained: the share of the prompt's residual variance that the SAE's
    reconstruction misses; NaN where it cannot be told"""
    d_sae: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def active(self) -> np.ndarray:
        """int64 [n], number of features that fire in each prompt."""
        return np.diff(self.indptr)

    def matrix(self) -> sp.csr_array:
        """float32 CSR [n, d_sae] of mean activations."""
        return sp.csr_array((self.mean, self.indices, self.indptr), shape=(len(self), self.d_sae))


_ARRAYS = tuple(field.name for field in fields(FeatureRows) if field.name != "d_sae")


def feature_key(messages: list[dict[str, str]]) -> str:
    """Identity of what is read: hash of the messages, to the letter (32 hex digits)."""
    return hash_value(messages)[: 2 * _KEY_BYTES]


def take(rows: FeatureRows, order: Sequence[int] | np.ndarray) -> FeatureRows:
    """Rows in another order, or a part of them."""
    order = np.asarray(order, dtype=np.int64)
    lengths = rows.active()[order]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    entries = np.repeat(rows.indptr[order] - indptr[:-1], lengths) + np.arange(indptr[-1])
    return FeatureRows(indptr, rows.indices[entries], rows.mean[entries], rows.max[entries], rows.tokens[order],
                       rows.masked[order], rows.cut[order], rows.fvu[order], rows.d_sae)


def blocks(rows: FeatureRows, size: int = 16_384) -> Iterator[tuple[slice, FeatureRows]]:
    """Consecutive rows, `size` at a time, without a copy: (which rows, the rows)."""
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        first, last = rows.indptr[part.start], rows.indptr[part.stop]
        entries = slice(first, last)
        yield part, FeatureRows(rows.indptr[part.start : part.stop + 1] - first, rows.indices[entries],
                                rows.mean[entries], rows.max[entries], rows.tokens[part], rows.masked[part],
                                rows.cut[part], rows.fvu[part], rows.d_sae)


def concatenate(parts: Sequence[FeatureRows]) -> FeatureRows:
    """Rows of several parts, one after the other; all of the same SAE."""
    lengths = np.concatenate([part.active() for part in parts])
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS if name != "indptr"}
    return FeatureRows(indptr=np.concatenate([[0], np.cumsum(lengths)]), **joined, d_sae=parts[0].d_sae)


def to_bytes(rows: FeatureRows, extra: dict[str, np.ndarray] | None = None) -> bytes:
    """Rows as the bytes of one safetensors file."""
    tensors = {name: np.ascontiguousarray(getattr(rows, name)) for name in _ARRAYS}
    return safetensors.numpy.save({**tensors, **(extra or {})}, metadata={"d_sae": str(rows.d_sae)})


def read_rows(path: Path) -> FeatureRows:
    """Read rows that `to_bytes` made.

    Raises:
        ArtifactError: the file is not such a file.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return FeatureRows(**{name: file.get_tensor(name) for name in _ARRAYS},
                               d_sae=int(file.metadata()["d_sae"]))
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: not a file of feature rows: {error}") from error


def write_segment(store: Path, keys: Sequence[str], rows: FeatureRows) -> ArtifactRef:
    """Add rows to the store as one immutable segment.

    Args:
        store: The store's folder.
        keys: Feature keys, one a row.
        rows: Their rows.
    """
    packed = np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8).reshape(len(keys), _KEY_BYTES)
    data = to_bytes(rows, {"keys": packed})
    sha256 = hashlib.sha256(data).hexdigest()
    path = store / f"{sha256}.safetensors"
    write_file(path, data)
    return ArtifactRef(path=path, sha256=sha256, size=len(data))


def find_rows(store: Path, keys: Iterable[str]) -> dict[str, tuple[Path, int]]:
    """Where the store holds which of the keys: key → (segment, row). Damaged segments are removed and so forgotten."""
    wanted = set(keys)
    found: dict[str, tuple[Path, int]] = {}
    for segment in sorted(store.glob("*.safetensors")):
        if file_hash(segment) != segment.stem:
            logger.warning("%s: damaged (its name is not its hash); removed, its prompts will be read again", segment)
            segment.unlink()
            continue
        with safetensors.safe_open(segment, framework="numpy") as file:
            packed = file.get_tensor("keys")
        for row, key in enumerate(bytes(key).hex() for key in packed):
            if key in wanted:
                found.setdefault(key, (segment, row))
    return found


def gather(store: Path, keys: Sequence[str]) -> FeatureRows:
    """The rows of these keys, in this order.

    Raises:
        ArtifactError: the store lacks some of them.
    """
    where = find_rows(store, keys)
    if missing := [key for key in keys if key not in where]:
        raise ArtifactError(f"{store}: lacks {len(missing)} of {len(keys)} rows; run the extraction again")
    segments = sorted({segment for segment, _ in where.values()})
    parts, start_of, start = [], {}, 0
    for segment in segments:
        part = read_rows(segment)
        parts.append(part)
        start_of[segment] = start
        start += len(part)
    order = [start_of[segment] + row for segment, row in (where[key] for key in keys)]
    return take(concatenate(parts), order)


@dataclass(frozen=True)
class Health:
    """Whether the SAE sees the data set at all."""

    prompts: int
    tokens: int
    masked_share: float
    """Share of tokens masked as BOS or attention sink."""
    cut_prompts: int
    """Prompts longer than `features.max_tokens`."""
    firing_share: float
    """Share of all features that fire on at least one prompt."""
    active_quantiles: tuple[float, float, float, float, float]
    """Active features per prompt: minimum, quartiles, maximum."""
    active_histogram: dict[str, list[int]]
    """Active features per prompt: `edges` (one more than) `counts`."""
    ubiquitous_share: float
    """Share of the firing features that fire on over 90% of the prompts."""
    fvu_prompts: int
    """Prompts whose reconstruction was measured."""
    fvu_quantiles: tuple[float, ...]
    """Fraction of variance unexplained per prompt: minimum, quartiles, maximum; empty where none was measured."""
    fvu_limit: float
    """A prompt above this is far from what the SAE reconstructs well."""
    far_share: float
    """Share of the measured prompts above the limit."""
    warnings: tuple[str, ...]


def health(rows: FeatureRows, heldout_fvu: float | None = None) -> Health:
    """Health figures of a data set under an SAE, with a warning where the SAE looks collapsed, or the prompts far.

    Args:
        rows: The data set's features.
        heldout_fvu: What the SAE leaves unexplained of text like that which it was trained on, if it says so: one that
            leaves much is held to twice that.
    """
    active = rows.active()
    document_frequency = np.bincount(rows.indices, minlength=rows.d_sae)
    firing = document_frequency > 0
    read = int(rows.tokens.sum() + rows.masked.sum())
    fvu = rows.fvu[np.isfinite(rows.fvu)]
    fvu_limit = _round(max(_FVU_LIMIT, 2 * (heldout_fvu or 0)))
    figures = Health(
        prompts=len(rows),
        tokens=int(rows.tokens.sum()),
        masked_share=_round(rows.masked.sum() / max(read, 1)),
        cut_prompts=int((rows.cut > 0).sum()),
        firing_share=_round(firing.mean()),
        active_quantiles=tuple(_round(q) for q in np.quantile(active, _QUARTILES)),  # type: ignore[arg-type]
        active_histogram=_histogram(active),
        ubiquitous_share=_round((document_frequency[firing] > 0.9 * len(rows)).mean() if firing.any() else 0.0),
        fvu_prompts=len(fvu),
        fvu_quantiles=tuple(_round(q) for q in np.quantile(fvu, _QUARTILES)) if len(fvu) else (),
        fvu_limit=fvu_limit,
        far_share=_round((fvu > fvu_limit).mean() if len(fvu) else 0.0),
        warnings=(),
    )
    return replace(figures, warnings=tuple(_warnings(figures, int((active == 0).sum()))))


def _warnings(figures: Health, empty: int) -> Iterator[str]:
    if figures.firing_share < 0.02:
        yield (f"only {figures.firing_share:.1%} of the SAE's features ever fire: it looks collapsed, or was trained "
               "on another layer")
    if figures.ubiquitous_share > 0.5:
        yield (f"{figures.ubiquitous_share:.0%} of the firing features fire on nearly every prompt: the SAE hardly "
               "tells these prompts apart")
    if figures.far_share > _FAR_SHARE:
        yield (f"the SAE leaves over {figures.fvu_limit:.0%} of the residual variance unexplained in "
               f"{figures.far_share:.0%} of the prompts (median {figures.fvu_quantiles[2]:.0%}): they are far from "
               "what it was trained on, or it is coarse; `saerl train-sae` trains one on your prompts")
    if empty:
        yield f"{empty} prompts fire no feature at all"
    if figures.cut_prompts:
        yield f"{figures.cut_prompts} prompts are longer than features.max_tokens and were read in part"


def _histogram(active: np.ndarray) -> dict[str, list[int]]:
    """About 20 bins of equal, whole width."""
    low, high = int(active.min()), int(active.max())
    width = -(-(high - low + 1) // 20)
    edges = np.arange(low, high + width + 1, width)
    return {"edges": edges.tolist(), "counts": np.histogram(active, edges)[0].tolist()}


def _round(value: float) -> float:
    return round(float(value), 6)


def store_name(model: str, sae: str, extraction: dict[str, object]) -> str:
    """Folder name of the store for a model hash, an SAE hash and an extraction's parameters."""
    digest = hash_value(json.loads(json.dumps({"version": VERSION, **extraction})))
    return f"{model[:12]}-{sae[:12]}-{digest[:12]}"
