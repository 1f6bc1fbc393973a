"""Bodies of any shape: refused or served within a moment, and others are served meanwhile."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

import httpx
import pytest

from support.worker_process import WorkerProcess, running_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS: Final = 30.0
STALL_SECONDS: Final = 2.0
"""Bound on how long /health may take meanwhile. On two idle cores the worst of these takes 0.3 s (16 MiB to tokenize)."""
MANY: Final = 240_000
LARGE: Final = 16 * 1024 * 1024 - 200


def completion(fields: bytes) -> bytes:
    return b'{"prompt":"x","max_tokens":1,%b}' % fields


def schema(value: bytes) -> bytes:
    return completion(b'"response_format":{"type":"json_schema","json_schema":{"schema":%b}}' % value)


def numbers(count: int, form: bytes) -> bytes:
    return b",".join(form % number for number in range(count))


BODIES: dict[str, tuple[str, bytes, int]] = {
    "16 MiB of lists": ("/v1/completions", completion(b'"tools":[' + b"[]," * (LARGE // 3 - 20) + b"[]]"), 400),
    "many lists": ("/v1/completions", completion(b'"tools":[' + b"[]," * (MANY // 2) + b"[]]"), 200),
    "many keys": ("/v1/completions", completion(b'"x":{' + numbers(MANY, b'"%d":0') + b"}"), 200),
    "nested 1000 deep": ("/v1/completions", completion(b'"x":' + b"[" * 1000 + b"]" * 1000), 400),
    "nested 240000 deep": ("/v1/completions", completion(b'"x":' + b"[" * MANY + b"]" * MANY), 400),
    "nested as deep as goes": (
        "/v1/messages",
        b'{"max_tokens":1,"messages":[{"role":"user","content":' + b'[{"type":"tool_result","content":' * 120
        + b'"x"' + b"}]" * 120 + b"}]}",
        200,
    ),
    "a text of 16 MiB": ("/v1/completions", b'{"prompt":"' + b"x" * LARGE + b'"}', 400),
    "many tokens": ("/v1/completions", b'{"prompt":[' + b"1," * MANY + b"1]}", 400),
    "many stop strings": ("/v1/completions", completion(b'"stop":[' + numbers(MANY, b'"%d"') + b"]"), 400),
    "many biases": ("/v1/completions", completion(b'"logit_bias":{' + numbers(MANY, b'"%d":0') + b"}"), 400),
    "many schemas": ("/v1/completions", schema(b'{"anyOf":[' + b'{"a":1},' * (MANY // 2) + b"{}]}"), 400),
    "many patterns": (
        "/v1/completions",
        schema(b'{"anyOf":[' + numbers(1000, b'{"pattern":"' + b"(a|b)*" * 1000 + b'%d"}') + b"]}"),
        400,
    ),
    "many references": (
        "/v1/completions",
        schema(b'{"$defs":{"a":{"a":{}}},"anyOf":[' + b'{"$ref":"#/$defs/a/a"},' * (MANY // 3) + b"{}]}"),
        400,
    ),
    "a nested regex": ("/v1/completions", completion(b'"structured_outputs":{"regex":"' + b"(" * 4000 + b'"}'), 400),
    "16 MiB to tokenize": ("/tokenize", b'{"prompt":"' + b"x" * LARGE + b'"}', 200),
    "15 MiB to embed": ("/v1/embeddings", b'{"input":[' + b",".join([b'"' + b"ab " * 2500 + b'"'] * 2000) + b"]}", 200),
    "numbers beyond all bounds": ("/v1/completions", completion(b'"seed":1e308,"n":1e300'), 400),
}  # fmt: skip


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerProcess]:
    with running_worker(time_scale=100) as running:
        yield running


@pytest.mark.parametrize(("path", "body", "status"), BODIES.values(), ids=BODIES)
def test_no_body_holds_up_the_others(worker: WorkerProcess, path: str, body: bytes, status: int) -> None:
    """The body has its answer, and /health is answered all the while."""
    slowest = 0.0
    done, watches = threading.Event(), threading.Event()

    def watch() -> None:
        nonlocal slowest
        with httpx.Client(timeout=SECONDS) as client:
            while not done.is_set():
                began = time.monotonic()
                client.get(f"{worker.url}/health").raise_for_status()
                slowest = max(slowest, time.monotonic() - began)
                watches.set()
                done.wait(0.005)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        assert watches.wait(SECONDS)
        answer = httpx.post(f"{worker.url}{path}", content=body, timeout=SECONDS)
    finally:
        done.set()
        watching.join(SECONDS)
    assert answer.status_code == status, answer.text[:300]
    assert 0 < slowest < STALL_SECONDS


def test_what_cannot_be_written_again_is_refused_while_it_is_read(worker: WorkerProcess) -> None:
    """A response repeats fields of its request: what is nested too deep for that is a 400, not a lost connection."""
    for depth, status in ((100, 200), (400, 400)):
        body = (
            b'{"input":"x","max_output_tokens":1,"metadata":' + b'{"a":' * depth + b"0" + b"}" * depth + b"}"
        )
        answer = httpx.post(f"{worker.url}/v1/responses", content=body, timeout=SECONDS)
        assert answer.status_code == status
