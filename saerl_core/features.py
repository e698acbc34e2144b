"""Pooled sparse feature rows in memory (`FeatureRows`), and whether the SAE sees the data set at all (`Health`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import scipy.sparse as sp

VERSION = 2
_QUARTILES = (0, 0.25, 0.5, 0.75, 1)
_FVU_LIMIT = 0.2
"""A prompt of which more is unexplained counts as far from what the SAE was trained on, unless the SAE is coarse."""
_FAR_SHARE = 0.1
"""A warning is due where more of the prompts than this are far from what the SAE reconstructs."""


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


ARRAYS = tuple(field.name for field in fields(FeatureRows) if field.name != "d_sae")
_ENTRIES = ("indices", "mean", "max")  # one value a stored entry; the others have one a row


def take(rows: FeatureRows, order: Sequence[int] | np.ndarray) -> FeatureRows:
    """Rows in another order, or a part of them."""
    return pick([rows], np.zeros(len(order), dtype=np.int64), np.asarray(order, dtype=np.int64))


def pick(parts: Sequence[FeatureRows], part: np.ndarray, row: np.ndarray) -> FeatureRows:
    """Row `row[n]` of `parts[part[n]]`, for each n. Copies each entry once, neighbours together."""
    apart = np.flatnonzero((np.diff(part) != 0) | (np.diff(row) != 1))
    first, last = np.r_[:1, apart + 1][: len(row)], np.r_[apart, len(row) - 1][: len(row)]
    runs = list(zip(part[first].tolist(), row[first].tolist(), (row[last] + 1).tolist(), strict=True))
    entries = [(nth, int(parts[nth].indptr[start]), int(parts[nth].indptr[stop])) for nth, start, stop in runs]

    def copied(arrays: Sequence[np.ndarray], pieces: list[tuple[int, int, int]]) -> np.ndarray:
        return np.concatenate([arrays[0][:0], *(arrays[nth][start:stop] for nth, start, stop in pieces)])

    lengths = copied([rows.active() for rows in parts], runs)
    return FeatureRows(
        indptr=np.concatenate([[0], np.cumsum(lengths)]), d_sae=parts[0].d_sae,
        **{name: copied([getattr(rows, name) for rows in parts], entries if name in _ENTRIES else runs)
           for name in ARRAYS if name != "indptr"})


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
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS if name != "indptr"}
    return FeatureRows(indptr=np.concatenate([[0], np.cumsum(lengths)]), **joined, d_sae=parts[0].d_sae)


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


def health(rows: FeatureRows, heldout_fvu: float | None = None, *, dense: bool = False) -> Health:
    """Health figures of a data set under an SAE, with a warning where the SAE looks collapsed, or the prompts far.

    Args:
        rows: The data set's features.
        heldout_fvu: What the SAE leaves unexplained of text like that which it was trained on, if it says so: one that
            leaves much is held to twice that.
        dense: The features are not an SAE's but fire everywhere by their making, which is then no cause for a warning.
    """
    active = rows.active()
    document_frequency = np.zeros(rows.d_sae, dtype=np.int64)
    for _, part in blocks(rows, 1024):  # numpy counts in int64, and makes a copy of what is not
        document_frequency += np.bincount(part.indices, minlength=rows.d_sae)
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
    return replace(figures, warnings=tuple(_warnings(figures, int((active == 0).sum()), dense=dense)))


def _warnings(figures: Health, empty: int, *, dense: bool) -> Iterator[str]:
    if figures.firing_share < 0.02:
        yield (f"only {figures.firing_share:.1%} of the SAE's features ever fire: it looks collapsed, or was trained "
               "on another layer")
    if figures.ubiquitous_share > 0.5 and not dense:
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
