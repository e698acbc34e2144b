"""Readers and sources: every kind of file gives the same rows, folders and hub data sets are read as one."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saerl_core import prompts, sources
from saerl_core.config import ColumnsConfig, DataConfig, SourceConfig
from saerl_core.errors import DataError
from saerl_core.readers import read_rows

COLUMNS = ColumnsConfig(id="id", prompt="prompt", answer="answer", subject="subject", pass_rate="rate")
CONFIG = DataConfig(path="unused", columns=COLUMNS)
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv", ".arrow")

# no lone carriage return: the csv module reads it as the end of a line; no NUL, which CSV cannot hold
text = st.text(st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n\t"), min_size=1).filter(str.strip)
tables = st.lists(st.fixed_dictionaries({
    "prompt": text, "answer": text, "subject": st.none() | text, "rate": st.none() | st.floats(0, 1)}),
    min_size=1, max_size=8).map(lambda rows: [{"id": f"r{i}", **row} for i, row in enumerate(rows)])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file of the kind that its name says."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    match path.suffixes[-1]:
        case ".gz":
            path.write_bytes(gzip.compress(lines))
        case ".zst":
            with pa.output_stream(str(path), compression="zstd") as file:
                file.write(lines)
        case ".parquet":
            pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
        case ".arrow":
            table = pa.Table.from_pylist(rows)
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        case ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        case _:
            path.write_bytes(lines)
    return path


def read(*files: Path) -> pl.DataFrame:
    return prompts.read_table(files, CONFIG, CONFIG)


@given(rows=tables)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    expected = read(write(tmp_path / "rows.jsonl", rows))
    assert expected["answer"].to_list() == [row["answer"].strip() for row in rows]
    assert expected["pass_rate"].to_list() == [row["rate"] for row in rows]
    for ending in ENDINGS[1:]:
        assert read(write(tmp_path / f"rows{ending}", rows)).equals(expected), ending


def make(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "prompt": f"What is {i} + 2?", "answer": str(i + 2), "subject": "sums", "rate": 0.5}
            for i in range(start, start + count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten rows in a folder of mixed files, with a description beside them."""
    path = tmp_path / "data"
    path.mkdir()
    write(path / "a.jsonl.gz", make(4))
    write(path / "b.parquet", make(3, 4))
    write(path / "c.csv", make(3, 7))
    (path / "README.md").write_text("not data")
    return path


def find(path: object) -> tuple[Path, ...]:
    return sources.find_files(SourceConfig(path=str(path)), Path())


def test_a_folder_is_read_as_one_in_the_order_of_its_names(folder: Path, tmp_path: Path) -> None:
    assert read(*find(folder)).equals(read(write(tmp_path / "all.jsonl", make(10))))


def test_a_folders_hash_follows_its_content_not_its_names_or_place(folder: Path) -> None:
    before = sources.content_hash(find(folder))
    (folder / "c.csv").rename(folder / "z.csv")
    moved = folder.rename(folder.parent / "elsewhere")
    assert sources.content_hash(find(moved)) == before
    write(moved / "zz.jsonl", make(1, 10))
    assert sources.content_hash(find(moved)) != before


def test_a_file_alone_and_in_a_folder_of_its_own_are_the_same_data(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    file = write(alone / "a.jsonl", make(4))
    assert sources.content_hash(find(alone)) == sources.content_hash(find(file))


def test_a_bad_row_in_a_folder_is_told_by_its_file_and_place(folder: Path) -> None:
    write(folder / "b.parquet", [*make(2, 4), {**make(1, 6)[0], "answer": " "}])
    with pytest.raises(DataError, match=r"b\.parquet, row 3: answer is empty"):
        read(*find(folder))


def test_an_id_that_stands_in_two_files_is_told_with_both(folder: Path) -> None:
    write(folder / "c.csv", make(1))
    with pytest.raises(DataError, match=r"c\.csv, line 2: id = 'r0' stands in a\.jsonl\.gz, line 1 already"):
        read(*find(folder))


def test_what_a_folder_holds_must_be_known(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("?")
    with pytest.raises(DataError, match=r"notes\.txt: unknown kind of file in a data folder"):
        find(folder)
    with pytest.raises(DataError, match=r"no data files in this folder; name one of its subfolders \(there is: data\)"):
        find(tmp_path)


def test_only_the_columns_that_are_wanted_leave_a_columnar_file(tmp_path: Path) -> None:
    for ending in (".parquet", ".arrow"):
        path = write(tmp_path / f"rows{ending}", [{"a": {"b": 1}, "c": 2, "d": 3}])
        assert [row.record for row in read_rows([path], ["a.b", "d"])] == [{"a": {"b": 1}, "d": 3}]
        assert [sorted(row.record) for row in read_rows([path], ["a.b", "missing"])] == [["a", "c", "d"]]


@pytest.mark.parametrize(("name", "content", "complaint"), [
    ("p.txt", b"hello", "unknown kind of file"),
    ("p.jsonl.gz", b"not gzip", "cannot be read"),
    ("p.jsonl.zst", b"not zstd", "cannot be read"),
    ("p.parquet", b"not parquet", "cannot be read"),
    ("p.arrow", b"not arrow", "cannot be read"),
    ("p.jsonl", b"\xff\xfe\x00", "cannot be read"),
    ("p.csv", b"id,prompt,answer\n1,two\n", "another number of fields"),
    ("p.csv", b"id;prompt;answer\n1;two, or three;2\n", "separated by ';', not by commas"),
    ("p.csv", "id,prompt,answer\n1,für,2\n".encode("latin-1"), "save it as UTF-8"),
    ("p.jsonl", b'[{"prompt": 1}]', "one object a line is read, not a JSON array"),
    ("p.jsonl", b'[\n{"prompt": 1}\n]', "one object a line is read, not a JSON array"),
])
def test_files_that_are_not_what_their_name_says_are_refused(tmp_path: Path, name: str, content: bytes,
                                                             complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        find(tmp_path / "nowhere.jsonl")


def test_a_saved_datasets_folder_is_read(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(make(5)).save_to_disk(tmp_path / "saved")
    assert read(*find(tmp_path / "saved")).equals(read(write(tmp_path / "same.jsonl", make(5))))


def test_a_hub_data_set_is_what_the_loader_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    parquet = write(tmp_path / "train.parquet", make(6))
    asked: list[tuple[Any, ...]] = []
    real = datasets.load_dataset

    def load(name: str, subset: str | None, *, split: str, revision: str | None, **options: Any) -> Any:
        asked.append((name, subset, split, revision))
        return real("parquet", data_files={split: str(parquet)}, split=split, cache_dir=str(tmp_path / "cache"),
                    **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = SourceConfig(path="hub:owner/name", subset="main", split="test", revision="v1")
    files = sources.find_files(source, tmp_path)
    assert asked == [("owner/name", "main", "test", "v1")]
    assert read(*files).equals(read(parquet))
    first = sources.content_hash(files)
    write(parquet, make(7))
    assert sources.content_hash(sources.find_files(source, tmp_path)) != first


def test_a_hub_data_set_without_a_network_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"^hub:owner/name \(split 'train'\): the hub does not give this data set"):
        sources.find_files(SourceConfig(path="hub:owner/name"), Path())


@pytest.mark.parametrize(("fields", "complaint"), [
    ({"path": "hub:name"}, "expected hub:owner/name"),
    ({"path": "data.jsonl", "split": "train"}, "split = 'train' belongs to a data set on the hub"),
    ({"path": "hub:owner/name", "split": "train[:10]"}, "split"),
])
def test_a_source_that_cannot_be_meant_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SourceConfig(**fields)


def test_an_arrow_file_whose_offsets_point_out_of_it_is_a_data_error(tmp_path: Path) -> None:
    """Arrow trusts offsets: unchecked, this ends the process (SIGBUS) where the memory behind the file ends."""
    path = write(tmp_path / "rows.arrow", [{"prompt": "What?", "answer": "1"}])
    offsets = (0).to_bytes(4, "little") + (5).to_bytes(4, "little")
    before, found, after = path.read_bytes().rpartition(offsets)  # those of `prompt`, ahead of its text
    assert after.lstrip(b"\0").startswith(b"What?")
    path.write_bytes(before + found[:4] + (2**30).to_bytes(4, "little") + after)
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows([path]))


def test_arrow_files_are_read_in_both_of_arrows_formats(tmp_path: Path) -> None:
    frame = pl.DataFrame({"prompt": ["a", "b"], "answer": ["1", "2"], "other": [1, 2]})
    frame.write_ipc(tmp_path / "file.arrow")
    frame.write_ipc_stream(tmp_path / "stream.arrow")
    for name in ("file.arrow", "stream.arrow"):
        rows = [row.record for row in read_rows([tmp_path / name], ["prompt", "answer"])]
        assert rows == [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}]


def test_a_long_field_in_a_csv_file_is_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [{"prompt": "p", "answer": "1", "solution": "x" * 200_000}])
    assert len(next(iter(read_rows([path]))).record["solution"]) == 200_000


def test_a_time_that_python_cannot_hold_is_named_with_its_file(tmp_path: Path) -> None:
    column = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"prompt": ["p"], "at": column}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read"):
        list(read_rows([tmp_path / "x.parquet"]))
