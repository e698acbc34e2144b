"""A corpus → token ids of documents, in an order drawn by lot; the first ones are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saerl_core import hygiene, prompts
from saerl_core.config import CorpusConfig, DataConfig, HygieneConfig
from saerl_core.errors import DataError
from saerl_core.hashing import hash_value
from saerl_core.hygiene import EvaluationSet
from saerl_core.models import render
from saerl_core.readers import read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELDOUT_SHARE = 0.1
"""At most this share of the documents is held out."""

Message = dict[str, str]


@dataclass(frozen=True)
class Documents:
    """Token ids, one list a document; no document is in both parts."""

    train: list[list[int]]
    heldout: list[list[int]]


def read_prompts(files: Sequence[Path], evaluations: Mapping[str, Sequence[Path]], data: DataConfig,
                 config: HygieneConfig) -> list[list[Message]]:
    """The chats of a prompt set: those that `saerl curate` would not leave out as copies or contaminated.

    Raises:
        DataError: a file cannot be read, or a row breaks the prompt contract.
    """
    sets = [EvaluationSet(name, prompts.read_table(evaluations[name], source, data))
            for name, source in data.evaluations().items()]
    table, _ = hygiene.mark(prompts.read_table(files, data, data), sets, config)
    return prompts.usable(table)["messages"].to_list()


def read_corpus(files: Sequence[Path], config: CorpusConfig, limit: int | None = None) -> list[list[Message] | str]:
    """Documents of a corpus, each a chat or plain text.

    Args:
        files: Its files.
        config: Which columns, and whether texts are messages.
        limit: Read no more than this many rows.

    Raises:
        DataError: a file cannot be read, a column is missing, or a row holds no text.
    """
    found = [_document(row.record, config, f"{row.file}, {row.place}") for row in islice(read_rows(files), limit)]
    if not found:
        raise DataError(f"{files[0]}: no rows")
    return found


def _document(record: dict[str, Any], config: CorpusConfig, where: str) -> list[Message] | str:
    if missing := [column for column in config.columns if column not in record]:
        raise DataError(f"{where}: no column {missing[0]!r} (sae_training.corpus.columns); there are "
                        f"{', '.join(sorted(record))}")
    values = [record[column] for column in config.columns]
    if len(values) == 1 and isinstance(values[0], list):
        if not values[0] or not all(isinstance(turn, dict) and isinstance(turn.get("role"), str)
                                    and isinstance(turn.get("content"), str) for turn in values[0]):
            raise DataError(f"{where}: {config.columns[0]} is a list, but not of chat messages {{role, content}}")
        return [{"role": turn["role"], "content": turn["content"]} for turn in values[0]]
    for column, value in zip(config.columns, values, strict=True):
        if not isinstance(value, str):
            raise DataError(f"{where}: {column}: expected text, found {type(value).__name__}")
    if not "".join(values).strip():
        raise DataError(f"{where}: {' and '.join(config.columns)} is empty")
    text = "\n\n".join(value for value in values if value.strip())
    return [{"role": "user", "content": text}] if config.chat else text


def tokenize(documents: Iterable[list[Message] | str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int,
             chat_template: bool, tokens: int, heldout_tokens: int, seed: int,
             progress: Callable[[int, int], None] | None = None) -> Documents:
    """Token ids of documents, in an order drawn by lot of their content; duplicates count once.

    The first documents drawn are held out, until `heldout_tokens` are reached. Reading stops at `tokens`, so the cost
    is bounded by what is trained on, not by the corpus. Long documents are cut into pieces that the reader can take.

    Args:
        documents: Chats or plain texts.
        tokenizer: The reader's.
        max_tokens: Longest piece.
        chat_template: Render chats with the template.
        tokens: Enough to train on.
        heldout_tokens: Enough to measure on.
        seed: Of the lot.
        progress: Called with (tokens read, tokens wanted).

    Raises:
        DataError: too few documents to hold one out.
    """
    drawn = {hash_value([seed, document]): document for document in documents}
    order = [drawn[key] for key in sorted(drawn)]
    most = int(HELDOUT_SHARE * len(order))
    if most < 1:
        raise DataError(f"{len(order)} different documents are too few to train an SAE on and to hold some out")

    def take(documents: Iterable[list[Message] | str], enough: int) -> Iterator[list[list[int]]]:
        count = 0
        for document in documents:
            ids = tokenizer.encode(document) if isinstance(document, str) else render(
                tokenizer, document, chat_template=chat_template)
            yield [ids[start : start + max_tokens] for start in range(0, len(ids), max_tokens)]
            count += len(ids)
            if progress is not None:
                progress(min(count, enough), enough)
            if count >= enough:
                return

    heldout = list(take(order[:most], heldout_tokens))
    train = list(take(order[len(heldout) :], tokens))
    return Documents([piece for pieces in train for piece in pieces], [piece for pieces in heldout for piece in pieces])
