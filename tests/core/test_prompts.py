from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_core import prompts
from saerl_core.config import ColumnsConfig, DataConfig, SourceConfig
from saerl_core.errors import DataError

Write = Callable[..., Path]
CONFIG = DataConfig(path="unused", columns=ColumnsConfig(id="id", prompt="prompt", answer="answer"))


def row(number: int, prompt: str = "", answer: object = "4") -> dict[str, object]:
    return {"id": f"r{number}", "prompt": prompt or f"What is {number} + 2?", "answer": answer}


def test_a_row_keeps_its_key_wherever_it_moves_and_however_it_is_spaced(write_jsonl: Write) -> None:
    first = prompts.read_prompts(write_jsonl(row(1), row(2), name="a.jsonl"), CONFIG)
    moved = prompts.read_prompts(write_jsonl(row(2), row(1, " What is  1 + 2?\n"), name="b.jsonl"), CONFIG)
    assert first["key"].to_list() == moved["key"].to_list()[::-1]


def test_rows_without_an_id_column_are_named_by_their_content(write_jsonl: Write) -> None:
    table = prompts.read_prompts(write_jsonl(row(1)), DataConfig(path="unused"))
    assert table["id"].item() == table["key"].item()[:16]


def test_all_formats_give_the_same_table(write_jsonl: Write, tmp_path: Path) -> None:
    rows = [row(number) for number in range(5)]
    expected = prompts.read_prompts(write_jsonl(*rows), CONFIG)
    with gzip.open(tmp_path / "p.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)
    pl.DataFrame(rows).write_parquet(tmp_path / "p.parquet")
    pl.DataFrame(rows).write_csv(tmp_path / "p.csv")
    for name in ("p.jsonl.gz", "p.parquet", "p.csv"):
        assert prompts.read_prompts(tmp_path / name, CONFIG).equals(expected), name


def test_chat_messages_and_nested_answers_are_read_as_verl_writes_them(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    pl.DataFrame([{"prompt": messages, "reward_model": {"ground_truth": "4"}}]).write_parquet(tmp_path / "v.parquet")
    table = prompts.read_prompts(tmp_path / "v.parquet", DataConfig(path="unused", preset="verl"))
    assert table["messages"].to_list() == [messages]
    assert table["text"].item() == "2 + 2?"
    assert table["answer"].item() == "4"


def test_instruction_and_system_message_frame_the_prompt_but_not_its_text(write_jsonl: Write) -> None:
    config = CONFIG.model_copy(update={"instruction": "Use ####.", "system": "You count."})
    table = prompts.read_prompts(write_jsonl(row(1)), config)
    assert table["messages"].to_list()[0] == [{"role": "system", "content": "You count."},
                                              {"role": "user", "content": "What is 1 + 2?\nUse ####."}]
    assert table["text"].item() == "What is 1 + 2?"


def test_answer_pattern_takes_the_answer_out_of_a_solution(write_jsonl: Write) -> None:
    config = CONFIG.model_copy(update={"answer_pattern": r"#### (.+)$"})
    assert prompts.read_prompts(write_jsonl(row(1, answer="1+2=3\n#### 3")), config)["answer"].item() == "3"


def test_numbers_are_answers_and_zero_is_not_empty(write_jsonl: Write) -> None:
    assert prompts.read_prompts(write_jsonl(row(1, answer=0), row(2, answer=2.5)), CONFIG)["answer"].to_list() == [
        "0", "2.5"]


def test_duplicates_conflicts_and_contamination_are_marked_and_everything_is_kept(write_jsonl: Write) -> None:
    heldout = prompts.read_table(write_jsonl(row(9), name="h.jsonl"), CONFIG, CONFIG)
    again, other = {**row(1), "id": "again"}, {**row(2), "id": "other", "answer": "5"}
    path = write_jsonl(row(1), again, row(2), other, row(9), row(3))
    table = prompts.read_prompts(path, CONFIG, heldout)
    assert table["drop_reason"].to_list() == [None, "duplicate", "conflicting_answers", "conflicting_answers",
                                              "contaminated", None]


def test_prompts_beyond_the_policys_limit_are_marked_not_cut(write_jsonl: Write) -> None:
    table = prompts.read_prompts(write_jsonl(row(1), row(2, "long " * 50)), CONFIG)
    marked = prompts.mark_too_long(table, lambda messages: len(messages[0]["content"].split()), 10)
    assert marked["drop_reason"].to_list() == [None, "too_long"]


@pytest.mark.parametrize(("lines", "complaint"), [
    ([row(1), '{"id": "r2", "prompt": '], "line 2: broken JSON"),
    ([row(1), "[1, 2]"], "line 2: expected an object"),
    ([row(1), row(1)], "line 2: id = 'r1' stands in line 1 already"),
    ([row(1), row(2, "  ")], "line 2: prompt is empty"),
    ([row(1), row(2, answer="")], "line 2: answer is empty"),
    ([row(1), row(2, answer=None)], "line 2: answer is None"),
    ([row(1), row(2, answer=True)], "line 2: answer is True"),
    ([{"id": "a", "question": "?", "answer": "1"}],
     "line 1: no column 'prompt' for the prompt; the columns are answer, id, question"),
    ([{"id": "a", "prompt": [{"role": "user"}], "answer": "1"}], "needs `role` and `content`"),
    ([{"id": "a", "prompt": [{"role": "assistant", "content": "hi"}], "answer": "1"}], "no message of the role 'user'"),
    ([{"id": "a", "prompt": 5, "answer": "1"}], "expected text or a list of chat messages"),
    ([], "no rows"),
])
def test_bad_rows_are_told_by_file_line_and_field(write_jsonl: Write, lines: list[object], complaint: str) -> None:
    path = write_jsonl(*lines)
    with pytest.raises(DataError) as caught:
        prompts.read_prompts(path, CONFIG)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_further_bad_rows_are_counted(write_jsonl: Write) -> None:
    with pytest.raises(DataError, match=r"line 1: answer is empty \(and 2 more bad rows\)"):
        prompts.read_prompts(write_jsonl(*(row(n, answer="") for n in range(3))), CONFIG)


@pytest.mark.parametrize(("name", "content", "complaint"), [
    ("p.txt", b"hello", "unknown kind of file"),
    ("p.jsonl.gz", b"not gzip", "cannot be read"),
    ("p.parquet", b"not parquet", "cannot be read"),
    ("p.jsonl", b"\xff\xfe\x00", "cannot be read"),
    ("p.csv", b"id,prompt,answer\n1,two\n", "another number of fields"),
])
def test_files_that_are_not_what_their_name_says_are_refused(tmp_path: Path, name: str, content: bytes,
                                                             complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        prompts.read_prompts(tmp_path / name, CONFIG)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        prompts.read_prompts(tmp_path / "nowhere.jsonl", CONFIG)


def test_pass_rates_outside_zero_to_one_are_refused(write_jsonl: Write) -> None:
    columns = ColumnsConfig(id="id", pass_rate="pass_rate")
    config = DataConfig(path="unused", columns=columns)
    with pytest.raises(DataError, match=r"pass_rate = 1\.5"):
        prompts.read_prompts(write_jsonl({**row(1), "pass_rate": 1.5}), config)


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert prompts.normalise(prompts.normalise(text)) == prompts.normalise(text)


def test_presets_can_be_overridden_field_by_field() -> None:
    source = SourceConfig(path="x", preset="gsm8k", columns=ColumnsConfig(prompt="problem"))
    assert source.effective_columns() == ColumnsConfig(prompt="problem", answer="answer")


def test_gsm8k_is_read_whole_and_shares_nothing_with_its_test_set(shared: Path) -> None:
    columns = ColumnsConfig(id="id", prompt="problem", answer="answer")
    config = DataConfig(path="unused", columns=columns, heldout=SourceConfig(path="unused", columns=columns))
    heldout = prompts.read_heldout(shared / "data" / "gsm8k_test.jsonl.gz", config)
    table = prompts.read_prompts(shared / "data" / "gsm8k_train.jsonl.gz", config, heldout)
    assert (table.height, heldout.height) == (7473, 1319)
    assert prompts.usable(table).height == 7473
