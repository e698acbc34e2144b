"""Stage `extract`: prompts → pooled sparse features, mapped over shards, only rows that the store lacks."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import BaseModel

from saerl_core import artifact, disk, feature_store, features, locks, published
from saerl_core.artifact import ArtifactRef
from saerl_core.backbone import Backbone
from saerl_core.config import FeaturesConfig
from saerl_core.controls import RESIDUAL
from saerl_core.device import choose_device, has_gpu, release_memory
from saerl_core.extract import extract_tokens, load_reader
from saerl_core.hashing import hash_value
from saerl_core.models import load_tokenizer, render_all
from saerl_core.sae import Sae
from saerl_core.token_estimate import CHARACTERS_PER_TOKEN
from tasks.caching import keep_results, stage
from tasks.inputs import Inputs
from tasks.limits import device_slot
from tasks.progress import Progress
from tasks.read import TABLE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = "rows.safetensors"
LOCK = ".lock"
"""In a store: held by who adds rows, reads them all, or merges segments."""
_MANY_SEGMENTS = 64
_POLL_SECONDS = 0.5
_TOKENISING = threading.Lock()
_TURN = threading.Lock()
"""One shard of this process at a time."""
_GIVEN_UP = threading.Event()
"""The run was interrupted, or a shard failed: those that wait need not go on."""


class Shard(BaseModel):
    """A fixed range of prompts. Fixed, so that a rerun after a crash forms the same batches and the same bytes."""

    number: int
    total: int
    start: int
    stop: int
    content: str
    """hash of the feature keys of its own prompts, see `_own`"""


class ShardResult(BaseModel):
    """Where a shard's rows lie, and how many prompts had to be read for it."""

    segments: list[ArtifactRef]
    read: int


def plan_shards(source: ArtifactRef, shard_rows: int) -> list[Shard]:
    """Cut the usable prompts of an artifact into shards."""
    table = _usable(source.path)
    starts = range(0, table.height, shard_rows)
    return [Shard(number=number, total=len(starts), start=start, stop=min(start + shard_rows, table.height),
                  content=hash_value(_own(source, start, shard_rows)["feature_key"].to_list()))
            for number, start in enumerate(starts, start=1)]


def load_messages(source: ArtifactRef) -> list[list[dict[str, str]]]:
    """Chat messages of an artifact's usable prompts, in order."""
    return _usable(source.path)["messages"].to_list()


def load_keys(source: ArtifactRef) -> tuple[str, ...]:
    """Feature keys of an artifact's usable prompts, in order."""
    return tuple(_usable(source.path)["feature_key"])


@lru_cache(maxsize=2)  # what lies at an artifact's path does not change, and every shard asks for it
def _usable(folder: Path) -> pl.DataFrame:
    table = pl.read_parquet(folder / TABLE, columns=["messages", "feature_key", "drop_reason"])
    return table.filter(pl.col("drop_reason").is_null()).with_columns(first=pl.col("feature_key").is_first_distinct())


def _own(source: ArtifactRef, start: int, rows: int) -> pl.DataFrame:
    """Those prompts of a shard that occur in no earlier one.

    A prompt that occurs twice is read where it occurs first, so a shard's batches, and with them the last bits of its
    rows, do not depend on which shard is done before.
    """
    return _usable(source.path).slice(start, rows).filter("first")


@stage("extract", features.VERSION, of=("content", "store_hash"),
       run_name="extract {number}/{total} · {rows:,} prompts")
def extract_shard(inputs: Inputs, config: FeaturesConfig, source: ArtifactRef, start: int, number: int, total: int,
                  rows: int, content: str, store_hash: str) -> ShardResult:
    """Read those of a shard's own prompts that the store lacks; keep their rows as one segment.

    Shard by shard one run works on a store at a time: what two runs need, the second finds. The next shard is tokenised
    meanwhile, and waits for its turn here: the GPU's slot is the whole machine's, and costs a question to the server.
    """
    own = _own(source, start, rows)
    known = feature_store.find_rows(inputs.store, own["feature_key"])
    unknown = own.filter(~pl.col("feature_key").is_in(list(known)))
    ids = _tokenise(inputs, unknown["messages"].to_list(), config)
    with _TURN:
        if _GIVEN_UP.is_set():
            raise locks.BusyError("the run has ended")
        with device_slot(choose_device(config.device)), locks.exclusive(inputs.store / LOCK, given_up=_GIVEN_UP):
            found = feature_store.find_rows(inputs.store, own["feature_key"])
            refs = _segments(found)
            missing = {key: row for key, row in zip(unknown["feature_key"], ids, strict=True) if key not in found}
            if missing:
                backbone, encoder = reader(inputs.model, inputs.sae, inputs.layer, config.model_dump_json(),
                                           inputs.model_hash, inputs.encoder_hash)
                rows_read = extract_tokens(backbone, encoder, list(missing.values()), config)
                refs.append(feature_store.write_segment(inputs.store, list(missing), rows_read))
    return ShardResult(segments=refs, read=len(missing))


def _tokenise(inputs: Inputs, chats: list[list[dict[str, str]]], config: FeaturesConfig) -> list[list[int]]:
    """Token ids of prompts. One thread at a time: a tokenizer is not made for more."""
    if not chats:
        return []
    with _TOKENISING:
        tokenizer = _tokenizer(inputs.model, inputs.model_hash, trust_remote_code=config.trust_remote_code)
        return render_all(tokenizer, chats, chat_template=config.chat_template)


@lru_cache(maxsize=1)
def _tokenizer(model: Path, _model_hash: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """A tokenizer beside the reader's own, which another thread may be using."""
    return load_tokenizer(model, trust_remote_code=trust_remote_code)


def _segments(found: dict[str, tuple[Path, int]]) -> list[ArtifactRef]:
    segments = sorted({path for path, _ in found.values()})
    return [ArtifactRef(path=path, sha256=path.stem, size=path.stat().st_size) for path in segments]


@lru_cache(maxsize=1)
def reader(model: Path, sae: Path, layer: int, config_json: str, *_hashes: str) -> tuple[Backbone, Sae]:
    """The reader, loaded once a process and only when a prompt has to be read. Other files have other hashes."""
    return load_reader(model, sae, layer, FeaturesConfig.model_validate_json(config_json))


@stage("gather", features.VERSION, of=("source", "contents", "store_hash"))
def gather(root: Path, inputs: Inputs, source: ArtifactRef, contents: list[str], store_hash: str) -> ArtifactRef:
    """Feature rows of all usable prompts in the table's order, as one artifact."""
    with locks.exclusive(inputs.store / LOCK):
        rows = feature_store.gather(inputs.store, load_keys(source))
    with artifact.staging(root / "artifacts") as staged:
        feature_store.write_rows(staged / ROWS, rows)
        artifact.write_json(staged / "health.json", vars(features.health(
            rows, inputs.encoder.heldout_fvu, dense=inputs.encoder.architecture == RESIDUAL)))
        return artifact.seal(staged, "features", {"stage": "gather", "store": store_hash, "rows": len(rows)})


def load_rows(ref: ArtifactRef) -> features.FeatureRows:
    """The feature rows that `gather` kept."""
    return feature_store.read_rows(ref.path / ROWS)


class Extracted(BaseModel):
    """What an extraction gave."""

    features: ArtifactRef
    read: int
    """prompts that were read; 0: all came from the store"""


def run_extraction(root: Path, inputs: Inputs, source: ArtifactRef, config: FeaturesConfig, label: str) -> Extracted:
    """Map `extract` over those shards of an artifact that lack a row, then gather.

    Raises:
        ArtifactError: the disk may not hold the features.
    """
    shards, keys, store_hash = plan_shards(source, config.shard_rows), load_keys(source), inputs.store.name
    known = feature_store.find_rows(inputs.store, keys)
    _check_disk(root, inputs, source, known)
    _GIVEN_UP.clear()
    progress = Progress(label, "prompts")
    mapped = keep_results(extract_shard, root)
    futures: dict[int, Any] = {
        shard.number: mapped.submit(inputs, config, source, shard.start, shard.number, shard.total,
                                    shard.stop - shard.start, shard.content, store_hash)
        for shard in shards if not all(key in known for key in keys[shard.start : shard.stop])}
    read = 0
    try:
        for shard in shards:
            if future := futures.get(shard.number):
                while not future.wrapped_future.done():  # in steps: a thread that only waits may not hear of Ctrl-C
                    future.wait(_POLL_SECONDS)
                result = future.result()
                read += 0 if future.state.name == "Cached" else result.read
                progress(shard.stop, shards[-1].stop)
    except BaseException:
        _GIVEN_UP.set()
        raise
    if futures:
        _leave_gpu()
        _compact(root, inputs.store)
    contents = [shard.content for shard in shards]
    gathered = keep_results(gather.with_options(task_run_name=f"gather · {shards[-1].stop:,} prompts"), root)
    return Extracted(features=gathered(root, inputs, source, contents, store_hash), read=read)


@contextmanager
def kept_segments(store: Path, sources: Iterable[ArtifactRef]) -> Iterator[list[Path]]:
    """Where the store holds the rows of all these prompts; they stay there while the context lasts."""
    with locks.exclusive(store / LOCK):
        keys = {key for source in sources for key in load_keys(source)}
        yield sorted({segment for segment, _ in feature_store.find_rows(store, keys).values()})


def _leave_gpu() -> None:
    """Let go of the reader where it holds memory that a trainer will want."""
    if has_gpu():
        reader.cache_clear()
        release_memory()


def _compact(root: Path, store: Path) -> None:
    """Merge the store's small segments where they have become many; records then name what holds their rows now."""
    with locks.exclusive(store / LOCK):
        if len(list(store.glob("[!.]*.safetensors"))) >= _MANY_SEGMENTS:
            merged = feature_store.compact(store)
            published.replace(root, merged)
            feature_store.discard(merged)


def _check_disk(root: Path, inputs: Inputs, source: ArtifactRef, known: Collection[str]) -> None:
    """Room for the rows that the store lacks, twice: as segments, and gathered."""
    missing = _usable(source.path).filter("first", ~pl.col("feature_key").is_in(list(known)))
    chats = missing["messages"].to_list()
    characters = sum(len(message["content"]) for chat in chats for message in chat)
    tokens_each = characters / CHARACTERS_PER_TOKEN / max(len(chats), 1)
    needed = 2 * disk.feature_bytes(len(chats), tokens_each, inputs.encoder)
    disk.require(root, needed, f"the features of {len(chats):,} prompts")
