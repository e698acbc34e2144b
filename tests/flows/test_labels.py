"""Labels as a run meets them: from every source, resumed, doubted, and judged by the verifier that training uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

from flows.check import check_run
from flows.curate import curate
from saerl_core import artifact, prompts
from saerl_core.artifact import ArtifactRef
from saerl_core.config import LabelsConfig, PolicyConfig, RunConfig, ServerConfig
from saerl_core.errors import ConfigError, DataError, ServerError
from saerl_core.manifest import read_manifest
from saerl_core.rl import server
from tasks import cluster
from tasks.label import label, load_labels, load_pass_rates
from tasks.read import TABLE
from tests.flows.conftest import toy_rows, write_rows
from tests.rl.inference import KEY, Inference, serving

N = 40


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., ArtifactRef]:
    """Run the label stage on a prompt table of N sums: prompt `p7`, answer `7`, all in one cluster."""
    def run(config: LabelsConfig, *, answers: list[str] | None = None, verifier: str = "exact",
            **columns: list[float | None]) -> ArtifactRef:
        table = pl.DataFrame({
            "key": [f"{n:032x}" for n in range(N)], "id": [str(n) for n in range(N)],
            "messages": [[{"role": "user", "content": f"p{n}"}] for n in range(N)],
            "text": [f"p{n}" for n in range(N)], "answer": answers or [str(n % 7) for n in range(N)],
            "data_source": "sums", **columns}, schema_overrides={"messages": prompts.MESSAGES})
        for name, kind in prompts.SCHEMA.items():
            if name not in table.columns:
                table = table.with_columns(pl.lit(None, dtype=kind).alias(name))
        with artifact.staging(tmp_path / "artifacts") as staged:
            table.write_parquet(staged / TABLE)
            read = artifact.seal(staged, "prompts", {})
        with artifact.staging(tmp_path / "artifacts") as staged:
            (staged / cluster.LABELS).write_bytes(safetensors.numpy.save({"labels": np.zeros(N, dtype=np.int32)}))
            clustered = artifact.seal(staged, "clusters", {})
        policy = PolicyConfig(model="unused", verifier=verifier, max_response_tokens=16)
        return label.fn(tmp_path, read, clustered, Path("unused"), "0" * 64, tmp_path, "", config, policy)

    return run


def server_labels(inference: Inference, **changes: Any) -> LabelsConfig:
    return LabelsConfig(source="server", count=N, samples=7, server=ServerConfig(
        url=inference.url, model="policy", retries=1, **changes))


def test_a_server_is_asked_once_for_each_prompt_and_an_interrupted_labelling_goes_on(
    stage: Callable[..., ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.label._CHUNK_PROMPTS", 10)
    monkeypatch.setattr(server, "_FIRST_PAUSE_SECONDS", 0.01)
    with serving() as inference:
        inference.failures = {"p25": [503] * 2}
        with pytest.raises(ServerError, match="503"):
            stage(server_labels(inference))
        before = {request["messages"][0]["content"] for request in inference.requests}
        assert before >= {f"p{n}" for n in range(20)}
        inference.requests.clear()
        found = load_labels(stage(server_labels(inference)))
        assert {request["messages"][0]["content"] for request in inference.requests} == {f"p{n}" for n in range(20, N)}
        inference.requests.clear()
        moved = server_labels(inference, concurrency=2, timeout_seconds=9)  # nothing that changes an answer
        assert load_labels(stage(moved)).equals(found)
        assert inference.requests == []
        stage(server_labels(inference).model_copy(update={"temperature": 0.5}))
        assert len(inference.requests) == N
    # seven answers with seven seeds in a row: each of 0 to 6 once
    assert found["pass_rate"].to_list() == pytest.approx([1 / 7] * N)
    assert found["samples"].to_list() == [7] * N
    assert not found["doubtful"].any()


def test_the_servers_key_is_read_from_the_variable_that_the_config_names(
    stage: Callable[..., ArtifactRef], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving() as inference:
        inference.wants_key = True
        config = server_labels(inference, api_key_env="SAERL_TEST_KEY")
        monkeypatch.delenv("SAERL_TEST_KEY", raising=False)
        with pytest.raises(ConfigError, match="SAERL_TEST_KEY is not set"):
            stage(config)
        for broken in (f"{KEY}\nX: y", f"{KEY}é"):
            monkeypatch.setenv("SAERL_TEST_KEY", broken)
            with pytest.raises(ConfigError, match="SAERL_TEST_KEY holds characters that no key has") as caught:
                stage(config)
            assert KEY not in str(caught.value)
        monkeypatch.setenv("SAERL_TEST_KEY", f"{KEY}\r\n")
        stage(config)
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert KEY.encode() not in written


def test_zeros_of_a_literal_grader_teach_nothing(stage: Callable[..., ArtifactRef]) -> None:
    answers = [r"12,\!650" if n < 5 else str(n) for n in range(N)]
    rates: list[float | None] = [0.0 if n < 10 else 0.5 for n in range(N)]
    rates[-1] = None
    ref = stage(LabelsConfig(source="column"), answers=answers, pass_rate=rates)
    found = load_labels(ref)
    assert found.filter("doubtful")["row"].to_list() == [0, 1, 2, 3, 4]
    rows, pass_rate = load_pass_rates(ref)
    assert rows.tolist() == list(range(5, N - 1))
    assert pass_rate.tolist() == [0.0] * 5 + [0.5] * (N - 11)
    header = artifact.read_header(ref.path)
    assert (header["count"], header["doubtful"], header["target"]) == (N - 1, 5, "pass rate given with the data")


def test_a_level_stands_in_for_the_pass_rate_and_says_so(stage: Callable[..., ArtifactRef]) -> None:
    ref = stage(LabelsConfig(source="level"), level=[float(n % 4) for n in range(N)])
    _, rate = load_pass_rates(ref)
    assert rate[:4].tolist() == pytest.approx([0.875, 0.625, 0.375, 0.125])
    assert artifact.read_header(ref.path)["target"].startswith("stand-in")


@pytest.mark.parametrize(("config", "columns", "complaint"), [
    ({"source": "level"}, {"level": [1.0] * N}, r"data\.columns\.level: no two of 40"),
    ({"source": "column"}, {"pass_rate": [0.1, 0.2] + [None] * (N - 2)}, "2 usable prompts have a label that"),
])
def test_too_few_labels_are_told(stage: Callable[..., ArtifactRef], config: dict[str, Any],
                                 columns: dict[str, list[float | None]], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        stage(LabelsConfig(**config), **columns)


def test_a_users_verifier_judges_the_labels_and_its_file_is_in_the_provenance(world: Callable[..., RunConfig]) -> None:
    config = world(policy={"verifier": "import:lenient_judge:judge"}, quality={"method": "none"})
    judge = Path(config.base) / "lenient_judge.py"
    judge.write_text("def judge(response, answer):\n    return answer in response\n")
    first = curate(config)
    header = read_manifest(first.manifest.path)
    assert header["inputs"]["policy"]["verifier"] == first.inputs.verifier
    assert first.inputs.verifier.startswith("import:lenient_judge:judge-")
    assert {entry.stage for entry in curate(config).stages if not entry.cached} == {"fingerprint"}


def test_answers_that_cannot_be_met_are_dropped_and_counted(world: Callable[..., RunConfig]) -> None:
    config = world(labels={"source": "column", "drop_doubtful": True}, quality={"method": "none"}, data={"columns": {
        "id": "id", "prompt": "problem", "answer": "answer", "pass_rate": "rate"}})
    rows = [{**row, "rate": row["level"] / 6} for row in toy_rows(160)]
    rows[3]["answer"] = r"\frac{1}{2"
    rows[4] |= {"answer": "400,000", "rate": 0}
    write_rows(Path(config.base) / "prompts.jsonl", rows)
    checked = check_run(config)
    assert checked["prompts"]["dropped_by_reason"]["unverifiable_answer"] == 1
    assert checked["verifier"] == "exact-1"
    made = curate(config).manifest.path
    header = read_manifest(made)
    dropped = dict(pl.read_parquet(made / "dropped.parquet").select("id", "reason").iter_rows())
    assert dropped[rows[3]["id"]] == "unverifiable_answer"
    assert dropped[rows[4]["id"]] == "doubtful_label"
    assert header["labels"]["doubtful"] == 1
    doubtful = pl.read_parquet(made / "scores.parquet").filter("doubtful")
    assert doubtful["id"].to_list() == [rows[4]["id"]]


def test_check_tells_when_the_server_is_not_there_or_has_another_model(world: Callable[..., RunConfig]) -> None:
    def config(url: str, model: str) -> RunConfig:
        return world(labels={"source": "server", "server": {"url": url, "model": model}})

    with serving() as inference:
        assert check_run(config(inference.url, "policy"))["ok"]
        with pytest.raises(ConfigError, match=r"'elsewhere' is not served .* served: policy, other"):
            check_run(config(inference.url, "elsewhere"))
    with pytest.raises(ServerError, match=r"labels\.server\.url: no server answers"):
        check_run(config("http://127.0.0.1:9", "policy"))
