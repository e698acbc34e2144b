"""Whether two answers have the same value: math-verify, in a child process that can be lost.

sympy can be brought to compute for hours by a short expression (`9^{9^{9^9}}`), and math-verify's own time-outs are
signals, which work in no thread but the main one; verl and Prefect judge in threads. So a comparison runs in a child,
which the kernel ends once it has used up its processor time or memory, and the next comparison starts another. Time is
the child's own: on a busy machine the verdict is the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from functools import lru_cache

CPU_SECONDS = 5.0
"""What one comparison may cost; then the answers count as different."""
LONGEST = 400
"""Characters. A longer answer is prose or a program: only its spelling can be compared."""
_MEMORY_BYTES = 4 << 30
_DELIMITER = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])|\.\s*$")
"""What stands around an answer, and what math-verify stumbles over within a box: `$`, `\\[`, a full stop."""

_lock = threading.Lock()
_child: tuple[int, subprocess.Popen[str]] | None = None  # the process that started it: a fork must not share its pipes


@lru_cache(maxsize=1 << 14)
def same_value(stated: str, expected: str) -> bool:
    """True where math-verify finds two answers equal as mathematics: `1/2` and `0.5`, `x+1` and `1+x`.

    Args:
        stated: LaTeX or a plain expression, without its marker.
        expected: The reference; math-verify is not symmetric (`x=1` may answer `1`).

    Raises:
        RuntimeError: the child cannot be started.
    """
    if max(len(stated), len(expected)) > LONGEST:
        return False
    with _lock:
        child = _running_child()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps([stated, expected]) + "\n")
            child.stdin.flush()
            reply = child.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            child.wait()  # ended by the kernel: this comparison was too dear
        return reply == "true\n"


def _running_child() -> subprocess.Popen[str]:
    global _child
    if _child is None or _child[0] != os.getpid() or _child[1].poll() is not None:
        process = subprocess.Popen(
            [sys.executable, __file__, str(CPU_SECONDS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            process.wait()
            raise RuntimeError(f"math-verify cannot be started with {sys.executable}")
        _child = os.getpid(), process
    return _child[1]


def _serve(cpu_seconds: float) -> None:
    """The child: a pair of answers a line, `true` or `false` a line."""
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    # The whole of a box or nothing: by default math-verify takes a number out of what it cannot parse.
    whole = [LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)]
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ValueError):  # a lower limit is there already
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in the middle of a C loop too
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        boxes = (f"\\boxed{{{_DELIMITER.sub('', answer).strip()}}}" for answer in json.loads(line))
        stated, expected = (parse(box, whole, parsing_timeout=0) for box in boxes)
        same = verify(expected, stated, timeout_seconds=0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write("true\n" if same else "false\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
