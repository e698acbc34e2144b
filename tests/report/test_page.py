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
from saerl_core.report.sections import funnel
from tests.report import world
from tests.report.reading import Reading

Run = tuple[dict[str, Any], Curation]
ELSEWHERE = """
import hashlib, sys
from saerl_core.report import page
assert not {"matplotlib", "polars"} & set(sys.modules), "importing the page must stay cheap"
from tests.report import world
header, curation = world.make(n=300, k=4, steps=None)
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
    header, curation = small
    return page.render(header, curation)


@pytest.fixture(scope="module")
def rendered(run: Run) -> str:
    header, curation = run
    return page.render(header, curation)


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
    assert reading.tags.count("svg") == 13
    assert 100_000 < len(rendered.encode()) < 400_000


def test_a_page_says_what_matters_in_words(rendered: str, run: Run) -> None:
    header, _ = run
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
    header, curation = small
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True, "svg.hashsalt": None}):
        with ThreadPoolExecutor(2) as pool:
            pages = list(pool.map(lambda _: page.render(header, curation), range(2)))
        assert matplotlib.rcParams["font.size"] == 30
    assert pages == [small_page] * 2


def test_a_bare_header_gives_the_same_bytes_in_another_process(small: Run) -> None:
    made = subprocess.run([sys.executable, "-c", ELSEWHERE], check=True, capture_output=True, text=True,
                          env={"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "7"}).stdout
    here = page.render(*world.without_extras(*small))
    assert made.strip() == hashlib.sha256(here.encode()).hexdigest()
    assert "No labels: every prompt counts as equally hard." in check(here).text


def test_hostile_text_is_text_wherever_it_comes_from() -> None:
    header, curation = world.make(n=400, k=3, steps=None, hostile=True)
    bad = world.HOSTILE[0]
    table = curation.table.with_columns(subject=pl.lit(bad), id=pl.lit(bad), answer=pl.lit(bad))
    reasons = [f"{bad} reason" if reason == "duplicate" else reason for reason in table["drop_reason"]]
    curation = replace(curation, table=table.with_columns(drop_reason=pl.Series(reasons, dtype=pl.String)))
    header |= {"prompts": counts(curation), "notes": [bad], "libraries": {bad: bad}, "settings": {bad: {bad: bad}}}
    header["inputs"] = {"data": {"name": "</title>" + bad, "sha256": bad}, bad: {bad: bad}}
    header["batches_overlap"] |= {bad: bad}
    pair = dict.fromkeys(("id", "text", "answer", "other_id", "other_text", "other_answer"), bad) | {"overlap": 1.0}
    for kind in ("near_duplicates", "conflicting_answers", "near_conflicts", "sae_near_duplicates"):
        header["hygiene"][kind] = {"total": 1, "pairs": [pair]}
    header["hygiene"]["contamination"] = [{"set": bad, "rows": 9, "exact": 1, "near": 0, "pairs": [pair]}]
    header["hygiene"]["conflicting_pass_rates"]["prompts"][0] |= {"id": bad, "text": bad}
    header["labels"] |= {"source": bad, "target": bad}
    header["difficulty"] |= {"method": bad}
    header["health"] |= {"warnings": [bad]}
    header["suspicion"] = {"used": False, "why": bad, "by": "agreement", "pairs": 30, "judged": 40,
                           "looked_at": 50, "shown": [[0.1, 0.2]], "auc": 0.5, "auc_low": 0.4, "auc_high": 0.6}
    header["quality"] |= {"used": False, "why": bad, "auc_by_kind": {bad: 0.5},
                          "held_out": [(0.4, bad), (0.6, "intact")]}
    text = page.render(header, curation)
    reading = check(text)
    assert "<script" not in text
    assert "<script>alert(1)</script> What is 2 + 2?" in reading.text
    assert "</title></style><img src=x onerror=alert(2)>" in reading.text
    assert "{{ 7 * 7 }} {% include '/etc/passwd' %}" in reading.text
    assert not re.search("[\x00\x07\u202e]", text)


def test_closed_gates_and_warnings_stand_at_the_top(small: Run) -> None:
    header, curation = small
    header, curation = world.without_gates(header, curation)
    note = "812 prompts score below quality.threshold; only the worst 610 are dropped"
    reading = check(page.render({**header, "notes": [note]}, curation))
    top = " ".join(reading.text.split("From the file to the training set")[0].split())
    assert "Difficulty is not used: held-out Spearman 0.03" in top
    assert "Quality is not used: held-out AUC 0.520" in top
    assert "Only 1.2% of the SAE's features ever fire" in top
    assert note in top
    assert "All of them count as equally hard" in top


def test_one_cluster_no_drops_one_batch_and_several_epochs() -> None:
    header, curation = world.make(n=120, k=1, batch_size=16, steps=None, epochs=3)
    assert "one pass over all of them takes" in check(page.render(header, curation)).text
    header, curation = world.make(n=48, k=2, batch_size=8, steps=1)
    kept = curation.schedule.batches[0]
    table = curation.table[kept].with_columns(drop_reason=pl.lit(None, pl.String))
    alone = Curation(table, curation.cluster[kept], curation.difficulty[kept], curation.quality[kept],
                     curation.pass_rate[kept], replace(curation.schedule, batches=np.arange(8)[None]))
    header |= {"prompts": counts(alone), "clusters": {"sizes": [8, 0], "iterations": 1, "cards": [
        {"cluster": number, "size": 8 - 8 * number, "features": [], "nearest": []} for number in (0, 1)]}}
    text = check(page.render(header, alone)).text
    assert "Of 8 prompts read, 8 are trained on, in 1 batch of 8." in " ".join(text.split())


def test_dropped_prompts_shown_are_the_most_telling(run: Run) -> None:
    _, curation = run
    rows = [row for row, reason in enumerate(curation.table["drop_reason"]) if reason == "low_quality"]
    shown = funnel._telling(rows, "low_quality", curation)
    assert len(shown) == 8
    assert max(curation.quality[shown]) <= np.sort(curation.quality[rows])[7]


def words(header: dict[str, Any], curation: Curation) -> str:
    return " ".join(check(page.render(header, curation)).text.split())


def with_schedule(run: Run, **settings: Any) -> str:
    header, curation = run
    schedule = {**header["settings"]["schedule"], **settings}
    return words({**header, "settings": {**header["settings"], "schedule": schedule}}, curation)


def test_the_schedule_is_named_in_words(small: Run) -> None:
    assert "drawn from 4 clusters that take turns, each giving as many prompts as the others, and exchanges 25%" in (
        with_schedule(small))
    assert "cut by difficulty into 4 stages, the easiest first" in with_schedule(small, stages=4, order="easy_first")
    backward = with_schedule(small, order="hard_first", stages=2, clusters_per_batch=None)
    assert "2 stages, the hardest first" in backward
    assert "The whole set goes from hard to easy." in backward
    assert "without regard to clusters" in backward
    assert "in proportion to its size" in with_schedule(small, clusters_per_batch="all", share="proportional")
    assert "blended with 30% of chance" in with_schedule(small, order="easy_first", fading=0.3)
    assert "The order within is random." in with_schedule(small)
    assert "Their order is random, their mean predicted difficulty" in with_schedule(small)
    assert "Mean predicted difficulty goes from" in with_schedule(small, order="easy_first")


def test_matched_texts_stand_side_by_side_and_the_total_is_said(small: Run) -> None:
    header, curation = small
    reading = check(page.render(header, curation))
    text = " ".join(reading.text.split())
    assert "300 near duplicates" in text
    assert "The first 25 of 300:" in text
    assert "4 word for word" in text
    for row in (0, 1):
        assert curation.table["text"][row][:100] in text
    assert "with 1 evaluation set of 500 prompts" in text


def test_overlap_is_told_with_its_interval_and_a_true_minus(small: Run) -> None:
    header, curation = small
    overlap = {"ours": [0.10, 0.12, 0.11], "shuffled": [0.20, 0.22, 0.24]}
    text = words({**header, "batches_overlap": overlap}, curation)
    assert "0.110, shuffled 0.220: difference −0.110 (95% interval −0.153 to −0.067), less alike than by chance" in text
    alone = words({**header, "batches_overlap": {"ours": [0.1], "shuffled": [0.2]}}, curation)
    assert "shuffled 0.200." in alone


def test_a_minus_in_the_words_of_a_stage_is_a_minus(small: Run) -> None:
    header, curation = world.without_gates(*small)
    assert "(95% interval −0.09 to 0.15)" in words(header, curation)


def test_the_choice_of_k_and_drift_are_explained(small: Run) -> None:
    header, curation = small
    curve = [{"k": k, "mean": 0.9 - k / 100, "error": 0.01} for k in (8, 11, 16)]
    drift = {"similarity_at_fit": 0.5, "similarity": 0.45, "similarity_drop": 0.1, "share_divergence": 0.02}
    text = words({**header, "clusters": {**header["clusters"], "choice": {"k": 8, "curve": curve}, "drift": drift,
                                         "kept": True}}, curation)
    assert "8 is the largest k within one standard error of the best" in text
    assert "a fall of 10.0%" in text
    assert "The clusters were kept." in text
    few = {**header["clusters"], "choice": {"k": 8, "curve": []}}
    assert "too few prompts to judge" in words({**header, "clusters": few}, curation)


def test_evidence_behind_difficulty_is_told(small: Run) -> None:
    header, curation = small
    text = words({**header, "difficulty": {**header["difficulty"], "observed": 40}}, curation)
    assert "with 8 sampled answers each and 40 prompts whose answers were seen in an earlier training" in text
    assert "weighs as much as 8 answers" in text
    column = words({**header, "labels": {**header["labels"], "source": "column", "samples": None}}, curation)
    assert "stand as they are" in column


def test_the_gate_of_suspected_answers_is_told_where_it_was_asked_for(small: Run) -> None:
    header, curation = small
    assert "keys that could be judged" not in words(header, curation)
    report = {"by": "agreement", "used": False, "why": "AUC 0.52 is not above quality.min_auc", "pairs": 60,
              "judged": 70, "looked_at": 90, "shown": [[-0.5, 0.1]] * 60, "auc": 0.52, "auc_low": 0.45,
              "auc_high": 0.59}
    text = words({**header, "suspicion": report}, curation)
    assert "The look at answer keys is not used: AUC 0.52" in text.split("From the file")[0]
    assert "0.520 (0.450 to 0.590)" in text
    assert "70 of 90" in text


def test_what_a_quality_probe_costs_in_good_prompts_is_said_beside_what_it_drops(small: Run) -> None:
    header, curation = small
    good = [score for score, kind in header["quality"]["held_out"] if kind == "intact"]
    share = np.mean(np.array(good) < 0.5)
    assert f"dropped; of good held-out prompts, {share:.1%} score as low." in words(header, curation)


def test_many_clusters_are_said_to_have_colours_that_look_alike(run: Run, small: Run) -> None:
    assert "32 colours cannot all be told apart" in words(*run)
    assert "cannot all be told apart" not in words(*small)
