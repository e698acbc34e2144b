from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saerl_core import prompts
from saerl_core.config import PRESETS, ColumnsConfig, DataConfig, SourceConfig
from saerl_core.errors import DataError

Write = Callable[..., Path]
CONFIG = DataConfig(path="unused", columns=ColumnsConfig(id="id", prompt="prompt", answer="answer"))


def read(path: Path, config: DataConfig) -> pl.DataFrame:
    return prompts.read_table((path,), config, config)


def row(number: int, prompt: str = "", answer: object = "4") -> dict[str, object]:
    return {"id": f"r{number}", "prompt": prompt or f"What is {number} + 2?", "answer": answer}


def test_a_row_keeps_its_key_wherever_it_moves_and_however_it_is_spaced(write_jsonl: Write) -> None:
    first = read(write_jsonl(row(1), row(2), name="a.jsonl"), CONFIG)
    moved = read(write_jsonl(row(2), row(1, " What is  1 + 2?\n"), name="b.jsonl"), CONFIG)
    assert first["key"].to_list() == moved["key"].to_list()[::-1]


def test_rows_without_an_id_column_are_named_by_their_content(write_jsonl: Write) -> None:
    table = read(write_jsonl(row(1)), DataConfig(path="unused"))
    assert table["id"].item() == table["key"].item()[:16]


def test_chat_messages_and_nested_answers_are_read_as_verl_writes_them(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    pl.DataFrame([{"prompt": messages, "reward_model": {"ground_truth": "4"}}]).write_parquet(tmp_path / "v.parquet")
    table = read(tmp_path / "v.parquet", DataConfig(path="unused", preset="verl"))
    assert table["messages"].to_list() == [messages]
    assert table["text"].item() == "2 + 2?"
    assert table["answer"].item() == "4"


def test_instruction_and_system_message_frame_the_prompt_but_not_its_text(write_jsonl: Write) -> None:
    config = CONFIG.model_copy(update={"instruction": "Use ####.", "system": "You count."})
    table = read(write_jsonl(row(1)), config)
    assert table["messages"].to_list()[0] == [{"role": "system", "content": "You count."},
                                              {"role": "user", "content": "What is 1 + 2?\nUse ####."}]
    assert table["text"].item() == "What is 1 + 2?"


def test_answer_pattern_takes_the_answer_out_of_a_solution(write_jsonl: Write) -> None:
    config = CONFIG.model_copy(update={"answer_pattern": r"#### (.+)$"})
    assert read(write_jsonl(row(1, answer="1+2=3\n#### 3")), config)["answer"].item() == "3"


def test_numbers_are_answers_and_zero_is_not_empty(write_jsonl: Write) -> None:
    assert read(write_jsonl(row(1, answer=0), row(2, answer=2.5)), CONFIG)["answer"].to_list() == [
        "0", "2.5"]


def test_prompts_beyond_the_policys_limit_are_marked_not_cut(write_jsonl: Write) -> None:
    table = read(write_jsonl(row(1), row(2, "long " * 50)), CONFIG)
    marked = prompts.mark_too_long(table, lambda chats: [len(chat[0]["content"].split()) for chat in chats], 10)
    assert marked["drop_reason"].to_list() == [None, "too_long"]


@pytest.mark.parametrize(("lines", "complaint"), [
    ([row(1), '{"id": "r2", "prompt": '], "line 2: broken JSON"),
    ([row(1), "[1, 2]"], "line 2: expected an object"),
    ([row(1), row(1)], "line 2: id = 'r1' stands in line 1 already"),
    ([row(1), row(2, "  ")], "line 2: prompt is empty"),
    ([row(1), row(2, answer="")], "line 2: answer is empty"),
    ([row(1), {"id": "a", "prompt": "?"}, row(2, answer="")],
     "line 2: no 'answer' in this row: fill it in, or leave the row out (and 1 more bad rows)"),
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
        read(path, CONFIG)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_further_bad_rows_are_counted(write_jsonl: Write) -> None:
    with pytest.raises(DataError, match=r"line 1: answer is empty \(and 2 more bad rows\)"):
        read(write_jsonl(*(row(n, answer="") for n in range(3))), CONFIG)


def test_pass_rates_outside_zero_to_one_are_refused(write_jsonl: Write) -> None:
    columns = ColumnsConfig(id="id", pass_rate="pass_rate")
    config = DataConfig(path="unused", columns=columns)
    with pytest.raises(DataError, match=r"pass_rate = 1\.5"):
        read(write_jsonl({**row(1), "pass_rate": 1.5}), config)


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert prompts.normalise(prompts.normalise(text)) == prompts.normalise(text)


def test_presets_can_be_overridden_field_by_field() -> None:
    source = SourceConfig(path="x", preset="gsm8k", columns=ColumnsConfig(prompt="problem"))
    assert source.columns == ColumnsConfig(prompt="problem", answer="answer", solution="answer")
    assert source.answer_pattern is not None
    other = SourceConfig(path="x", preset="gsm8k", columns=ColumnsConfig(answer="key"))
    assert other.answer_pattern is None


LAYOUTS: dict[str, tuple[dict[str, Any], tuple[str, str, float | None]]] = {
    "gsm8k": ({"question": "Q", "answer": "48/2=<<48/2=24>>24\n#### 1,072 "}, ("Q", "1,072", None)),
    "math": ({"problem": "Q", "answer": "p - q", "solution": "s", "subject": "Algebra", "level": 2}, ("Q", "p - q", 2)),
    "hendrycks_math": ({"problem": "Q", "level": "Level 5", "type": "Algebra",
                        "solution": r"So \boxed{1}, or rather $\boxed{\frac{1}{\sqrt{2}}}$."},
                       ("Q", r"\frac{1}{\sqrt{2}}", 5)),
    "deepscaler": ({"problem": "Q", "answer": "7", "solution": "s"}, ("Q", "7", None)),
    "deepmath": ({"question": "Q", "final_answer": "0", "difficulty": 4.5, "topic": "Calculus", "r1_solution_1": "s"},
                 ("Q", "0", 4.5)),
    "dapo": ({"data_source": "math_dapo", "prompt": [{"content": "Q", "role": "user"}], "ability": "MATH",
              "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"}, "extra_info": {"index": "a"}},
             ("Q", "34", None)),
    "verl": ({"data_source": "openai/gsm8k", "prompt": [{"content": "Q", "role": "user"}], "ability": "math",
              "reward_model": {"ground_truth": "72", "style": "rule"}, "extra_info": {"index": 0, "split": "train"}},
             ("Q", "72", None)),
    "saerl": ({"id": "1", "problem": "Q", "answer": "3"}, ("Q", "3", None)),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_reads_its_data_set_as_published(write_jsonl: Write, preset: Any) -> None:
    record, expected = LAYOUTS[preset]
    table = read(write_jsonl(record), DataConfig(path="unused", preset=preset))
    assert table.select("text", "answer", "level").row(0) == expected


@pytest.mark.parametrize(("solution", "answer"), [
    (r"so $\boxed 5$ it is", "5"), (r"\fbox{12}", "12"), (r"\boxed{ \text{(C)} }", r"\text{(C)}"),
    (r"\boxed{a} then \boxed{b}", "b"),
])
def test_the_last_box_of_a_math_solution_is_the_answer(write_jsonl: Write, solution: str, answer: str) -> None:
    config = DataConfig(path="unused", preset="hendrycks_math")
    assert read(write_jsonl({"problem": "Q", "solution": solution}), config)["answer"].item() == answer


def test_optional_fields_may_be_missing_from_some_rows_but_not_from_all(write_jsonl: Write) -> None:
    columns = ColumnsConfig(id="id", pass_rate="rate", quality="good", solution="worked")
    config = DataConfig(path="unused", columns=columns)
    table = read(write_jsonl({**row(1), "rate": 0.5}, {**row(2), "good": True, "worked": "2 + 2 = 4"}), config)
    assert table.select("pass_rate", "quality", "solution").rows() == [(0.5, None, None), (None, 1.0, "2 + 2 = 4")]
    with pytest.raises(DataError, match=r"no row has the column 'good' for the quality; the columns are answer, id"):
        read(write_jsonl({**row(1), "rate": 0.5}), config)


def test_quality_must_be_a_share_or_a_truth_value(write_jsonl: Write) -> None:
    config = DataConfig(path="unused", columns=ColumnsConfig(quality="good"))
    assert read(write_jsonl({**row(1), "good": "false"}, {**row(2), "good": 0.25}), config)["quality"].to_list() == [
        0.0, 0.25]
    with pytest.raises(DataError, match="good is 'fine': expected a number"):
        read(write_jsonl({**row(1), "good": "fine"}), config)


def test_a_level_that_math_does_not_know_is_none(write_jsonl: Write) -> None:
    config = DataConfig(path="unused", columns=ColumnsConfig(level="level"))
    assert read(write_jsonl({**row(1), "level": "Level ?"}, {**row(2), "level": "Level 3"}), config)[
        "level"].to_list() == [None, 3.0]


def test_of_a_pattern_with_several_groups_the_one_that_matches_is_the_answer(write_jsonl: Write) -> None:
    config = DataConfig(path="unused", answer_pattern=r"#### (\S+)|\\boxed\{([^}]*)\}|none")
    table = read(write_jsonl({**row(1), "answer": "#### 5"}, {**row(2), "answer": r"\boxed{6}"}), config)
    assert table["answer"].to_list() == ["5", "6"]
    with pytest.raises(DataError, match=r"does not match data\.answer_pattern"):
        read(write_jsonl({**row(1), "answer": "none"}), config)
