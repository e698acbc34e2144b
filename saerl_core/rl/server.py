"""Answers from an OpenAI-compatible server (vLLM, SGLang, llama.cpp ...), by its chat completions.

Requests run at once, up to a bound. One that times out, or that the server turns away for now, is repeated with
back-off; whatever else the server says ends the work in one line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from saerl_core.config import ServerConfig
from saerl_core.errors import ServerError

Message = dict[str, str]

_FOR_NOW = frozenset({408, 425, 429, 500, 502, 503, 504})
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_PING_SECONDS = 5.0


@dataclass(frozen=True)
class Sampling:
    """What a request asks for, beside its messages."""

    samples: int
    temperature: float
    top_p: float
    max_tokens: int


def served_models(config: ServerConfig, key: str | None) -> list[str]:
    """Names of the models that the server says it has.

    Args:
        config: Where it is.
        key: The API key, if it wants one.

    Raises:
        ServerError: it does not answer, or not as such a server does.
    """
    where = f"{_root(config)}/models"
    try:
        reply = httpx.get(where, headers=_headers(key), timeout=_PING_SECONDS)
        reply.raise_for_status()
        return [str(model["id"]) for model in reply.json()["data"]]
    except httpx.HTTPStatusError as error:
        raise _refused(config, error.response) from error
    except httpx.HTTPError as error:
        raise ServerError(f"labels.server.url: no server answers at {where}: {_brief(error)}; start it, or set "
                          "labels.source") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{where} does not answer as an OpenAI-compatible server: {_brief(error)}") from error


def sample_texts(config: ServerConfig, key: str | None, messages: Sequence[Sequence[Message]], seeds: Sequence[int],
                 sampling: Sampling) -> list[list[str]]:
    """`sampling.samples` answers per prompt, in the order of `messages`.

    Args:
        config: The server.
        key: The API key, if it wants one.
        messages: n chats.
        seeds: n seeds below 2³¹, sent with the requests.
        sampling: What is asked for.

    Raises:
        ServerError: the server refuses, or is not there after all retries. One line.
    """
    return asyncio.run(_sample_all(config, key, messages, seeds, sampling))


async def _sample_all(config: ServerConfig, key: str | None, messages: Sequence[Sequence[Message]],
                      seeds: Sequence[int], sampling: Sampling) -> list[list[str]]:
    slots = asyncio.Semaphore(config.concurrency)
    limits = httpx.Limits(max_connections=config.concurrency)
    async with httpx.AsyncClient(headers=_headers(key), timeout=config.timeout_seconds, limits=limits) as client:
        async def sample(chat: Sequence[Message], seed: int) -> list[str]:
            async with slots:
                return await _sample_one(client, config, chat, seed, sampling)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(sample(*pair)) for pair in zip(messages, seeds, strict=True)]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the others are the same, or were cancelled for it
    return [task.result() for task in tasks]


async def _sample_one(client: httpx.AsyncClient, config: ServerConfig, chat: Sequence[Message], seed: int,
                      sampling: Sampling) -> list[str]:
    """All answers to one prompt. Servers that give one choice a request, whatever `n` says, are asked again."""
    texts: list[str] = []
    while len(texts) < sampling.samples:
        body = {
            "model": config.model, "messages": list(chat), "n": sampling.samples - len(texts),
            "temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens,
            "seed": (seed + len(texts)) % 2**31,
        }
        reply = await _post(client, config, body)
        try:
            given = [str(choice["message"]["content"] or "") for choice in reply.json()["choices"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{_root(config)} gave no chat completion: {_brief(error)}") from error
        if not given:
            raise ServerError(f"{_root(config)} gave no choices for a chat completion")
        texts += given
    return texts[: sampling.samples]


async def _post(client: httpx.AsyncClient, config: ServerConfig, body: dict[str, Any]) -> httpx.Response:
    pause = _FIRST_PAUSE_SECONDS
    for attempt in range(config.retries + 1):
        last = attempt == config.retries
        try:
            reply = await client.post(f"{_root(config)}/chat/completions", json=body)
        except httpx.TransportError as error:
            if last:
                raise ServerError(f"labels.server: {_root(config)} failed {attempt + 1} times: {_brief(error)}; what "
                                  "has been labelled is kept") from error
        else:
            if reply.is_success:
                return reply
            if reply.status_code not in _FOR_NOW or last:
                raise _refused(config, reply)
            pause = max(pause, _asked_pause(reply))
        await asyncio.sleep(min(pause, _LONGEST_PAUSE_SECONDS))
        pause *= 2
    raise AssertionError("the last attempt returns or raises")


def _asked_pause(reply: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 where it does not say, or gives a date."""
    asked = reply.headers.get("retry-after", "")
    return float(asked) if asked.isdigit() else 0.0


def _refused(config: ServerConfig, reply: httpx.Response) -> ServerError:
    hint = {
        401: "; labels.server.api_key_env names the environment variable that holds the key",
        403: "; labels.server.api_key_env names the environment variable that holds the key",
        404: f"; does it serve labels.server.model = {config.model!r}?",
    }.get(reply.status_code, "")
    said = " ".join(reply.text.split())[:200]
    return ServerError(f"labels.server: {_root(config)} answers {reply.status_code} {reply.reason_phrase}: "
                       f"{said}{hint}")


def _root(config: ServerConfig) -> str:
    root = config.url.rstrip("/")
    return root if root.endswith("/v1") else f"{root}/v1"


def _headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
