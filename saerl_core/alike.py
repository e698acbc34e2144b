"""Which prompts are all but equal: by their word n-grams, or in SAE space.

Word problems come in templates, and two problems of one template are not duplicates, however much text they share.
So two prompts are alike only if they have the same numbers in the same order, and the same answer; and their n-grams
are counted twice, all of them and those that tell the problem from others. An n-gram that also occurs in prompts with
other numbers or another answer is the template's, and tells nothing.

Shapes: n prompts, G distinct n-grams, p pairs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from saerl_core import ngrams
from saerl_core.clusters import inverse_document_frequency, sketch
from saerl_core.features import FeatureRows

_NUMBERS_BEFORE = 2
"""A training text may have so many numbers before those of the evaluation text: `14. (12 points) Find ...`."""
_SKETCH_DIMS = 512
_SKETCH_MARGIN = 0.1
"""Cosines of sketches are off by less than this where they matter; pairs that pass are measured exactly."""
_ROWS_AT_A_TIME = 1024

Match = tuple[int, int, float]
"""(row, the row that it is like, how much: 0 to 1)"""


@dataclass(frozen=True)
class Texts:
    """What n prompts are compared by."""

    tokens: list[tuple[str, ...]]
    numbers: list[tuple[str, ...]]
    answers: list[str]
    """normalised as the exact verifier does"""
    grams: sp.csr_array
    """int32 0/1 [n, G], the n-gram sets"""

    def take(self, rows: np.ndarray) -> Texts:
        """Some of the prompts."""
        return Texts([self.tokens[row] for row in rows], [self.numbers[row] for row in rows],
                     [self.answers[row] for row in rows], self.grams[rows])


def texts_of(texts: Sequence[str], answers: Sequence[str], n: int) -> Texts:
    """Tokens, numbers and word n-grams of prompts; `answers` are normalised already."""
    words = ngrams.tokenise(texts)
    return Texts(words, [ngrams.numbers(text) for text in words], list(answers), ngrams.gram_matrix(words, n))


def near_duplicates(texts: Texts, threshold: float) -> list[Match]:
    """Near duplicates among prompts: (row, earlier row that stays, Jaccard overlap), by row."""
    group = numbered(zip(texts.numbers, texts.answers, strict=True))
    telling = texts.grams[:, ngrams.owners(texts.grams, group) >= 0]
    prefix = ngrams.rarest(telling, np.bincount(telling.indices, minlength=ngrams.columns(telling)), threshold)
    pairs = ngrams.joined(prefix, prefix)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]  # of one group, for a telling n-gram is in no other
    share = np.minimum(_jaccard(telling, pairs), _jaccard(texts.grams, pairs))
    close = share >= threshold
    same = np.array(_same_tokens(texts), dtype=np.int64).reshape(-1, 2)
    return _first_stays(np.concatenate([same, pairs[close]]), np.concatenate([np.ones(len(same)), share[close]]))


def contained(texts: Texts, evaluated: Texts, threshold: float) -> list[Match]:
    """Prompts that hold an evaluation prompt: (row, its best match among the evaluated, share of its n-grams), by row.

    The training prompt may be longer (an instruction, a source); it may have more numbers only in front. `texts` and
    `evaluated` count the same n-grams.
    """
    answer = numbered([*texts.answers, *evaluated.answers])
    own, asked = answer[: len(texts.answers)], answer[len(texts.answers) :]
    frequency = np.bincount(texts.grams.indices, minlength=ngrams.columns(texts.grams))
    prefix = ngrams.rarest(evaluated.grams, frequency, threshold)
    pairs = ngrams.joined(*_split_by(prefix, asked, texts.grams, own))
    row = np.repeat(np.arange(len(asked)), np.diff(evaluated.grams.indptr))
    owner = ngrams.owners(texts.grams, own)[evaluated.grams.indices]
    told = (owner == -1) | (owner == asked[row])
    telling = sp.csr_array((told.astype(np.int32), evaluated.grams.indices, evaluated.grams.indptr),
                           shape=evaluated.grams.shape)
    share = np.minimum(_contained_share(evaluated.grams, texts.grams, pairs),
                       _contained_share(telling, texts.grams, pairs))
    numbering: dict[tuple[tuple[str, ...], str], int] = {}
    for other, key in enumerate(zip(evaluated.tokens, evaluated.answers, strict=True)):
        numbering.setdefault(key, other)
    best: dict[int, tuple[float, int]] = {
        here: (1.0, -numbering[key]) for here, key in enumerate(zip(texts.tokens, texts.answers, strict=True))
        if key in numbering}
    for (other, here), overlap in zip(pairs[share >= threshold].tolist(), share[share >= threshold], strict=True):
        asked_numbers, found = evaluated.numbers[other], texts.numbers[here]
        before = len(found) - len(asked_numbers)
        if 0 <= before <= _NUMBERS_BEFORE and found[before:] == asked_numbers:
            best[here] = max(best.get(here, (0.0, 0)), (float(overlap), -other))
    return [(here, -other, overlap) for here, (overlap, other) in sorted(best.items())]


def near_duplicate_features(rows: FeatureRows, group: np.ndarray, threshold: float) -> list[Match]:
    """Prompts of one group whose features point the same way: (row, earlier row that stays, cosine), by row.

    The cosine is that of idf-weighted square roots of mean activations, exact; a count-sketch finds the candidates.

    Args:
        rows: Features of n prompts.
        group: int64 [n]; only prompts of one group are compared.
        threshold: Smallest cosine.
    """
    idf = inverse_document_frequency(rows)
    vectors = sketch(rows, idf, _SKETCH_DIMS, seed=0)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    candidates = [np.zeros((0, 2), np.int64)]
    for members in np.split(order, starts[1:]):
        for start in range(0, len(members) - 1, _ROWS_AT_A_TIME):
            near = vectors[members[start : start + _ROWS_AT_A_TIME]] @ vectors[members].T
            here, there = np.nonzero(np.triu(near >= threshold - _SKETCH_MARGIN, k=start + 1))
            candidates.append(np.stack([members[here + start], members[there]], axis=1))
    pairs = np.concatenate(candidates)
    matrix = rows.matrix()
    matrix.data = np.sqrt(matrix.data) * idf[matrix.indices]
    norms = np.sqrt(np.asarray(matrix.power(2).sum(axis=1)).ravel())
    lengths = np.maximum(norms[pairs[:, 0]] * norms[pairs[:, 1]], np.finfo(np.float32).tiny)
    cosine = ngrams.overlaps(matrix, matrix, pairs) / lengths
    return _first_stays(pairs[cosine >= threshold], cosine[cosine >= threshold])


def numbered(keys: Iterable[Hashable]) -> np.ndarray:
    """int64 [n]: equal keys get equal numbers, from 0."""
    numbering: dict[Hashable, int] = {}
    return np.array([numbering.setdefault(key, len(numbering)) for key in keys], dtype=np.int64)


def _same_tokens(texts: Texts) -> list[tuple[int, int]]:
    """(first row, later row) of prompts with the same tokens and the same answer."""
    first: dict[tuple[tuple[str, ...], str], int] = {}
    return [(first[key], row) for row, key in enumerate(zip(texts.tokens, texts.answers, strict=True))
            if first.setdefault(key, row) != row]



def _jaccard(grams: sp.csr_array, pairs: np.ndarray) -> np.ndarray:
    shared, sizes = ngrams.overlaps(grams, grams, pairs), np.diff(grams.indptr)
    return shared / np.maximum(sizes[pairs[:, 0]] + sizes[pairs[:, 1]] - shared, 1)


def _contained_share(asked: sp.csr_array, grams: sp.csr_array, pairs: np.ndarray) -> np.ndarray:
    sizes = np.asarray(asked.sum(axis=1)).ravel()
    return ngrams.overlaps(asked, grams, pairs) / np.maximum(sizes[pairs[:, 0]], 1)


def _split_by(left: sp.csr_array, left_group: np.ndarray, right: sp.csr_array,
              right_group: np.ndarray) -> tuple[sp.csr_array, sp.csr_array]:
    """Both matrices with a column for each (column, group) of `left`: only rows of one group still share any."""
    groups = max(left_group.max(initial=0), right_group.max(initial=0)) + 1
    left_key = left.indices.astype(np.int64) * groups + np.repeat(left_group, np.diff(left.indptr))
    right_key = right.indices.astype(np.int64) * groups + np.repeat(right_group, np.diff(right.indptr))
    columns, left_column = np.unique(left_key, return_inverse=True)
    right_column = np.searchsorted(columns, right_key)
    there = np.zeros(len(right_key), bool)
    inside = right_column < len(columns)
    there[inside] = columns[right_column[inside]] == right_key[inside]
    row = np.repeat(np.arange(len(right.indptr) - 1), np.diff(right.indptr))[there]
    return (sp.csr_array((left.data, left_column, left.indptr), shape=(len(left.indptr) - 1, len(columns))),
            sp.csr_array((right.data[there], (row, right_column[there])), shape=(len(right.indptr) - 1, len(columns))))


def _first_stays(pairs: np.ndarray, share: np.ndarray) -> list[Match]:
    """(row, earliest row that stays and is alike, share): a row goes if a row before it stays and is alike."""
    dropped: dict[int, tuple[int, float]] = {}
    for which in np.lexsort((pairs[:, 0], pairs[:, 1])):
        first, row = int(pairs[which, 0]), int(pairs[which, 1])
        if first not in dropped and row not in dropped:
            dropped[row] = (first, float(share[which]))
    return [(row, first, overlap) for row, (first, overlap) in dropped.items()]
