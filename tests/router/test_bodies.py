"""Bodies of odd shapes: what they cost is bounded, and every one of them gets an answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.router_mock_backend import mock_worker
from support.router_recording_worker import recording_worker
from support.router_running import MODEL, chat, config, eventually, pair, running_router
from turnout.routing import Backend
from turnout_router.api.endpoints import CHAT, TEXT
from turnout_router.api.openai import parse
from turnout_router.api.prefill import handed_in
from turnout_router.api.turns import Queue
from turnout_router.api.untrusted import MOST_VALUES, SLICE_BYTES, TooManyValues, weigh
from turnout_router.errors import ApiError, UpstreamError

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024
HEAD = b'{"model":"' + MODEL.encode() + b'","messages":[{"role":"user","content":"hi"}],'


def weight(body: bytes, most: int = MOST_VALUES) -> int:
    total = 0
    for so_far in weigh(body, most):
        total = so_far
    return total


def exact(value: Any) -> int:
    """Return what `weigh` counts, from the value itself."""
    if isinstance(value, dict):
        inner = sum(4 + exact(one) for one in value.values())  # each name is a text, too
        return 3 + max(0, len(value) - 1) + inner
    if isinstance(value, list):
        return 3 + max(0, len(value) - 1) + sum(map(exact, value))
    return 2 if isinstance(value, bool) else int(isinstance(value, str))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(alphabet='"\\a,[]{}:é', max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('"\\k,', max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON)
def test_values_are_counted_and_what_stands_in_texts_is_not(value: Any) -> None:
    """Quotes and backslashes within texts are read as JSON reads them."""
    assert weight(orjson.dumps(value)) == exact(value)


@pytest.mark.parametrize("shift", range(-3, 4))
@pytest.mark.parametrize("text", [b'\\"', b"\\\\", b'\\\\\\"', b'"', b"x"])
def test_a_text_across_a_slice_is_one_text(text: bytes, shift: int) -> None:
    """Where a slice ends, within an escape or not, changes no count."""
    inner = text if text != b'"' else b"y"
    body = b'["' + b"z" * (SLICE_BYTES - 2 + shift - len(inner)) + inner + b',[[{{",1,2]'
    assert weight(body) == 3 + 2 + 1


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * (5 * MIB) + b"1]",
        b"{" + b'"a":1,' * (2 * MIB) + b'"a":1}',
        b'["",' + b'"",' * (4 * MIB) + b'""]',
    ],
    ids=["lists", "names", "texts"],
)
def test_too_many_values_are_found_before_they_are_parsed(body: bytes) -> None:
    """The count ends where the bound is passed."""
    with pytest.raises(TooManyValues):
        weight(body)


@pytest.mark.parametrize(
    "more",
    [
        b'"x":[' + b"[]," * (3 * MIB) + b"1]}",
        b'"tools":[' + b"{}," * (3 * MIB) + b"{}]}",
        b'"x":{' + b",".join(b'"%x":1' % n for n in range(900_000)) + b"}}",
        b",".join(b'"%x":1' % n for n in range(2000)) + b"}",
    ],
    ids=["lists", "objects", "names", "fields"],
)
async def test_too_many_values_are_400_whatever_field_they_stand_in(tmp_path: Path, more: bytes) -> None:
    """No worker is asked, the connection stays, and others are served meanwhile."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        large, small = await asyncio.gather(
            r.client.post("/v1/chat/completions", content=HEAD + more), r.chat("small")
        )
        assert large.status_code == 400
        assert "at most" in large.text or "too many values" in large.text
        assert small.status_code == 200
        assert len(worker.received) == 1
        assert r.router._listener.accounts.held_bytes == 0


async def test_a_prompt_of_a_million_token_ids_is_served(tmp_path: Path) -> None:
    """What the largest context windows hold finds room."""
    tokens = [12345] * 1_000_000
    async with (
        recording_worker() as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        answer = await r.client.post("/v1/completions", json={"model": MODEL, "prompt": tokens})
    assert answer.status_code == 200
    assert worker.sent["prompt"] == tokens


@pytest.mark.parametrize("field", ["messages", "tools", "not_known", "stream_options"])
@pytest.mark.parametrize("levels", [200, 253, 254, 255, 256, 300, 900, 1023, 1100])
async def test_every_depth_has_an_answer(tmp_path: Path, field: str, levels: int) -> None:
    """Accepted or 400, also behind another request on the same connection, and on both ways of serving."""
    deep = b"[" * levels + b"]" * levels
    if field == "stream_options":
        deep = b'{"a":' + deep + b"}"
    head = HEAD if field != "messages" else HEAD.replace(b'"messages":[{"role":"user","content":"hi"}],', b"")
    body = head + b'"%b":%b}' % (field.encode(), deep)
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    async with (
        mock_worker() as prefill,
        mock_worker() as decode,
        running_router(tmp_path, pair(prefill, decode)) as r,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", r.router.port)
        writer.write(request * 2)
        for _ in range(2):
            async with asyncio.timeout(20):
                status = int((await reader.readline()).split()[1])
                assert status in {200, 400}
                length = 0
                while (line := await reader.readline()).strip():
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                await reader.readexactly(length)
        writer.close()
        assert (await r.chat()).status_code == 200


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, 2.5, None]}}}]},
        {"x": "y" * 5000, "é": "☃" * 2000, "stream_options": {"include_usage": True}, "stream": True},
        {"cache_salt": "s" * 1024, "metadata": {"a": {"b": []}}, "stop": ["a", "b"], "seed": 7},
    ],
)
async def test_what_is_kept_of_a_request_reaches_the_worker_unchanged(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    """Lists, objects and long texts are kept as JSON: the worker reads the same values."""
    async with (
        recording_worker() as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        await r.client.post("/v1/chat/completions", json=chat(**more))
    assert worker.sent == chat(**more)


def test_the_collector_is_on_again_after_whatever_was_parsed() -> None:
    """It is off only while something large is parsed, also where that fails."""
    assert gc.isenabled()
    large = b" " * 100_000
    for raw in (
        HEAD + b'"x":1}' + large,
        large + b"no JSON",
        HEAD + b'"x":' + b"[" * 500 + b"]" * 500 + b"}" + large,
    ):
        with contextlib.suppress(ApiError):
            parse(CHAT, raw)
        assert gc.isenabled()


def test_nothing_large_is_kept_as_objects() -> None:
    """What is kept of a body is of the size of the body: its values are JSON, not objects."""
    raw = orjson.dumps(
        {"model": MODEL, "prompt": "p" * 5000, "x": [[]] * 5000, "y": {"z": [{}] * 5000}, "s": "t" * 5000}
    )
    body = parse(TEXT, raw).body
    assert all(isinstance(value, orjson.Fragment) for name, value in body.items() if name != "model")


async def test_what_a_prefill_worker_hands_out_is_passed_on_byte_by_byte(tmp_path: Path) -> None:
    """Unread, however large or odd it is."""
    params = (
        b'{"remote_block_ids": [[1,2]],"deep":'
        + b"[" * 300
        + b"]" * 300
        + b',"big":123456789012345678901234567890}'
    )
    async with (
        recording_worker(prefilled=b'{"choices":[],"kv_transfer_params":' + params + b"}") as prefill,
        recording_worker() as decode,
        running_router(
            tmp_path, config([("prefill", prefill.url), ("decode", decode.url)], policy="LeastLoaded")
        ) as r,
    ):
        await r.chat("word " * 400)
    assert b'"kv_transfer_params":' + params in decode.bodies[0]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"kv_transfer_params":null}',
        b'{"kv_transfer_params":{}}',
        b'{"kv_transfer_params":{ }}',
        b'{"kv_transfer_params":[1]}',
        b'{"kv_transfer_params":"x"}',
        b'{"kv_transfer_params":{"a":}}',
        b'{"kv_transfer_params":{"a":"\xff"}}',
        b'{"kv_transfer_params":{"a":1}',
        b'{"choices":1,"kv_transfer_params":{"a":1}}',
        b'{"choices":[{"finish_reason":"abort"}],"kv_transfer_params":{"a":1}}',
    ],
)
def test_answers_that_hand_out_nothing_are_the_workers_failure(answer: bytes) -> None:
    """Whatever it is, it ends as an error that another worker repairs."""
    with pytest.raises(UpstreamError):
        handed_in(answer, Backend("p", "d", "h", 1, "prefill", "a", ()), 0.0)


@pytest.mark.parametrize("kind", [[], {}, None, 7])
async def test_a_tool_of_an_odd_type_is_the_workers_to_judge(tmp_path: Path, kind: Any) -> None:
    """Whatever stands there is no fault of the router: it is passed on."""
    async with (
        recording_worker() as worker,
        running_router(tmp_path, config([("aggregated", worker.url)])) as r,
    ):
        body = {"model": MODEL, "input": "x", "tools": [{"type": kind}]}
        assert (await r.client.post("/v1/responses", json=body)).status_code == 200
        assert await r.metric("turnout_router_task_failures_total", task="client") == 0
    assert worker.sent["tools"] == [{"type": kind}]


async def test_large_requests_of_one_client_wait_for_themselves() -> None:
    """Each client has its turn, however many wait of another one; a client that leaves gives its turn on."""
    loop = asyncio.get_running_loop()
    queue = Queue(loop)
    order: list[str] = []

    async def work(client: str) -> None:
        await queue.enter(client)
        order.append(client)
        await asyncio.sleep(0)
        queue.leave()

    await queue.enter("first")
    tasks = [loop.create_task(work(client)) for client in ("a", "a", "a", "a", "b", "c", "b")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    queue.leave()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["a", "b", "c", "a", "b", "a"]
    await asyncio.wait_for(queue.enter("again"), 5)


async def test_a_deadline_holds_while_a_large_request_waits_to_be_read(tmp_path: Path) -> None:
    """504, sent to no worker, and the next one is read."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        large = r.router._gateway._large
        queue = large._queue = Queue(asyncio.get_running_loop())
        await queue.enter("another")
        body = chat("word " * 60_000)
        late = await r.client.post("/v1/chat/completions", json=body, headers={"x-turnout-timeout": "0.1"})
        queue.leave()
        served = await r.client.post("/v1/chat/completions", json=body, headers={"x-turnout-timeout": "20"})
        assert r.router._listener.accounts.held_bytes == 0
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "deadline_exceeded"
    assert served.status_code == 200
    assert len(worker.received) == 1


async def test_a_client_that_leaves_while_its_body_is_read_makes_way(tmp_path: Path) -> None:
    """Nothing of it is kept, and the next large request is read."""
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        queue = r.router._gateway._large._queue = Queue(asyncio.get_running_loop())
        await queue.enter("another")
        body = orjson.dumps(chat("word " * 60_000))
        _, writer = await asyncio.open_connection("127.0.0.1", r.router.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        await eventually(lambda: queue._waiting)
        writer.transport.abort()
        await eventually(lambda: not queue._waiting)
        queue.leave()
        assert (await r.client.post("/v1/chat/completions", content=body)).status_code == 200
        await eventually(lambda: r.router._listener.accounts.held_bytes == 0)
    assert len(worker.received) == 1
    assert gc.isenabled()
