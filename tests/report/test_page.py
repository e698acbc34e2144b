from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import polars as pl
import pytest

from saerl_core.manifest import Curation, counts
from saerl_core.report import page
from tests.report import world
from tests.report.reading import Reading

Run = tuple[dict[str, Any], Curation, np.ndarray]
ELSEWHERE = """
import hashlib, sys
from saerl_core.report import page
assert not {"matplotlib", "polars"} & set(sys.modules), "importing the page must stay cheap"
from tests.report import world
header, curation, _ = world.make(n=300, k=4, steps=None)
print(hashlib.sha256(page.render(*world.without_extras(header, curation)).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def run() -> Run:
    return world.make()


@pytest.fixture(scope="module")
def small() -> Run:
    return world.make(n=300, k=4, steps=None)


@pytest.fixture(scope="module")
def small_page(small: Run) -> str:
    header, curation, active = small
    return page.render(header, curation, active=active)


@pytest.fixture(scope="module")
def rendered(run: Run) -> str:
    header, curation, active = run
    return page.render(header, curation, active=active)


def check(text: str) -> Reading:
    """What must hold for every page."""
    reading = Reading(text)
    assert not reading.problems
    assert not {"script", "iframe", "object", "embed", "link", "img", "base", "form"} & set(reading.tags)
    assert not [name for name, _ in reading.attributes if name.startswith("on") or name in ("src", "srcset", "xmlns")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in reading.values("href"))
    assert not re.search(r"url\((?!#)|@import|nan|None", " ".join(reading.values("style") + reading.values("d")))
    ids = reading.values("id")
    assert len(ids) == len(set(ids))
    wanted = re.findall(r"url\(#([^)]+)\)", text) + [value[1:] for value in reading.values("href") if value[0] == "#"]
    assert set(wanted) <= set(ids)
    return reading


def test_a_page_is_well_formed_and_loads_nothing(rendered: str) -> None:
    reading = check(rendered)
    assert "http" not in re.sub(r"http-equiv", "", rendered)
    assert reading.tags.count("svg") == 9
    assert 100_000 < len(rendered.encode()) < 400_000


def test_a_page_says_what_matters_in_words(rendered: str, run: Run) -> None:
    header, _, _ = run
    text = " ".join(Reading(rendered).text.split())
    assert "Of 2,600 prompts read, 1,280 are trained on, in 40 batches of 32." in text
    assert "Held-out Spearman 0.71 (95% interval 0.65 to 0.76)." in text
    assert "Worth knowing" not in text
    for reason, number in header["prompts"]["dropped_by_reason"].items():
        assert f"{reason.replace('_', ' ')} − {number:,}" in text
    assert f'title="{header["inputs"]["sae"]["sha256"]}"' in rendered


def test_bars_of_the_funnel_add_up(rendered: str) -> None:
    bars = [(float(start), float(width)) for start, width in
            re.findall(r"--from: ([\d.]+)%; --width: ([\d.]+)%", rendered)]
    left = 100.0
    for start, width in bars[1:-1]:
        assert start + width == pytest.approx(left, abs=0.01)
        left = start
    assert bars[-1] == (0.0, pytest.approx(left, abs=0.01))


def test_the_same_inputs_give_the_same_bytes_in_threads_and_under_other_settings(small: Run, small_page: str) -> None:
    header, curation, active = small
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True, "svg.hashsalt": None}):
        with ThreadPoolExecutor(2) as pool:
            pages = list(pool.map(lambda _: page.render(header, curation, active=active), range(2)))
        assert matplotlib.rcParams["font.size"] == 30
    assert pages == [small_page] * 2


def test_a_bare_header_gives_the_same_bytes_in_another_process(small: Run) -> None:
    made = subprocess.run([sys.executable, "-c", ELSEWHERE], check=True, capture_output=True, text=True,
                          env={"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "7"}).stdout
    here = page.render(*world.without_extras(*small[:2]))
    assert made.strip() == hashlib.sha256(here.encode()).hexdigest()
    assert "No labels: every prompt counts as equally hard." in check(here).text


def test_hostile_text_is_text_wherever_it_comes_from() -> None:
    header, curation, active = world.make(n=400, k=3, steps=None, hostile=True)
    bad = world.HOSTILE[0]
    table = curation.table.with_columns(subject=pl.lit(bad), id=pl.lit(bad), answer=pl.lit(bad))
    reasons = [f"{bad} reason" if reason == "duplicate" else reason for reason in table["drop_reason"]]
    curation = replace(curation, table=table.with_columns(drop_reason=pl.Series(reasons, dtype=pl.String)))
    header |= {"prompts": counts(curation), "notes": [bad], "libraries": {bad: bad}, "settings": {bad: {bad: bad}}}
    header["inputs"] = {"data": {"name": "</title>" + bad, "sha256": bad}, bad: {bad: bad}}
    header["quality"] |= {"used": False, "why": bad, "auc_by_kind": {bad: 0.5},
                          "held_out": [(0.4, bad), (0.6, "intact")]}
    text = page.render(header, curation, active=active)
    reading = check(text)
    assert "<script" not in text
    assert "<script>alert(1)</script> What is 2 + 2?" in reading.text
    assert "</title></style><img src=x onerror=alert(2)>" in reading.text
    assert "{{ 7 * 7 }} {% include '/etc/passwd' %}" in reading.text
    assert not re.search("[\x00\x07\u202e]", text)


def test_closed_gates_and_warnings_stand_at_the_top(small: Run) -> None:
    header, curation, _ = small
    header, curation = world.without_gates(header, curation)
    note = "812 prompts score below quality.threshold; only the worst 610 are dropped"
    reading = check(page.render({**header, "notes": [note]}, curation))
    assert "minimum, quartiles, maximum" in reading.text  # they stand in for the active features
    top = " ".join(reading.text.split("From the file to the training set")[0].split())
    assert "Difficulty is not used: held-out Spearman 0.03" in top
    assert "Quality is not used: held-out AUC 0.520" in top
    assert "Only 1.2% of the SAE's features ever fire" in top
    assert note in top
    assert "All of them count as equally hard" in top


def test_one_cluster_no_drops_one_batch_and_several_epochs() -> None:
    header, curation, active = world.make(n=120, k=1, batch_size=16, steps=None, epochs=3)
    assert "one pass over all of them takes" in check(page.render(header, curation, active=active)).text
    header, curation, active = world.make(n=48, k=2, batch_size=8, steps=1)
    kept = curation.schedule.batches[0]
    table = curation.table[kept].with_columns(drop_reason=pl.lit(None, pl.String))
    alone = Curation(table, curation.cluster[kept], curation.difficulty[kept], curation.quality[kept],
                     curation.pass_rate[kept], replace(curation.schedule, batches=np.arange(8)[None]))
    header |= {"prompts": counts(alone), "clusters": {"sizes": [8, 0], "iterations": 1, "cards": [
        {"cluster": number, "size": 8 - 8 * number, "features": [], "nearest": []} for number in (0, 1)]}}
    text = check(page.render(header, alone, active=active)).text
    assert "Of 8 prompts read, 8 are trained on, in 1 batch of 8." in " ".join(text.split())


def test_dropped_prompts_shown_are_the_most_telling(run: Run) -> None:
    _, curation, _ = run
    rows = [row for row, reason in enumerate(curation.table["drop_reason"]) if reason == "low_quality"]
    shown = page._telling(rows, "low_quality", curation)
    assert len(shown) == 8
    assert max(curation.quality[shown]) <= np.sort(curation.quality[rows])[7]
