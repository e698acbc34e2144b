from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from saerl_core.report import markdown
from saerl_core.report.figures import scores
from saerl_core.report.markup import plain
from tests.report import world

IMAGE = re.compile(r'<img alt="([^"]+)" width="\d+" src="data:image/png;base64,([^"]+)">')


def test_a_summary_holds_the_figures_and_three_pictures() -> None:
    header, curation = world.make(n=1600)
    text = markdown.summary(header, curation)
    assert len(text.encode()) < markdown.SIZE
    assert "| trained on | 1,280 |" in text
    assert "| left out: low quality | " in text
    assert max(len(cell) for line in text.splitlines() if line.startswith("|") for cell in line.split("|")) <= 62
    assert "**quality**: in use" in text
    pictures = IMAGE.findall(text)
    assert len(pictures) == text.count("<img") == 3
    for _, data in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(data))).format == "PNG"


def test_warnings_come_first_and_no_prompt_is_quoted() -> None:
    header, curation = world.make(n=300, k=3, steps=None, hostile=True)
    header["inputs"]["data"]["name"] = "<script>|`x`"
    header, curation = world.without_gates(header, curation)
    text = markdown.summary(header, curation)
    assert markdown.summary(header, curation) == text
    assert text.startswith("# Curation of &lt;script&gt;\\|\\`x\\`\n")
    assert text.index("> **Difficulty is not used") < text.index("| prompts read |")
    assert "alert(" not in text


def test_a_summary_of_a_bare_manifest() -> None:
    header, curation = world.make(n=300, k=3, steps=None)
    text = markdown.summary(*world.without_extras(header, curation))
    assert text.count("<img") == 1


@pytest.mark.parametrize(("size", "pictures"), [(60_000, 1), (2_000, 0)])
def test_pictures_give_way_where_room_is_short(monkeypatch: pytest.MonkeyPatch, size: int, pictures: int) -> None:
    monkeypatch.setattr(markdown, "SIZE", size)
    dots = [(i / 1500, (i * 7 % 1500) / 1500) for i in range(1500)]
    drawn = [("A cloud", scores.held_out_difficulty(dots))]
    text = markdown.assemble("t", "l", [], [("a", "b")], drawn)
    assert len(text.encode()) <= size
    assert text.count("<img") == pictures


def test_plain_text_stays_plain() -> None:
    assert plain("a|b *c* [d](e) <b> & `f`\n# g") == r"a\|b \*c\* \[d\](e) &lt;b&gt; &amp; \`f\` \# g"
