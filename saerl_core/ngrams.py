"""Texts that share most of their word n-grams: an exact search among all pairs, without hashing or sampling.

A text becomes tokens (words, numbers, LaTeX commands, operators; case, punctuation and LaTeX spacing apart), and its
n-grams become a set. What keeps the search fast is the prefix filter (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma
and Srikant 2007): sets that overlap enough share at least one of the rarest n-grams of each, so only those few are
joined, and the pairs that come out are counted in full.

Shapes: n texts, G distinct n-grams, p pairs. A set of n-grams is a row of a 0/1 matrix [n, G].
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import scipy.sparse as sp

_TOKEN = re.compile(
    r"\\[a-z]+|\\."  # LaTeX commands; escapes such as \, and \[
    r"|[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?"  # numbers
    r"|[\u3040-\u30ff\u3400-\u9fff]"  # scripts without spaces: each character
    r"|[^\W\d_]+"  # words
    r"|[^\s\w]|_",  # operators and punctuation
    re.DOTALL,
)
_OTHER_DIGIT = re.compile(r"[^\D0-9]")
_MEANINGLESS = frozenset((
    *"$.,;:?{}\"`#~&“”", "\\left", "\\right", "\\big", "\\displaystyle", "\\text", "\\textbf", "\\textit", "\\mathrm",
    "\\mathbb", "\\mathbf", "\\operatorname", "\\quad", "\\qquad"))
_SPELLINGS = {"\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\leq": "\\le", "\\leqslant": "\\le", "≤": "\\le",
              "\\geq": "\\ge", "\\geqslant": "\\ge", "≥": "\\ge", "\\neq": "\\ne", "≠": "\\ne", "×": "\\times",
              "π": "\\pi", "°": "\\circ", "’": "'", "−": "-"}
_CHUNK = 1 << 13
"""Rows joined, or pairs counted, at a time: bounds the memory."""


class _Spelled(dict[str, str]):
    """Token as found → token as compared, empty where it means nothing. Filled as it is asked."""

    def __missing__(self, token: str) -> str:
        escape = token[0] == "\\" and not token[1:].isalpha()
        spelled = self[token] = "" if escape or token in _MEANINGLESS else _SPELLINGS.get(token, token)
        return spelled


class _Numbering(dict[str, int]):
    """Token → its number, from 0. Filled as it is asked."""

    def __missing__(self, token: str) -> int:
        number = self[token] = len(self)
        return number


def tokenise(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """The tokens that count when texts are compared."""
    spelled = _Spelled()
    return [tuple(filter(None, map(spelled.__getitem__, _TOKEN.findall(_plain(text))))) for text in texts]


def _plain(text: str) -> str:
    if not text.isascii():  # digits of other scripts
        text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.digit(digit[0])), text)
    return text.casefold().replace("{,}", ",").replace("\\!", "")


def numbers(words: Sequence[str]) -> tuple[str, ...]:
    """The numbers among the tokens, in order."""
    return tuple([word.replace(",", "") for word in words if word[0] in "0123456789"])


def gram_matrix(texts: Sequence[Sequence[str]], n: int) -> sp.csr_array:
    """The n-gram sets of tokenised texts, int32 0/1 [n, G]. A text shorter than n tokens is one n-gram."""
    padded = [(*words, *[""] * (n - len(words))) if len(words) < n else words for words in texts]
    numbering = _Numbering()
    flat = np.fromiter(map(numbering.__getitem__, chain.from_iterable(padded)), np.int64)
    gram = flat
    for step in range(1, n):  # the number of a (step + 1)-gram: that of its head and its last token, made dense again
        gram = np.unique(gram[:-1] * len(numbering) + flat[step:], return_inverse=True)[1]
    lengths = np.array([len(words) for words in padded], dtype=np.int64)
    text = np.repeat(np.arange(len(padded)), lengths)
    inside = np.arange(len(flat)) + n <= np.cumsum(lengths)[text]
    row, column = text[inside], gram[inside[: len(gram)]]
    matrix = sp.csr_array((np.ones(len(row), np.int32), (row, column)),
                          shape=(len(padded), int(gram.max(initial=0)) + 1))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def columns(matrix: sp.csr_array) -> int:
    """G, the number of columns."""
    assert matrix.shape is not None  # scipy's own annotation allows None
    return matrix.shape[1]


def owners(matrix: sp.csr_array, group: np.ndarray) -> np.ndarray:
    """The one group whose texts have an n-gram: int64 [G], -1 where no text has it, -2 where several groups do.

    Args:
        matrix: n-gram sets [n, G].
        group: int64 [n], numbers from 0.
    """
    row = np.repeat(group, np.diff(matrix.indptr))
    lowest = np.full(columns(matrix), np.iinfo(np.int64).max)
    highest = np.full(columns(matrix), -1)
    np.minimum.at(lowest, matrix.indices, row)
    np.maximum.at(highest, matrix.indices, row)
    return np.where(highest < 0, -1, np.where(lowest == highest, highest, -2))


def rarest(matrix: sp.csr_array, frequency: np.ndarray, threshold: float) -> sp.csr_array:
    """The prefix of each set: its rarest n-grams, so many that a set without them cannot share `threshold` of it.

    Args:
        matrix: n-gram sets [n, G].
        frequency: int [G], how common each n-gram is in what the sets are joined with.
        threshold: Share in (0, 1].
    """
    sizes = np.diff(matrix.indptr)
    row = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((matrix.indices, frequency[matrix.indices], row))
    place = np.arange(len(order)) - matrix.indptr[row]
    needed = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
    kept = place < needed[row]
    return sp.csr_array((np.ones(int(kept.sum()), np.int32), (row[kept], matrix.indices[order][kept])),
                        shape=(len(sizes), columns(matrix)))


def overlaps(left: sp.csr_array, right: sp.csr_array, pairs: np.ndarray) -> np.ndarray:
    """Inner product of each pair, for n-gram sets the number that they share.

    Args:
        left: Rows [n, G].
        right: Rows [m, G].
        pairs: int64 [p, 2], (row of left, row of right).
    """
    counted = [np.zeros(0, left.dtype)]
    for start in range(0, len(pairs), _CHUNK):
        part = pairs[start : start + _CHUNK]
        shared: Any = left[part[:, 0]].multiply(right[part[:, 1]])
        counted.append(np.asarray(shared.sum(axis=1)).ravel())
    return np.concatenate(counted)


def joined(left: sp.csr_array, right: sp.csr_array) -> np.ndarray:
    """(row of left, row of right) int64 [p, 2] of all pairs that share a column."""
    other = right.T.tocsr()
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(left.indptr) - 1, _CHUNK):
        product: Any = (left[start : start + _CHUNK] @ other).tocoo()
        found.append(np.stack([product.row + start, product.col], axis=1).astype(np.int64))
    return np.concatenate(found)
