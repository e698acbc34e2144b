"""Answers from a real HTTP server that fails now and then, is slow now and then, and has opinions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from saerl_core.config import ServerConfig
from saerl_core.errors import ServerError
from saerl_core.rl import server
from saerl_core.rl.server import Sampling, sample_texts, served_models
from tests.rl.inference import KEY, Inference, serving


@pytest.fixture
def inference() -> Iterator[Inference]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_FIRST_PAUSE_SECONDS", 0.01)


def configure(inference: Inference, **changes: Any) -> ServerConfig:
    return ServerConfig(**{"url": inference.url, "model": "policy", "concurrency": 4, "timeout_seconds": 5.0,
                           "retries": 3, **changes})


def ask(config: ServerConfig, prompts: list[str], samples: int = 4, key: str | None = None) -> list[list[str]]:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return sample_texts(config, key, chats, list(range(len(prompts))), Sampling(samples, 0.7, 0.9, 64))


def expected(prompts: list[str], samples: int = 4) -> list[list[str]]:
    return [[f"{prompt} #{(seed + i) % 7}" for i in range(samples)] for seed, prompt in enumerate(prompts)]


PROMPTS = [f"p{n}" for n in range(20)]


def test_every_prompt_gets_its_answers_in_order_and_the_request_says_how_to_sample(inference: Inference) -> None:
    assert ask(configure(inference), PROMPTS) == expected(PROMPTS)
    assert 1 < inference.most_busy <= 4
    sent = inference.requests[0]
    assert {name: sent[name] for name in ("model", "n", "temperature", "top_p", "max_tokens")} == {
        "model": "policy", "n": 4, "temperature": 0.7, "top_p": 0.9, "max_tokens": 64}


def test_failures_and_slow_replies_change_nothing(inference: Inference) -> None:
    inference.failures = {"p1": [500], "p2": [429, 503], "p3": [3.0], "p9": [502, 3.0, 504]}
    assert ask(configure(inference, timeout_seconds=1.0), PROMPTS) == expected(PROMPTS)
    tries = Counter(request["messages"][-1]["content"] for request in inference.requests)
    assert (tries["p1"], tries["p2"], tries["p3"], tries["p9"], tries["p4"]) == (2, 3, 2, 4, 1)


def test_a_server_that_gives_one_choice_a_request_is_asked_again_with_other_seeds(inference: Inference) -> None:
    inference.choices_at_once = 1
    assert ask(configure(inference), ["a"]) == expected(["a"])
    assert [request["seed"] for request in inference.requests] == [0, 1, 2, 3]


def test_a_server_that_keeps_failing_ends_the_work_in_one_line(inference: Inference) -> None:
    inference.failures = {"p5": [503] * 9}
    with pytest.raises(ServerError, match="answers 503") as caught:
        ask(configure(inference), PROMPTS)
    assert "\n" not in str(caught.value)


def test_what_will_not_pass_is_not_repeated(inference: Inference) -> None:
    with pytest.raises(ServerError, match=r"404.*labels\.server\.model = 'elsewhere'"):
        ask(configure(inference, model="elsewhere"), ["a"])
    assert len(inference.requests) == 1


def test_the_key_goes_to_the_server_and_nowhere_else(
    inference: Inference, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    inference.wants_key = True
    config = configure(inference, api_key_env="SOME_KEY")
    assert ask(config, ["a"], key=KEY) == expected(["a"])
    with pytest.raises(ServerError, match=r"401.*labels\.server\.api_key_env") as caught:
        ask(config, ["a"], key="wrong")
    told = caplog.text + str(caught.value) + "".join(capsys.readouterr()) + config.model_dump_json()
    assert KEY not in told


def test_a_server_that_is_not_there_is_told_in_one_line(inference: Inference) -> None:
    gone = ServerConfig(url="http://127.0.0.1:9", model="policy", retries=1)
    with pytest.raises(ServerError, match="failed 2 times: ConnectError"):
        ask(gone, ["a"])
    with pytest.raises(ServerError, match=r"labels\.server\.url: no server answers at http://127\.0\.0\.1:9/v1/models"):
        served_models(gone, None)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_models_are_listed_however_the_url_ends(inference: Inference, suffix: str) -> None:
    assert served_models(configure(inference, url=inference.url + suffix), None) == ["policy", "other"]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://user:secret@host", "http://host/v1?key=x"])
def test_a_url_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected http|credentials"):
        ServerConfig(url=url, model="m")
