"""One verifier for everything: pass-rate labels, evaluation and the RL reward judge an answer by the same rule.

A response states its final answer after a run of `#` (`#46`, `#### 72`) or in `\\boxed{...}`; whichever marker comes
last counts. It is right when it is spelled like the reference answer, up to differences that mean nothing: spaces,
`$`, thousands separators, trailing zeros, LaTeX sizing commands. Nothing is evaluated: `1/2` is not `0.5`.
"""

from __future__ import annotations

import re

_SPECIAL_TOKEN = re.compile(
    r"<\|[^<>|\n]{1,40}\|>"  # <|end|>, <|im_end|>, <|endoftext|>
    r"|<｜[^<>\n]{1,40}｜>"  # DeepSeek's
    r"|</?s>|<(?:pad|bos|eos|unk|end_of_turn|start_of_turn)>"
)
_HASH_MARKER = re.compile(r"(?<!\\)#+")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_MEANINGLESS = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\[()\[\]]"  # sizing and math delimiters
    r"|\\[!,;:]|~|\\ "  # LaTeX spaces
    r"|\\?\$"  # dollars
    r"|\^\\circ(?![a-z])|\^\{\\circ\}|°|\\?%"  # degrees, per cent
    r"|\s+"
)
_SHORT_FRACTION = re.compile(r"\\frac([0-9])([0-9])")
_FRACTION = re.compile(r"\\frac\{(-?[0-9]+)\}\{([0-9]+)\}")
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?:[,&][0-9]{3})+(?:\.[0-9]*)?")
_APART = re.compile(r"(?<=[0-9])\s+(?=[0-9])|(?<=[0-9])\s*(?=\\[dt]?frac)")  # `9 6` is not 96, `1\frac15` not 11/5
_NUMBER = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?")


def extract_answer(text: str) -> str | None:
    """The final answer that a response states, or None where it states none.

    Text of special tokens (`<|im_end|>`) ends a line: what a tokenizer leaves after its end mark is no answer.
    """
    text = _SPECIAL_TOKEN.sub("\n", text)
    boxed_at, boxed = _last_boxed(text)
    hash_at, hashed = _last_hashed(text)
    if boxed is not None and boxed_at > hash_at:
        return boxed
    return hashed


def normalise_answer(answer: str) -> str:
    """One spelling for all spellings of an answer. Applying it twice changes nothing."""
    while (simpler := _normalise_once(answer)) != answer:
        answer = simpler
    return answer


def is_correct(response: str, answer: str) -> bool:
    """True where the response's final answer is the reference answer.

    `answer` is the bare reference (`46`) or a text that marks it as a response does (`... #### 46`). A reference that
    is empty is never met.
    """
    stated = extract_answer(response)
    if stated is None:
        return False
    marked = extract_answer(answer)
    expected = normalise_answer(answer if marked is None else marked)
    return expected != "" and normalise_answer(stated) == expected


def _last_hashed(text: str) -> tuple[int, str | None]:
    """Where the last `#` run starts, and the rest of its line."""
    markers = list(_HASH_MARKER.finditer(text))
    if not markers:
        return -1, None
    last = markers[-1]
    return last.start(), text[last.end() :].partition("\n")[0].strip()


def _last_boxed(text: str) -> tuple[int, str | None]:
    """Where the last complete \\boxed{...} starts, and what it holds."""
    for match in reversed(list(_BOXED.finditer(text))):
        depth = 1
        for end in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return match.start(), text[match.end() : end].strip()
    return -1, None


def _normalise_once(answer: str) -> str:
    text = _SPECIAL_TOKEN.sub("", answer).casefold()
    text = _APART.sub("&", _WRAPPER.sub(r"\1", text))
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("{,}", ",")
    text = _MEANINGLESS.sub("", text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _FRACTION.sub(r"\1/\2", text)
    text = text.rstrip(".")
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "").replace("&", "")
    return _normalise_number(text)


def _normalise_number(text: str) -> str:
    match = _NUMBER.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return text
    whole = match[2].lstrip("0") or "0"
    decimals = (match[3] or "").rstrip("0")
    sign = "-" if match[1] == "-" and (whole != "0" or decimals) else ""
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"
