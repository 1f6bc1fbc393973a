"""The engine that the contract tests ask: a simulated worker, or the vLLM whose URL a variable names."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx
import orjson

from support.worker_process import running_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE: Final = "TURNOUT_TEST_VLLM_URL"
"""URL of a vLLM 0.32 that serves one generating model without adapters, a reasoning parser or a KV connector."""
_SECONDS: Final = 60.0

PATHS: Final = {
    "chat": "/v1/chat/completions",
    "text": "/v1/completions",
    "response": "/v1/responses",
    "message": "/v1/messages",
}


@dataclass(frozen=True)
class Contract:
    """An engine that keeps the contract, or should."""

    url: str
    model: str
    max_length: int
    simulated: bool

    def body(self, kind: str, **more: Any) -> dict[str, Any]:
        """Return a small request of *kind* (chat, text, response, message) with the fields *more*."""
        prompts: dict[str, dict[str, Any]] = {
            "chat": {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": 3},
            "text": {"prompt": "Say it.", "max_tokens": 3},
            "response": {"input": "Say it.", "max_output_tokens": 3},
            "message": {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": 3},
        }
        return {"model": self.model, **prompts[kind], **more}

    def ask(self, kind: str, body: dict[str, Any]) -> httpx.Response:
        """Return the whole answer to *body*. Raise httpx.RemoteProtocolError where the connection breaks."""
        return httpx.post(f"{self.url}{PATHS[kind]}", json=body, timeout=_SECONDS)

    def get(self, path: str) -> httpx.Response:
        """Ask for *path*."""
        return httpx.get(f"{self.url}{path}", timeout=_SECONDS)

    def until_broken(self, kind: str, body: dict[str, Any]) -> tuple[int, str, bool]:
        """Return the status, what came until the end, and whether the connection broke before it."""
        text = ""
        with httpx.stream("POST", f"{self.url}{PATHS[kind]}", json=body, timeout=_SECONDS) as answer:
            try:
                for piece in answer.iter_text():
                    text += piece
            except httpx.RemoteProtocolError:
                return answer.status_code, text, True
            return answer.status_code, text, False


def events_of(text: str) -> list[Any]:
    """Return the data of a stream's events: objects, and the text [DONE]."""
    found: list[Any] = []
    for line in text.splitlines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            found.append(data if data == "[DONE]" else orjson.loads(data))
    return found


@contextmanager
def contract() -> Iterator[Contract]:
    """Give the vLLM that is named, otherwise a simulated worker of its own."""
    url = os.environ.get(VARIABLE, "").rstrip("/")
    if url:
        yield _contract(url, simulated=False)
        return
    with running_worker(time_scale=10) as worker:
        yield _contract(worker.url, simulated=True)


def _contract(url: str, *, simulated: bool) -> Contract:
    (model, *_) = httpx.get(f"{url}/v1/models", timeout=_SECONDS).json()["data"]
    return Contract(url, model["id"], model["max_model_len"], simulated)
