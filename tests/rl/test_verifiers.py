"""The verifier that a config names: what it accepts, what it must survive, and when it counts as another one."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saerl_core.config import PolicyConfig
from saerl_core.errors import ConfigError
from saerl_core.rl import verifiers
from saerl_core.rl.settings import VERL_SIDE
from saerl_core.rl.verl_side import saerl_math
from saerl_core.rl.verl_side.saerl_judge import FOLDER_VARIABLE
from saerl_core.rl.verl_side.saerl_verifier import is_correct

STRICT = "def same(response: str, answer: str) -> bool:\n    return response == answer\n"


def load(name: str, base: Path = Path()) -> verifiers.Verifier:
    return verifiers.load(PolicyConfig(model="m", verifier=name), base)


@pytest.fixture
def user_module(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Writes a module beside the config and gives the verifier's name."""
    folder, kept = tmp_path / "config", list(sys.path)
    folder.mkdir()
    module = f"judge_{abs(hash(request.node.name))}"

    def write(source: str, function: str = "same") -> tuple[str, Path]:
        (folder / f"{module}.py").write_text(source)
        sys.modules.pop(module, None)
        return f"import:{module}:{function}", folder

    yield write
    sys.path[:] = kept
    sys.modules.pop(module, None)


@pytest.mark.parametrize(("stated", "answer"), [
    ("1/2", "0.5"), (r"\frac{1}{2}", "0.5"), ("x+1", "1+x"), (r"\sqrt{8}", r"2\sqrt{2}"), ("5", "x=5"),
    ("2/6", "\\[\n\\frac{1}{3}\n\\]"), ("1.5", r"$\frac{3}{2}$."),
    (r"\{2, 1\}", r"\{1,2\}"), (r"(x-1)(x+1)", "x^2-1"), ("12650", r"12,\!650"), ("0.333333333", r"\frac{1}{3}"),
])
def test_math_sees_the_same_value_where_exact_sees_two_spellings(stated: str, answer: str) -> None:
    assert load("math").score(f"so \\boxed{{{stated}}}", answer) == 1
    assert load("exact").score(f"so \\boxed{{{stated}}}", answer) == float(is_correct(f"\\boxed{{{stated}}}", answer))


@pytest.mark.parametrize(("stated", "answer"), [
    (r"\begin{pmatrix} 1 & 0 \\ 0 & -1 \end{pmatrix}.", "-1"), (r"f(x)=x \text{ and so } 7 or 1", "1"),
    ("0.5", r"\frac{1}{3}"), ("x+1", "x+2"), (r"\sqrt{8}", r"3\sqrt{2}"), ("46", "47"), ("(1,2)", "(2,1)"), ("", "1"),
])
def test_math_tells_other_values_apart(stated: str, answer: str) -> None:
    assert load("math").score(f"so \\boxed{{{stated}}}", answer) == 0


def test_math_looks_at_the_final_answer_alone() -> None:
    assert load("math").score("0.5 it is", "0.5") == 0
    assert load("math").score(r"1/2, no: \boxed{2}", "0.5") == 0


@settings(max_examples=30, deadline=None)
@given(st.fractions(max_denominator=40).filter(lambda value: abs(value) < 1000), st.integers(2, 5))
def test_math_takes_a_fraction_in_every_spelling(value: Fraction, scale: int) -> None:
    top, bottom = value.numerator, value.denominator
    sign = "-" if top < 0 else ""
    spellings = [f"{top}/{bottom}", f"{sign}\\frac{{{abs(top)}}}{{{bottom}}}",
                 f"\\frac{{{top * scale}}}{{{bottom * scale}}}"]
    for stated in spellings:
        for answer in spellings:
            assert load("math").score(f"#### {stated}", answer) == 1
    assert load("math").score(f"#### {spellings[0]}", str(value + 1)) == 0


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="0123456789.,-+$\\{}frac x^_()=<>%/ ", max_size=12), st.text(max_size=8))
def test_what_exact_accepts_math_accepts(stated: str, answer: str) -> None:
    for reference in (answer, stated):
        if is_correct(f"\\boxed{{{stated}}}", reference):
            assert load("math").score(f"\\boxed{{{stated}}}", reference) == 1


def test_a_comparison_that_would_never_end_is_lost_and_the_next_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saerl_math, "CPU_SECONDS", 1.5)
    monkeypatch.setattr(saerl_math, "_child", None)  # the next child has so long
    started = time.monotonic()
    assert load("math").score(r"\boxed{9^{9^{9^{9}}} + 1}", r"8^{8^{8^{8}}} + x") == 0
    assert load("math").score(r"\boxed{0.25}", r"\frac{1}{4}") == 1
    assert time.monotonic() - started < 30
    monkeypatch.setattr(saerl_math, "_child", None)


def test_threads_may_judge_at_once() -> None:
    pairs = [(str(n), f"{2 * n}/2" if n % 3 else f"{2 * n + 1}/2") for n in range(1, 40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: load("math").score(f"#{pair[0]}", pair[1]), pairs))
    assert found == [float(n % 3 > 0) for n in range(1, 40)]


def test_a_users_function_judges_and_its_file_is_its_identity(user_module: Any) -> None:
    name, folder = user_module("def same(response, answer):\n    return 0.25 if answer in response else False\n")
    first = load(name, folder)
    assert (first.score("it is 46", "46"), first.score("it is 45", "46")) == (0.25, 0)
    assert load(name, folder).identity == first.identity
    user_module("def same(response, answer):\n    return answer in response\n")
    second = load(name, folder)
    assert second.identity != first.identity
    (folder / f"{name.split(':')[1]}.py").write_text("def same(response, answer):\n    return False\n")
    assert load(name, folder).identity == second.identity  # of what this process runs, not of what lies there now
    assert second.score("it is 46", "46") == 1


@pytest.mark.parametrize(("source", "complaint"), [
    ("x = 1\n", "has no plain function 'same'"),
    ("def same(response):\n    return True\n", r"cannot be called as same\(response, answer\)"),
    ("async def same(response, answer):\n    return True\n", "has no plain function 'same'"),
    ("import no_such_module_anywhere\n", "cannot be imported: ModuleNotFoundError"),
    ("def same(response, answer)\n", "cannot be imported: SyntaxError"),
])
def test_a_function_that_cannot_judge_is_refused_in_one_line(user_module: Any, source: str, complaint: str) -> None:
    name, folder = user_module(source)
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(name, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("result", ["2", "-1", "None", "'right'", "float('nan')", "1/0"])
def test_a_verdict_that_is_no_reward_is_told_with_the_answer(user_module: Any, result: str) -> None:
    name, folder = user_module(f"def same(response, answer):\n    return {result}\n")
    with pytest.raises(ConfigError, match=r"policy\.verifier: import:.* failed on the answer '46'"):
        load(name, folder).score("46", "46")


def test_a_missing_module_is_named() -> None:
    with pytest.raises(ConfigError, match="no_such_judge cannot be imported"):
        load("import:no_such_judge:f")


@pytest.mark.parametrize("name", ["exakt", "import:judge", "import:../judge:f", "import::f", ""])
def test_a_name_that_means_nothing_is_a_config_error(name: str) -> None:
    with pytest.raises(ValueError, match="expected `exact`"):
        PolicyConfig(model="m", verifier=name)


def test_a_file_beside_the_config_does_not_stand_in_for_an_installed_module(tmp_path: Path) -> None:
    kept = list(sys.path)
    (tmp_path / "statistics.py").write_text(STRICT)
    with pytest.raises(ConfigError, match="has no plain function 'same'"):
        load("import:statistics:same", tmp_path)
    sys.path[:] = kept


def test_references_that_no_response_can_meet_are_marked_each_distinct_one_judged_once() -> None:
    answers = ["46", r"\frac{1}{2", "46", "#A B#", r"\text{Sunday}", "$"]
    marked, note = verifiers.unverifiable(answers, load("exact"))
    assert (marked.tolist(), note) == ([False, True, False, True, False, True], "")
    calls: list[str] = []
    verifiers.unverifiable(["1"] * 1000, verifiers.Verifier(lambda r, a: calls.append(a) or 1.0, "x", ("{}",)))
    assert len(calls) == 1


def test_a_users_function_with_a_form_of_its_own_marks_nothing_and_says_so(user_module: Any) -> None:
    name, folder = user_module("def same(response, answer):\n    return response == f'<answer>{answer}</answer>'\n")
    marked, note = verifiers.unverifiable(["1", "2"], load(name, folder))
    assert not marked.any()
    assert "a form of its own" in note


def test_a_users_function_is_asked_in_every_common_form(user_module: Any) -> None:
    name, folder = user_module(STRICT)
    marked, note = verifiers.unverifiable(["1", "2"], load(name, folder))
    assert not marked.any()
    assert note == ""


@pytest.mark.parametrize(("file", "name", "refused"), [
    ("deepscaler_passrate_dev", "exact", 2), ("math_train", "exact", 0), ("gsm8k_train", "exact", 0),
    ("deepscaler_passrate_dev", "math", 2), ("math_train", "math", 0),
])
def test_the_reference_answers_of_real_data_are_nearly_all_verifiable(
    shared: Path, file: str, name: str, refused: int
) -> None:
    with gzip.open(shared / "data" / f"{file}.jsonl.gz", "rt") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    marked, note = verifiers.unverifiable(answers, load(name))
    assert note == ""
    assert int(marked.sum()) == refused


def test_verls_process_judges_by_the_same_function_and_refuses_another(user_module: Any) -> None:
    name, folder = user_module("def same(response, answer):\n    return 0.5 * (answer in response)\n")
    identity = load(name, folder).identity
    program = ("import sys, saerl_reward; print(saerl_reward.compute_score('d', 'it is 46', '46', {}, "
               "verifier=sys.argv[1], identity=sys.argv[2]))")

    def ask(verifier: str, expected: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(VERL_SIDE), FOLDER_VARIABLE: str(folder)}
        return subprocess.run([sys.executable, "-c", program, verifier, expected], env=environment, text=True,
                              capture_output=True, check=False)

    assert ask(name, identity).stdout == "0.5\n"
    assert ask("math", load("math").identity).stdout == "0.0\n"  # no marker, no answer
    refused = ask(name, "import:other:f-0").stderr
    assert "judged the labels, verl's environment has" in refused
