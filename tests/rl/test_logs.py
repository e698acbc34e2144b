"""The line that a person would look for."""

from __future__ import annotations

from pathlib import Path

import pytest

from saerl_core.rl.logs import telling_line

RAY_FAILURE = """\
\x1b[36m(TaskRunnerV1 pid=12)\x1b[0m step:3 - reward:0.5
Error executing job with overrides: ['a=b']
Traceback (most recent call last):
  File "main_ppo.py", line 92, in run_ppo
ray.exceptions.RayTaskError(ValueError): \x1b[36mray::TaskRunnerV1.run()\x1b[39m (pid=12, ip=127.0.0.1)
  File "trainer.py", line 5, in fit
    raise ValueError("batch of 7")
ValueError: batch of 7
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (RAY_FAILURE, "ValueError: batch of 7"),
        ("(pid=3) torch.OutOfMemoryError: CUDA out of memory\nbye\n", "torch.OutOfMemoryError: CUDA out of memory"),
        ("ray.exceptions.RayTaskError(KeyError): ray::f()\n", "ray.exceptions.RayTaskError(KeyError): ray::f()"),
        ("starting\nall quiet\n\n", "all quiet"),
        ("", "the log is empty"),
    ],
)
def test_the_cause_is_found(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "log").write_text(text)
    assert telling_line(tmp_path / "log") == line


def test_an_earlier_attempts_failure_is_not_blamed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("ValueError: old\n")
    start = log.stat().st_size
    log.write_text("ValueError: old\nnew but quiet\n")
    assert telling_line(log, start) == "new but quiet"


def test_a_missing_log_is_said_to_be_missing(tmp_path: Path) -> None:
    assert telling_line(tmp_path / "none") == "no log was written"


def test_the_line_is_short(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("ValueError: " + "x" * 5000)
    assert len(telling_line(tmp_path / "log")) == 300
