"""The engines that the contract tests ask, simulated or real, alone and in pairs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS: Final = 60.0
WANTED: Final = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""kv_transfer_params that ask a prefill worker to keep what it has computed."""

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

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of *name* that carry *labels*. Raise KeyError where there is none."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        if not found:
            raise KeyError(name)
        return sum(found)

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


@dataclass(frozen=True)
class Pair:
    """A prefill and a decode worker of one engine."""

    prefill: Contract
    decode: Contract

    @property
    def simulated(self) -> bool:
        return self.prefill.simulated

    def prefilled(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Compute the prompt of *body*. Return the kv_transfer_params of the answer."""
        cap = "max_output_tokens" if kind == "response" else "max_tokens"
        answer = self.prefill.ask(kind, body | {cap: 1, "stream": False, "kv_transfer_params": WANTED})
        assert answer.status_code == 200, answer.text
        params: dict[str, Any] = answer.json()["kv_transfer_params"]
        return params


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until *condition* holds. Fail the test where it does not within *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come true"
        time.sleep(0.05)


def events_of(text: str) -> list[Any]:
    """Return the data of a stream's events: objects, and the text [DONE]."""
    found: list[Any] = []
    for line in text.splitlines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            found.append(data if data == "[DONE]" else orjson.loads(data))
    return found


def contract_of(url: str, *, simulated: bool) -> Contract:
    """Return the contract with the engine at *url*, as its list of models describes it."""
    (model, *_) = httpx.get(f"{url}/v1/models", timeout=_SECONDS).json()["data"]
    return Contract(url, model["id"], model["max_model_len"], simulated)
