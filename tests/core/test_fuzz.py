"""Whatever bytes lie in a file, readers either read them or say what is wrong with them."""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saerl_core import artifact, feature_store, features, models, prompts, sae_spec
from saerl_core.clusters import read_codebook
from saerl_core.config import ColumnsConfig, DataConfig, RunConfig, build_config, load_config
from saerl_core.errors import ArtifactError, ConfigError, DataError, ModelError
from saerl_core.manifest import read_manifest, verify_manifest
from saerl_core.published import read as read_record
from saerl_core.rl.consumed import consumed_batches, observed_rewards
from saerl_core.rl.metrics import parse_line

COLUMNS = ColumnsConfig(id="id", prompt="prompt", answer="answer", subject="subject", level="level",
                        pass_rate="rate", quality="good", solution="solution")
CONFIG = DataConfig(path="unused", columns=COLUMNS)
DEEP = b"[" * 100_000

fuzz = settings(max_examples=60, deadline=None)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                     max_leaves=8)
messages = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "?"]), "content": trees}))
records = st.fixed_dictionaries({}, optional={
    "id": trees, "prompt": st.text() | messages | trees, "answer": trees, "subject": trees, "level": trees,
    "rate": trees, "good": trees, "solution": trees})


FOLDER: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    FOLDER[:] = [tmp_path_factory.mktemp("fuzz")]


def put(name: str, content: bytes) -> Path:
    """A file in a folder of its own: fixtures are shared between examples."""
    path = Path(tempfile.mkdtemp(dir=FOLDER[0])) / name
    path.write_bytes(content)
    return path


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """A sound file with a few bytes replaced, or its end cut off."""
    places = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)

    def change(how: tuple[list[tuple[int, int]], int]) -> bytes:
        changed = bytearray(content)
        for place, value in how[0]:
            changed[place] = value
        return bytes(changed[: how[1]])

    return st.tuples(places, st.integers(0, len(content))).map(change)


ROWS = [{"id": f"r{i}", "prompt": f"What is {i} + 1?", "answer": str(i + 1), "rate": 0.5} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def columnar(kind: str) -> bytes:
    table, sink = pa.Table.from_pylist(ROWS), pa.BufferOutputStream()
    if kind == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    return sink.getvalue().to_pybytes()


SOUND = {
    ".jsonl": LINES, ".jsonl.gz": gzip.compress(LINES), ".jsonl.zst": pa.compress(LINES, codec="zstd", asbytes=True),
    ".csv": b"id,prompt,answer,rate\n1,What?,2,0.5\n", ".parquet": columnar(".parquet"), ".arrow": columnar(".arrow"),
}


@pytest.mark.parametrize("ending", SOUND)
@given(draw=st.data())
@fuzz
def test_arbitrary_bytes_are_rows_or_a_data_error(ending: str, draw: st.DataObject) -> None:
    content = draw.draw(st.binary(max_size=400) | mutated(SOUND[ending]))
    with contextlib.suppress(DataError):
        prompts.read_table([put(f"rows{ending}", content)], CONFIG, CONFIG)


@given(st.lists(records, max_size=3), st.booleans())
@example([{"prompt": "\ud800", "answer": 1}], True)
@example([{"prompt": "x", "answer": 1, "level": 10**400}], False)
@settings(max_examples=300, deadline=None)
def test_arbitrary_records_are_rows_or_a_data_error(rows: list[dict[str, Any]], ascii_only: bool) -> None:
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    with contextlib.suppress(DataError):
        table = prompts.read_table([put("rows.jsonl", text.encode(errors="surrogatepass"))], CONFIG, CONFIG)
        assert table.height == len(rows)


SECTIONS = list(RunConfig.model_fields)
config_trees = st.dictionaries(st.sampled_from(SECTIONS) | st.text(), trees | st.dictionaries(
    st.sampled_from(["path", "model", "sae", "k", "seed", "batch_size", "columns", "name"]), trees), max_size=5)


@given(config_trees)
@fuzz
def test_arbitrary_config_trees_are_a_config_or_a_config_error(tree: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        build_config(tree, Path())


@given(st.binary(max_size=300) | config_trees.map(lambda tree: yaml.safe_dump(tree).encode()))
@example(DEEP)
@example(b"? [1, 2]\n: x")
@example(b"2021-13-45")
@fuzz
def test_arbitrary_config_files_are_a_config_or_a_config_error(content: bytes) -> None:
    with contextlib.suppress(ConfigError):
        load_config(put("run.yaml", content))


@given(st.text(max_size=40))
@fuzz
def test_arbitrary_overrides_are_a_config_or_a_config_error(override: str) -> None:
    with contextlib.suppress(ConfigError):
        load_config(put("run.yaml", b"name: x"), (override,))


json_files = st.binary(max_size=200) | trees.map(lambda tree: json.dumps(tree).encode())


@given(json_files | st.fixed_dictionaries({"files": trees | st.dictionaries(st.text(), trees), "prompts": trees}).map(
    lambda tree: json.dumps(tree).encode()))
@example(DEEP)
@example(b'{"files": {"..": {"sha256": "", "size": 0}}}')
@example(b'{"files": {"a\\u0000": {"sha256": "", "size": 0}}}')
@fuzz
def test_arbitrary_headers_are_a_header_or_an_artifact_error(content: bytes) -> None:
    from saerl_core.hashing import hash_file

    path = put("manifest.json", content)
    for read in (read_manifest, verify_manifest):
        with contextlib.suppress(ArtifactError):
            read(path.parent)
    with contextlib.suppress(ArtifactError):
        artifact.verify_folder(path.parent, hash_file(path), "manifest.json")


@given(json_files | st.fixed_dictionaries({"step": trees, "ids": trees, "answers": trees, "keys": trees,
                                           "rewards": trees}).map(lambda tree: json.dumps(tree).encode()))
@example(DEEP)
@fuzz
def test_arbitrary_step_records_are_records_or_an_artifact_error(content: bytes) -> None:
    run = put("x", b"").parent
    (run / "consumed").mkdir()
    (run / "consumed" / "step-000001.json").write_bytes(content)
    for read in (consumed_batches, observed_rewards):
        with contextlib.suppress(ArtifactError):
            read(run)


@given(json_files)
@example(DEEP)
@fuzz
def test_arbitrary_json_is_a_record_a_metric_a_model_an_sae_or_an_error(content: bytes) -> None:
    workspace = put("x", b"").parent
    for name in ("published/x.json", "config.json", "cfg.json", "sae_weights.safetensors", "model.safetensors"):
        (workspace / name).parent.mkdir(exist_ok=True)
        (workspace / name).write_bytes(content)
    with contextlib.suppress(ArtifactError):
        read_record(workspace, "x")
    for read in (models.read_spec, sae_spec.read_spec):
        with contextlib.suppress(ModelError):
            read(workspace)
    parse_line(content.decode(errors="replace"))


def feature_file() -> bytes:
    import numpy as np

    one = np.ones(1, dtype=np.int32)
    rows = features.FeatureRows(np.array([0, 1]), one, one.astype(np.float32), one.astype(np.float32), one, one, one,
                                one.astype(np.float32), 4)
    with tempfile.TemporaryDirectory() as folder:
        feature_store.write_rows(Path(folder, "rows"), rows)
        return Path(folder, "rows").read_bytes()


@given(st.binary(max_size=200) | mutated(feature_file()))
@example(b"\xff" * 16)
@example((2).to_bytes(8, "little") + b"[]")
@fuzz
def test_arbitrary_safetensors_are_tensors_or_an_artifact_error(content: bytes) -> None:
    path = put("rows.safetensors", content)
    for read in (feature_store.read_rows, read_codebook):
        with contextlib.suppress(ArtifactError):
            read(path)
