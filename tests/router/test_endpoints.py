"""The API's endpoints: what reaches a worker, what of its answer is counted, and the form of errors in each API."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from support.router_recording_worker import EVENTS, recording_worker
from support.router_running import DEPLOYMENT, LONG, MODEL, config, eventually_async, running_router
from turnout_router.api.dialects import ANTHROPIC
from turnout_router.api.endpoints import ENDPOINTS
from turnout_router.api.events import MESSAGE_EVENTS, RESPONSE_EVENTS, EventForm, EventTap

if TYPE_CHECKING:
    from support.router_recording_worker import RecordingWorker

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/embeddings": {"input": ["hi", "ho"]},
    "/v1/rerank": {"query": "hi", "documents": ["a", "b"]},
    "/rerank": {"query": "hi", "documents": ["a", "b"]},
    "/v2/rerank": {"query": "hi", "documents": ["a", "b"]},
    "/v1/score": {"text_1": "hi", "text_2": ["a", "b"]},
    "/score": {"queries": "hi", "documents": ["a", "b"]},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
}
EVENT_STREAMS: dict[str, bytes] = {
    "/v1/responses": b"".join(
        b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **fields}))
        for name, fields in (
            ("response.created", {"response": {"usage": None}}),
            ("response.output_text.delta", {"delta": "event: error\ntok"}),
            ("response.output_text.delta", {"delta": "tok"}),
            (
                "response.completed",
                {
                    "response": {
                        "usage": {
                            "input_tokens": 7,
                            "input_tokens_details": {"cached_tokens": 4},
                            "output_tokens": 2,
                        }
                    }
                },
            ),
        )
    ),
    "/v1/messages": b"".join(
        b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **fields}))
        for name, fields in (
            ("message_start", {"message": {"usage": {"input_tokens": 7, "output_tokens": 0}}}),
            ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "tok"}}),
            (
                "message_delta",
                {
                    "delta": {},
                    "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 2},
                },
            ),
            ("message_stop", {}),
        )
    ),
}


def one(worker: RecordingWorker) -> dict[str, Any]:
    return config([("aggregated", worker.url)])


def by_load(prefill: RecordingWorker, decode: RecordingWorker) -> dict[str, Any]:
    """Return a pair that moves every cache that may be moved."""
    return config([("prefill", prefill.url), ("decode", decode.url)], policy="LeastLoaded")


def test_every_endpoint_has_a_body_here() -> None:
    """An endpoint that is added is tested, too."""
    assert {path.decode() for path in ENDPOINTS} == BODIES.keys()


async def test_what_clients_send_reaches_the_worker_byte_by_byte(tmp_path: Path) -> None:
    """Tools, formats, choices, log probabilities, images, unknown fields: all of it, on every path."""
    extra: dict[str, Any] = {
        "model": MODEL,
        "tools": [{"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"é": 1.5}}},
        "logprobs": True,
        "top_logprobs": 3,
        "n": 2,
        "temperature": 0.10000000000000001,
        "metadata": {"née": "naïve ☃ \u2028"},
        "not_known": [None, True, -1, 18446744073709551615, {"deep": [[[]]]}],
    }
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    async with recording_worker() as worker, running_router(tmp_path, one(worker)) as r:
        for path, body in BODIES.items():
            whole = extra | body
            if "messages" in body:
                parts = [{"type": "text", "text": "see"}, image]
                whole["messages"] = [*MESSAGES, {"role": "user", "content": parts}]
            sent = orjson.dumps(whole)
            answer = await r.client.post(path, content=sent)
            assert answer.status_code == 200
            assert (worker.paths[-1], worker.bodies[-1]) == (path, sent)


async def test_engine_fields_are_taken_out_on_every_path(tmp_path: Path) -> None:
    """What engines say to each other never comes from a client, whatever API it speaks."""
    inside = {"kv_transfer_params": {"do_remote_prefill": True}, "vllm_xargs": {"a": 1}, "request_id": "mine"}
    async with recording_worker() as worker, running_router(tmp_path, one(worker)) as r:
        for path, body in BODIES.items():
            await r.client.post(path, json={"model": MODEL, **body, **inside})
            assert worker.sent == {"model": MODEL, **body}


@pytest.mark.parametrize(
    ("path", "body", "cap"),
    [
        ("/v1/responses", {"input": LONG, "max_output_tokens": 50, "store": False}, "max_output_tokens"),
        ("/v1/messages", {"messages": [{"role": "user", "content": LONG}], "max_tokens": 50}, "max_tokens"),
    ],
)
async def test_responses_and_messages_are_prefilled_elsewhere(
    tmp_path: Path, path: str, body: dict[str, Any], cap: str
) -> None:
    """Their prompt's cache moves as a chat's does: one token, not streamed, and the cap in the API's own words."""
    async with (
        recording_worker() as prefill,
        recording_worker(answer=EVENT_STREAMS[path], type=EVENTS) as decode,
        running_router(tmp_path, by_load(prefill, decode)) as r,
    ):
        await r.client.post(path, json={"model": MODEL, "stream": True, **body})
    assert prefill.paths == decode.paths == [path]
    first, second = prefill.sent, decode.sent
    assert (first["stream"], first[cap]) == (False, 1)
    assert first["kv_transfer_params"]["do_remote_decode"] is True
    assert second == {
        "model": MODEL,
        "stream": True,
        **body,
        "kv_transfer_params": {"remote_host": "h", "remote_port": 1},
    }


@pytest.mark.parametrize("kind", ["web_search", "mcp", "code_interpreter"])
async def test_tools_that_the_worker_runs_keep_the_prompt_with_it(tmp_path: Path, kind: str) -> None:
    """A response with such tools is generated in several turns, and a cache can be read only once."""
    async with (
        recording_worker() as prefill,
        recording_worker() as decode,
        running_router(tmp_path, config([("prefill", prefill.url), ("decode", decode.url)])) as r,
    ):
        await r.client.post("/v1/responses", json={"model": MODEL, "input": LONG, "tools": [{"type": kind}]})
        assert await r.metric("turnout_router_local_prefills_total", reason="request_form") == 1
    assert not prefill.bodies
    assert len(decode.bodies) == 1


@pytest.mark.parametrize("path", EVENT_STREAMS)
async def test_typed_events_pass_untouched_and_are_counted(tmp_path: Path, path: str) -> None:
    """The bytes are the worker's; usage, tokens and goodput are read from the events that carry them."""
    stream = EVENT_STREAMS[path]
    async with (
        recording_worker(answer=stream, type=EVENTS) as worker,
        running_router(tmp_path, one(worker)) as r,
    ):
        answer = await r.client.post(path, json={"model": MODEL, "stream": True, **BODIES[path]})

        async def counted() -> bool:
            return await r.metric("turnout_router_good_total", deployment=DEPLOYMENT) == 1

        await eventually_async(counted)
        assert await r.metric("turnout_router_prompt_tokens_total", deployment=DEPLOYMENT) == 7
        assert await r.metric("turnout_router_output_tokens_total", deployment=DEPLOYMENT) == 2
        assert await r.metric("turnout_router_time_to_first_token_seconds_count", deployment=DEPLOYMENT) == 1
    assert answer.content == stream


@pytest.mark.parametrize("path", EVENT_STREAMS)
async def test_a_cut_stream_of_events_ends_with_an_error(tmp_path: Path, path: str) -> None:
    """What came passes; then an error event in the API's form, and no event that would end it well."""
    begun = b"\n\n".join(EVENT_STREAMS[path].split(b"\n\n")[:2]) + b"\n\n"
    async with (
        recording_worker(answer=begun, type=EVENTS, cut=True) as worker,
        running_router(tmp_path, one(worker)) as r,
        r.client.stream("POST", path, json={"model": MODEL, "stream": True, **BODIES[path]}) as answer,
    ):
        got = b""
        try:
            async for piece in answer.aiter_raw():
                got += piece
        except Exception as error:  # noqa: BLE001 - whichever way the client library says that the body was cut
            assert "incomplete" in str(error)  # noqa: PT017 - and only that
    assert got.startswith(begun)
    last = got.removeprefix(begun)
    assert last.startswith(b"event: error\ndata: ")
    payload = orjson.loads(last.split(b"data: ")[1])
    assert payload["type"] == "error"
    assert "The stream broke" in payload["error"]["message"]


async def test_what_only_counts_tokens_is_no_load(tmp_path: Path) -> None:
    """Counting tokens says nothing about how well the engine serves: it is answered, and not in goodput."""
    async with recording_worker() as worker, running_router(tmp_path, one(worker)) as r:
        for path in ("/tokenize", "/detokenize", "/v1/messages/count_tokens"):
            await r.client.post(path, json={"model": MODEL, **BODIES[path]})
        assert await r.metric("turnout_router_requests_total", deployment=DEPLOYMENT, code="200") == 3
        assert await r.metric("turnout_router_arrivals_total", deployment=DEPLOYMENT) == 0
        assert await r.metric("turnout_router_finished_total", deployment=DEPLOYMENT) == 0
        await r.client.post("/v1/embeddings", json={"model": MODEL, **BODIES["/v1/embeddings"]})
        assert await r.metric("turnout_router_finished_total", deployment=DEPLOYMENT) == 1


async def test_anthropics_clients_send_their_key_in_a_field_of_their_own(tmp_path: Path) -> None:
    """`x-api-key` opens Anthropic's paths, and those only; the worker sees neither form of the key."""
    async with recording_worker() as worker:
        digest = hashlib.sha256(b"sk-right").hexdigest()
        content = one(worker) | {
            "budgets": [{"name": "default/b", "keys": [{"name": "k", "sha256": digest}]}]
        }
        async with running_router(tmp_path, content, auth="required") as r:
            for path, key, status in (
                ("/v1/messages", "sk-right", 200),
                ("/v1/messages", "sk-wrong", 401),
                ("/v1/chat/completions", "sk-right", 401),
            ):
                answer = await r.client.post(
                    path, json={"model": MODEL, **BODIES[path]}, headers={"x-api-key": key}
                )
                assert answer.status_code == status
            for path, body in BODIES.items():
                assert (await r.client.post(path, json={"model": MODEL, **body})).status_code == 401
    assert len(worker.heads) == 1
    assert not {"x-api-key", "authorization"} & worker.heads[0].keys()


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"model": "none", "messages": MESSAGES, "max_tokens": 1}, 404, "not_found_error"),
        ({"model": MODEL, "max_tokens": 1}, 400, "invalid_request_error"),
    ],
)
async def test_errors_on_anthropics_paths_are_anthropics(
    tmp_path: Path, body: dict[str, Any], status: int, kind: str
) -> None:
    """An error object of Anthropic's, and the request's id where its client looks for it."""
    async with recording_worker() as worker, running_router(tmp_path, one(worker)) as r:
        answer = await r.client.post("/v1/messages", json=body)
        nowhere = await r.client.post("/v1/messages/batches", json=body)
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == kind
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert nowhere.json()["error"]["type"] == "not_found_error"


async def test_a_failing_worker_is_reported_in_the_apis_form(tmp_path: Path) -> None:
    """503 of every worker is Anthropic's overloaded_error there, with Retry-After."""
    async with recording_worker(status=503) as worker, running_router(tmp_path, one(worker)) as r:
        answer = await r.client.post("/v1/messages", json={"model": MODEL, **BODIES["/v1/messages"]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "overloaded_error")
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/responses", {}, "input"),
        ("/v1/responses", {"input": "x", "background": True}, "background"),
        ("/v1/responses", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/rerank", {"query": "x"}, "documents"),
        ("/v1/score", {"text_1": "x"}, "documents"),
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
    ],
)
async def test_what_is_missing_is_named_before_a_worker_is_asked(
    tmp_path: Path, path: str, body: dict[str, Any], param: str
) -> None:
    """400 with the field's name."""
    async with recording_worker() as worker, running_router(tmp_path, one(worker)) as r:
        answer = await r.client.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not worker.bodies


@pytest.mark.parametrize(
    ("form", "path"), [(RESPONSE_EVENTS, "/v1/responses"), (MESSAGE_EVENTS, "/v1/messages")]
)
@pytest.mark.parametrize("size", [1, 3, 17, 1000])
def test_events_are_read_however_they_are_cut(form: EventForm, path: str, size: int) -> None:
    """Any division of a stream into reads gives the same bytes, times and counts; CRLF reads like LF."""
    stream = EVENT_STREAMS[path]
    for sent in (stream, stream.replace(b"\n", b"\r\n")):
        tap = EventTap(form, max_event_bytes=1000)
        got = b"".join(tap.feed(sent[at : at + size], float(at)) for at in range(0, len(sent), size))
        assert got.replace(b"\r", b"") == stream
        assert (tap.prompt_tokens, tap.output_tokens, tap.cached_tokens) == (7, 2, 4)
        assert tap.done
        assert tap.failure is None
        assert tap.first_token_at is not None


@pytest.mark.parametrize(
    ("path", "usage", "tokens"),
    [
        ("/v1/messages", {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 2}, (7, 2)),
        ("/v1/messages", {"input_tokens": 7, "output_tokens": 2}, (7, 2)),
        (
            "/v1/responses",
            {
                "input_tokens": 7,
                "input_tokens_details": {"cached_tokens": 4, "input_tokens_per_turn": [7]},
                "output_tokens": 2,
            },
            (7, 2),
        ),
        ("/v1/embeddings", {"prompt_tokens": 7, "total_tokens": 7}, (7, 0)),
        ("/v1/chat/completions", {"prompt_tokens": 7, "completion_tokens": 2}, (7, 2)),
        ("/tokenize", None, (0, 0)),
    ],
)
def test_whole_answers_tell_their_tokens(path: str, usage: Any, tokens: tuple[int, int]) -> None:
    """Each API's usage, whatever the answer's text and its tools' inputs look like."""
    tool = {"type": "tool_use", "input": {"input_tokens": 99, "usage_": {"prompt_tokens": 99}}}
    text = '"usage": {"input_tokens": 55, "prompt_tokens": 55}'
    value = {"content": [tool, {"text": text}]} | ({} if usage is None else {"usage": usage})
    if usage is None:
        del value["content"]
    found = ENDPOINTS[path.encode()].usage_of(orjson.dumps(value))
    assert (found.prompt, found.output) == tokens
    for before in (b"", b" " * 50):
        part = ENDPOINTS[path.encode()].usage_of(before + orjson.dumps([value])[3:])
        assert (part.prompt, part.output) == tokens, "of a part of it, or one that stands deeper, too"


@pytest.mark.parametrize(
    ("path", "usage", "cached"),
    [
        ("/v1/messages", {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 2}, 4),
        ("/v1/messages", {"input_tokens": 7, "output_tokens": 2}, None),
        ("/v1/responses", {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 4}}, 4),
        ("/v1/chat/completions", {"prompt_tokens": 70, "prompt_tokens_details": {"cached_tokens": 12}}, 12),
        ("/v1/chat/completions", {"prompt_tokens": 70, "prompt_tokens_details": None}, None),
        ("/v1/chat/completions", {"prompt_tokens": 70}, None),
    ],
)
def test_whole_answers_tell_what_was_cached(path: str, usage: Any, cached: int | None) -> None:
    """Where the engine says so; None where it does not."""
    assert ENDPOINTS[path.encode()].usage_of(orjson.dumps({"usage": usage, "id": "x"})).cached == cached


def test_an_event_above_the_bound_passes_unread() -> None:
    """Its size is no fault of the worker: it passes as it comes, and how it ends is read even so."""
    tap = EventTap(RESPONSE_EVENTS, max_event_bytes=100)
    large = b"event: response.created\ndata: " + b"x" * 20_000 + b"\n\n"
    end = orjson.dumps(
        {"response": {"instructions": "x" * 20_000, "usage": {"input_tokens": 7, "output_tokens": 2}}}
    )
    small = b"event: response.output_text.delta\ndata: 1\n\n"
    stream = large + small + b"event: response.completed\ndata: " + end + b"\n\n"
    got, kept = b"", 0
    for at in range(0, len(stream), 7):
        got += tap.feed(stream[at : at + 7], 0.0)
        kept = max(kept, sum(map(len, tap._pieces)))
    assert got == stream
    assert kept <= 107
    assert tap.done
    assert (tap.prompt_tokens, tap.output_tokens) == (7, 2)


def test_the_documentation_has_every_endpoint_as_it_is() -> None:
    """The table in docs/api.md and the router's own say the same."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
    rows = [
        tuple(cell.strip().strip("`") for cell in line.split("|")[1:-1])
        for line in text.splitlines()
        if line.startswith("| `/")
    ]
    yes = {True: "yes", False: "no"}
    assert [(row[0], row[1], row[2] != "no", row[3], row[4]) for row in rows] == [
        (
            endpoint.path.decode(),
            yes[endpoint.prefill is not None],
            endpoint.stream is not None,
            "Anthropic" if endpoint.dialect is ANTHROPIC else "OpenAI",
            yes[endpoint.serves],
        )
        for endpoint in ENDPOINTS.values()
    ]
