"""What prefill workers hand out and clients slip in: structures that no engine means, on their way to a decode worker.

An input is JSON: ``{"params": what the prefill worker hands out, "client": what the client's request holds beside}``. Where
it is none, it is the prefill worker's whole body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from support.router_fuzzing_answers import LONG
from support.router_fuzzing_world import DECODE, MODEL, PREFILL, Answer, World, promise, request, whole_json
from turnout_router.api.openai import ENGINE_FIELDS, KEEP_CACHE

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

CANARY: Final = "of-the-client"
_PARAMS: Final = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_engine_id": "e-1",
    "remote_block_ids": [[1, 2, 3], [4]],
    "remote_host": "10.0.0.7",
    "remote_port": 5600,
    "remote_request_id": "chatcmpl-1",
    "tp_size": 1,
}
_ASKS: Final = {"kv_transfer_params": {"do_remote_prefill": True, "remote_host": CANARY}}


def _case(params: Any, client: Any = None) -> bytes:
    return orjson.dumps({"params": params, "client": client or {}})


PAIRS_CORPUS: Final = (
    _case(_PARAMS),
    _case(_PARAMS, _ASKS),
    _case(_PARAMS | {"unknown": {"deep": [[[{}]]]}}, dict.fromkeys(ENGINE_FIELDS, CANARY)),
    *(_case(params) for params in (None, {}, [], "x", 0, True, [[]], {"": None}, {"a": {}})),
    *(
        _case(_PARAMS | {"remote_block_ids": ids})
        for ids in ([], None, list(range(4000)), [[-1]], {"a": 1}, "1")
    ),
    *(_case({name: "x"}) for name in ("remote_host", "remote_port", "model", "stream")),
    _case(_PARAMS, {"kv_transfer_params": [CANARY], "vllm_xargs": {"kv_transfer_params": CANARY}}),
    _case(
        _PARAMS, {"kv_transfer_params": None, "request_id": CANARY, "extra": {"kv_transfer_params": "kept"}}
    ),
    b"",
    b"{}",
    b"[]",
    b"null",
    b'"kv_transfer_params"',
    b'{"kv_transfer_params":' + b'{"a":' * 200 + b"1" + b"}" * 201,
    *(b'{"kv_transfer_params":{"a":' + b"[" * n + b"]" * n + b"}}" for n in (260, 900, 990, 5000)),
    b'{"kv_transfer_params":{"a":1e999}}',
    b'{"kv_transfer_params":{"a":18446744073709551616}}',
    b'{"kv_transfer_params":{"a":"\\ud800"}}',
    b'{"kv_transfer_params":{"a":1},"kv_transfer_params":{"b":2}}',
    b'{"kv_transfer_params":{"a":1},"usage":{"prompt_tokens":-5,"prompt_tokens_details":[]}}',
    b'{"kv_transfer_params":{"a":1},"usage":{"prompt_tokens":99999999999,"prompt_tokens_details":{"cached_tokens":1e300}}}',
    b'{"kv_transfer_params":{"a":"' + b"x" * 30_000 + b'"}}',
)


def mutate_structure(data: bytes, corpus: Sequence[bytes], draw: random.Random) -> bytes:
    """Return *data* with one to four of its values changed in type, place or size; what is no JSON in its bytes."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        at = draw.randrange(len(data) + 1)
        return (
            data[:at]
            + draw.choice((b"", b"{", b"}", b"[", b'"', b"\0", b"1", b","))
            + data[at + draw.randrange(2) :]
        )
    for _ in range(draw.randint(1, 4)):
        value = _changed(value, corpus, draw, 0)
    try:
        return orjson.dumps(value)[:40_000]
    except orjson.JSONEncodeError:
        return data


_DEEP: Final = 100
_DEEPEST: Final = 60
_VALUES: Final = (
    None,
    True,
    False,
    0,
    -1,
    1 << 62,
    -(1 << 62),
    0.5,
    1e300,
    "",
    "x",
    CANARY,
    "é\u2028",
    [],
    {},
    [None],
    {"": {}},
)


def _changed(  # noqa: C901, PLR0911, PLR0912 - one per change
    value: Any, corpus: Sequence[bytes], draw: random.Random, depth: int
) -> Any:
    if depth < _DEEPEST and draw.random() < 0.8:
        if isinstance(value, dict) and value:
            name = draw.choice(list(value))
            kind = draw.randrange(8)
            if kind == 0:
                return {key: kept for key, kept in value.items() if key != name}
            if kind == 1:
                return value | {
                    draw.choice((*ENGINE_FIELDS, "a", "", "é", name.upper(), "model")): value[name]
                }
            return value | {name: _changed(value[name], corpus, draw, depth + 1)}
        if isinstance(value, list) and value:
            at = draw.randrange(len(value))
            if draw.randrange(4) == 0:
                return value[:at] + value[at + 1 :]
            return [*value[:at], _changed(value[at], corpus, draw, depth + 1), *value[at + 1 :]]
    match draw.randrange(6):
        case 0:
            return [value] * draw.choice((1, 2, 50))
        case 1:
            return {draw.choice(("a", "kv_transfer_params", "remote_host")): value}
        case 2:
            deep: Any = value
            for _ in range(draw.choice((1, 10, 100, 250))):
                deep = [deep] if draw.random() < 0.5 else {"a": deep}
            return deep
        case 3:
            try:
                return orjson.loads(draw.choice(corpus))
            except orjson.JSONDecodeError:
                return "no JSON"
        case _:
            return draw.choice(_VALUES)


def check_pair(
    world: World, data: bytes, cut: Callable[[bytes, random.Random], list[bytes]], draw: random.Random
) -> None:
    """Hold a pair against *data*: the decode worker gets what was handed out, unchanged, or nothing; never the client's."""
    client: dict[str, Any] = {}
    try:
        case = orjson.loads(data)
    except orjson.JSONDecodeError:
        case = None
    if isinstance(case, dict) and "params" in case:
        body = b'{"kv_transfer_params":' + orjson.dumps(case["params"]) + b"}"
        if isinstance(case.get("client"), dict):
            client = {
                name: value
                for name, value in case["client"].items()
                if name not in {"model", "prompt", "stream"}
            }
    else:
        body = data
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    decoded: list[Any] = []

    def prefill(_head: bytes, asked: bytes) -> Answer:
        sent = orjson.loads(asked)
        assert sent.pop("kv_transfer_params") == KEEP_CACHE
        _assert_clean(sent)
        return Answer(cut(head + body, draw))

    def decode(_head: bytes, asked: bytes) -> Answer:
        sent = orjson.loads(asked)
        decoded.append(sent.pop("kv_transfer_params", None))
        _assert_clean(sent)
        return Answer([whole_json({"choices": [{"index": 0, "text": "one", "finish_reason": "stop"}]})])

    asked = client | {"model": MODEL, "prompt": LONG}
    answered = world.ask(
        [request(b"/v1/completions", asked, b"connection: close")], {PREFILL: prefill, DECODE: decode}
    )
    (answer,) = answered
    assert answer.whole
    assert answer.status in {200, 400, 502, 503}, answer.status
    if answer.status == 400:
        assert not decoded
        promise("400 is the client's own fault", _depth(client) > _DEEP, answer.body)
        return
    handed = _handed_out(body)
    for params in decoded:
        assert params is None or (params and params == handed), "what was handed out is passed on as it is"


def _assert_clean(sent: dict[str, Any]) -> None:
    """No field between engines is the client's."""
    assert not set(sent) & set(ENGINE_FIELDS), set(sent) & set(ENGINE_FIELDS)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _handed_out(body: bytes) -> dict[str, Any] | None:
    try:
        # The engine's other fields are not checked: they may be no UTF-8, as long as what is handed out is.
        value = orjson.loads(body.decode("utf-8", "replace"))
    except orjson.JSONDecodeError:
        return None
    params = value.get("kv_transfer_params") if isinstance(value, dict) else None
    return params if isinstance(params, dict) else None
