"""The load client and the replay over it, against servers that behave, break, hang and leave."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
import pytest
import uvloop

from support.replay_server import DONE, HEAD, chunk, scripted, text_event, whole_answer
from turnout_cli.replay.client import Client, Target
from turnout_cli.replay.errors import BrokenError, ConnectError, LateError, TargetError
from turnout_cli.replay.replay import Replay, ReplaySettings
from turnout_simulator.traces import Trace, TraceRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_cli.replay.figures import ReplayOutcome


def trace_of(count: int, *, output: int = 3, gap_seconds: float = 0.0) -> Trace:
    return Trace("t", tuple(TraceRequest(at * gap_seconds, 600, output, (0, at + 1)) for at in range(count)))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for lies in the code under test
            await asyncio.sleep(0.01)


async def replayed(trace: Trace, url: str, **settings: float) -> list[ReplayOutcome]:
    async with Client(Target.parse(url)) as client:
        replay = Replay(trace, client, ReplaySettings(model="m", **settings))  # type: ignore[arg-type]
        await replay.run()
        assert replay.progress.sent == replay.progress.total
        assert replay.progress.in_flight == 0
        return replay.progress.outcomes


def test_uvloop_drives_it() -> None:
    """The commands run it on uvloop, whose transports are no asyncio.Transport."""

    async def run() -> list[ReplayOutcome]:
        async with scripted(whole_answer(3)) as server:
            return await replayed(trace_of(3, gap_seconds=0.02), server.url)

    assert [outcome.failure for outcome in uvloop.run(run())] == [None] * 3


async def test_a_whole_answer_is_a_success() -> None:
    """Status, tokens and latencies of a complete stream are measured."""
    async with scripted(whole_answer(3)) as server:
        (outcome,) = await replayed(trace_of(1), server.url)
    assert outcome.failure is None
    assert (outcome.status, outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens) == (
        200,
        5,
        3,
        3,
    )
    assert outcome.ttft_seconds is not None
    assert 0 <= outcome.ttft_seconds <= outcome.duration_seconds


async def test_a_request_says_what_the_trace_says() -> None:
    """Prompt length, output length, streaming with usage and the model's name go out."""
    async with scripted(whole_answer(3)) as server:
        await replayed(trace_of(1), server.url)
        head, body = server.requests[0].split(b"\r\n\r\n", 1)
    sent = orjson.loads(body)
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert len(sent["messages"][0]["content"]) == 600 * 4
    assert sent["model"] == "m"
    assert sent["max_tokens"] == 3
    assert sent["ignore_eos"] is True
    assert sent["stream_options"] == {"include_usage": True}


async def test_connections_are_kept() -> None:
    """One after the other, requests share one connection."""
    async with scripted(whole_answer(3)) as server:
        outcomes = await replayed(trace_of(5, gap_seconds=0.1), server.url)
        assert server.connections == 1
    assert all(outcome.failure is None for outcome in outcomes)


async def test_a_connection_closed_while_idle_is_replaced() -> None:
    """A server may close between answers: the next request opens a connection and succeeds."""
    async with scripted(whole_answer(3), close_after=True) as server:
        outcomes = await replayed(trace_of(4, gap_seconds=0.05), server.url)
        assert len(server.requests) == 4
    assert [outcome.failure for outcome in outcomes] == [None] * 4


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (HEAD + chunk(text_event("a")), "the connection ended before the answer did"),
        (HEAD + chunk(text_event("a")) + b"0\r\n\r\n", "the stream ended without [DONE]"),
        (HEAD + chunk(text_event("a") + DONE) + b"0\r\n\r\n", "0 tokens came where 3 were asked for"),
        (whole_answer(2), "2 tokens came where 3 were asked for"),
        (
            HEAD + chunk(b'data: {"error":{"message":"worker died"}}\n\n') + b"0\r\n\r\n",
            "the stream ended with an error: worker died",
        ),
        (
            b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 36\r\n\r\n{"error":{"message":"nothing here"}}',
            "HTTP 503: nothing here",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP answer"),
        (b"", "the connection ended before the answer did"),
    ],
)
async def test_what_is_not_whole_failed(answer: bytes, failure: str) -> None:
    """Cut streams, short streams, error events, error statuses and garbage are failures with their reason."""
    async with scripted(answer) as server:
        (outcome,) = await replayed(trace_of(1), server.url)
    assert outcome.failure is not None
    assert failure in outcome.failure


async def test_a_hanging_server_meets_the_deadline() -> None:
    """No answer within the deadline is a failure, and its connection is dropped."""
    async with scripted(None, whole_answer(3)) as server:
        outcomes = await replayed(trace_of(2, gap_seconds=0.5), server.url, deadline_seconds=0.3)
        assert server.connections == 2
    assert outcomes[0].failure == "no complete answer within 0.3 s: nothing came"
    assert outcomes[1].failure is None


async def test_no_server_is_a_failure_of_each_request() -> None:
    """No server listens: every request fails with the address, and the replay ends."""
    async with scripted(whole_answer(1)) as server:
        url = server.url
    outcomes = await replayed(trace_of(3), url)
    assert all("no connection to 127.0.0.1" in (outcome.failure or "") for outcome in outcomes)


async def test_times_are_the_deployments() -> None:
    """At time scale 10 a second of the trace takes a tenth, and latencies are multiplied by ten."""
    loop = asyncio.get_running_loop()
    async with scripted(whole_answer(3)) as server:
        began = loop.time()
        outcomes = await replayed(trace_of(3, gap_seconds=1.0), server.url, time_scale=10)
        wall = loop.time() - began
    assert 0.2 <= wall < 2.0
    assert [round(outcome.sent_at - outcome.lag_seconds, 3) for outcome in outcomes] == [0, 1, 2]


async def test_a_full_house_waits_and_says_so() -> None:
    """With room for one, the second request waits for the first, and its lag shows for how long."""
    async with scripted(None, whole_answer(3)) as server:
        outcomes = await replayed(trace_of(2), server.url, deadline_seconds=0.3, max_in_flight=1)
    assert outcomes[1].failure is None
    assert outcomes[1].lag_seconds >= 0.29


async def test_cancelling_drops_what_is_under_way() -> None:
    """A replay that is cancelled ends at once and leaves no connection."""
    async with scripted(None) as server, Client(Target.parse(server.url)) as client:
        replay = Replay(trace_of(5), client, ReplaySettings(model="m"))
        running = asyncio.create_task(replay.run())
        await until(lambda: len(server.requests) == 5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: not client._open)


async def test_errors_of_a_single_post() -> None:
    """The client raises its own errors: late, broken, no connection."""
    async with scripted(None, b"") as server, Client(Target.parse(server.url)) as client:
        with pytest.raises(LateError):
            await client.post("/", b"{}", deadline_seconds=0.1)
        with pytest.raises(BrokenError):
            await client.post("/", b"{}", deadline_seconds=5)
    async with Client(Target("127.0.0.1", 1)) as client:
        with pytest.raises(ConnectError):
            await client.post("/", b"{}", deadline_seconds=5)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8080", Target("127.0.0.1", 8080)),
        ("http://127.0.0.1:8080/v1/", Target("127.0.0.1", 8080)),
        ("http://gateway/llm/v1", Target("gateway", 80, "/llm")),
        ("127.0.0.1:9000", Target("127.0.0.1", 9000)),
    ],
)
def test_addresses_as_people_write_them(url: str, target: Target) -> None:
    """With or without scheme, port and /v1."""
    assert Target.parse(url) == target


@pytest.mark.parametrize("url", ["https://api.example.com", "http://", "http://host:port", "ftp://x"])
def test_addresses_that_cannot_be_used(url: str) -> None:
    """Anything but plain HTTP is refused with what to write."""
    with pytest.raises(TargetError, match=r"http://127\.0\.0\.1:8080"):
        Target.parse(url)
