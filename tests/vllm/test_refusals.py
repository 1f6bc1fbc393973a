"""What vLLM 0.32 does and the simulated worker with it: where a request is refused, and how that is said.

`make test` asks a simulated worker, `make test-vllm` a vLLM as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.worker_contract import events_of

if TYPE_CHECKING:
    from support.worker_contract import Contract


def schema(**fields: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": fields}}}


def tool(**parameters: Any) -> dict[str, Any]:
    function = {"name": "f", "parameters": {"type": "object", "properties": parameters}}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}


BY_THE_ENGINE: list[tuple[str, dict[str, Any]]] = [
    ("chat", schema(type="foo")),
    ("chat", schema(type="object", properties={"a": {"type": "foo"}})),
    ("chat", schema(**{"$ref": "#/$defs/nowhere"})),
    ("chat", {"structured_outputs": {"regex": "("}}),
    ("chat", {"structured_outputs": {"regex": "(?=a)b"}}),
    ("chat", {"structured_outputs": {"choice": []}}),
    ("chat", {"structured_outputs": {"json": "{"}}),
    ("chat", {"stop_token_ids": [10**9]}),
    ("chat", {"allowed_token_ids": [10**9]}),
    ("chat", {"allowed_token_ids": []}),
    ("chat", {"logit_bias": {"1000000000": 1}}),
    ("chat", {"thinking_token_budget": 5}),
    ("chat", {"truncate_prompt_tokens": 0}),
    ("chat", {"logprobs": True, "top_logprobs": 21}),
    ("text", {"logprobs": -1}),
    ("text", {"logprobs": 21}),
    ("text", {"prompt": [""]}),
    ("text", {"truncate_prompt_tokens": 0}),
    ("text", {"stop_token_ids": [10**9]}),
    ("text", {"structured_outputs": {"regex": "("}}),
    ("text", schema(type="foo")),
]


@pytest.mark.parametrize(("form", "fields"), BY_THE_ENGINE)
def test_what_the_engine_refuses_is_reported_inside_a_stream(
    engine: Contract, form: str, fields: dict[str, Any]
) -> None:
    """Streamed: 200, an error with code 400 as the first event, [DONE]. Not streamed: 400 with the same object."""
    streamed = engine.ask(form, engine.body(form, stream=True, **fields))
    assert streamed.status_code == 200
    assert streamed.headers["content-type"].startswith("text/event-stream")
    error, done = events_of(streamed.text)
    assert done == "[DONE]"
    assert error["error"]["code"] == 400
    assert error["error"]["message"]
    whole = engine.ask(form, engine.body(form, **fields))
    assert whole.status_code == 400
    assert whole.json()["error"] == error["error"]


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("chat", schema(type="object", properties={"a": {"type": ["string", "null"], "pattern": "^a+$"}})),
        ("chat", schema(**{"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer", "enum": [1]}}})),
        ("chat", {"stop_token_ids": [5], "logit_bias": {"5": 1}, "allowed_token_ids": [5, 6]}),
        ("text", {"structured_outputs": {"regex": "a+|b"}, "logprobs": 20}),
        ("text", {"structured_outputs": {"choice": ["a", "b"]}}),
    ],
)
def test_what_is_well_formed_is_served(engine: Contract, form: str, fields: dict[str, Any]) -> None:
    """The checks refuse nothing that can be served."""
    assert engine.ask(form, engine.body(form, **fields)).status_code == 200


def test_a_response_breaks_off_where_the_engine_refuses(engine: Contract) -> None:
    """Responses, streamed: created, in_progress, and the connection breaks without a word. Not streamed: 400."""
    wrong = {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "foo"}}}}
    status, text, broke = engine.until_broken("response", engine.body("response", stream=True, **wrong))
    assert status == 200
    assert [event["type"] for event in events_of(text)] == ["response.created", "response.in_progress"]
    assert broke
    assert engine.ask("response", engine.body("response", **wrong)).status_code == 400


def test_a_message_has_an_internal_error_where_the_engine_refuses(engine: Contract) -> None:
    """Messages, streamed: one error event of type internal_error, in whose text alone the code stands."""
    wrong = {"format": {"type": "json_schema", "schema": {"type": "foo"}}}
    answer = engine.ask("message", engine.body("message", stream=True, output_config=wrong))
    assert answer.status_code == 200
    assert answer.text.startswith("event: error\n")
    error = events_of(answer.text)[0]
    assert error["type"] == "error"
    assert error["error"]["type"] == "internal_error"
    assert "'code': 400" in error["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("form", "fields", "param"),
    [
        ("chat", {"max_tokens": "x"}, "body.max_tokens"),
        ("chat", {"temperature": []}, "body.temperature"),
        ("text", {"max_tokens": 1.5}, "body.max_tokens"),
        ("text", {"stop_token_ids": ["x"]}, "body.stop_token_ids.0"),
        ("response", {"max_output_tokens": "x"}, "body.max_output_tokens"),
        ("message", {"max_tokens": 0}, None),
        ("message", {"max_tokens": None}, "body.max_tokens"),
    ],
)
def test_what_the_body_gets_wrong_is_a_bad_request(
    engine: Contract,
    stream: bool,  # noqa: FBT001 - a case
    form: str,
    fields: dict[str, Any],
    param: str | None,
) -> None:
    """Refused before any work: 400, type Bad Request, in OpenAI's form on Anthropic's path, too; streamed or not."""
    answer = engine.ask(form, engine.body(form, stream=stream, **fields))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("Bad Request", 400)
    if param is not None and engine.simulated:  # which part of a union a vLLM names differs with pydantic
        assert error["param"] == param


@pytest.mark.parametrize("options", [{"include_usage": True}, {"continuous_usage_stats": True}])
def test_stream_options_want_a_stream(engine: Contract, options: dict[str, Any]) -> None:
    """Without `stream` they are refused while the body is read; with it, a field of the wrong type is."""
    for form in ("chat", "text"):
        error = engine.ask(form, engine.body(form, stream_options=options)).json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("BadRequestError", "stream_options", 400)
    wrong = engine.ask("chat", engine.body("chat", stream=True, stream_options={"include_usage": "x"}))
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (400, "Bad Request")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cap", ["above", 0, -1])
@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("chat", "max_tokens"),
        ("chat", "max_completion_tokens"),
        ("text", "max_tokens"),
        ("response", "max_output_tokens"),
    ],
)
def test_a_cap_that_cannot_be_is_refused_in_serving_code(
    engine: Contract,
    form: str,
    name: str,
    cap: int | str,
    stream: bool,  # noqa: FBT001 - a case
) -> None:
    """Above the context, 0 and -1: a plain 400, streamed or not, not of the type that reading the body has."""
    value = engine.max_length + 1 if cap == "above" else cap
    answer = engine.ask(form, engine.body(form, stream=stream, **{name: value}))
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "BadRequestError"
    if cap == "above":
        assert answer.json()["error"]["param"] == name


def test_a_cap_between_room_and_context_is_cut(engine: Contract) -> None:
    """A cap that the context holds but the prompt leaves no room for is taken, and cut to the room."""
    answer = engine.ask("text", engine.body("text", max_tokens=engine.max_length, stop=["a", "e", " "]))
    assert answer.status_code == 200


def test_beam_search_does_not_stream_text(engine: Contract) -> None:
    """Text completions refuse it with a plain 400; chats stream what they have found at the end."""
    for form, status in (("text", 400), ("chat", 200)):
        answer = engine.ask(form, engine.body(form, stream=True, use_beam_search=True, n=2))
        assert answer.status_code == status


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["chat", "text"])
def test_fewer_tokens_at_most_than_at_least_are_refused(
    engine: Contract,
    form: str,
    stream: bool,  # noqa: FBT001 - a case
) -> None:
    """A plain 400, streamed or not: of a chat while its body is read, of a text completion in serving code."""
    answer = engine.ask(form, engine.body(form, stream=stream, min_tokens=4))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("BadRequestError", None)
    assert error["message"] == "min_tokens must be less than or equal to max_tokens=3, got 4."


def test_the_words_of_an_error_are_vllms(engine: Contract) -> None:
    """What clients and routers may look for in a message."""
    length = engine.max_length
    for fields, words in (
        (
            {"max_tokens": length + 1},
            (
                f"max_tokens={length + 1} cannot be greater than max_model_len={length}. Please request fewer output "
                f"tokens. (parameter=max_tokens, value={length + 1})"
            ),
        ),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"),
        (schema(type="foo"), "Grammar error: Invalid type: foo"),
        ({"truncate_prompt_tokens": 0}, "The decoder prompt cannot be empty"),
    ):
        answer = engine.ask("chat", engine.body("chat", **fields))
        assert answer.json()["error"]["message"] == words


def test_schemas_of_tools_that_must_be_called_are_checked(engine: Contract) -> None:
    """By the engine, too; with `auto` they are not looked at."""
    if not engine.simulated:
        pytest.skip("wants a tool call parser")
    for form, fields in (
        ("chat", tool(a={"type": "foo"})),
        (
            "message",
            {"tools": [{"name": "f", "input_schema": {"type": "foo"}}], "tool_choice": {"type": "any"}},
        ),
    ):
        assert engine.ask(form, engine.body(form, **fields)).status_code == 400
        assert engine.ask(form, engine.body(form, stream=True, **fields)).status_code == 200
    assert (
        engine.ask(
            "chat", engine.body("chat", **tool(a={"type": "foo"}) | {"tool_choice": "auto"})
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": "3"}, {"max_tokens": 3.0}, {"temperature": "1"}, {"stream": "no"}, {"seed": "7"}],
)
def test_numbers_in_other_clothes_are_taken(engine: Contract, fields: dict[str, Any]) -> None:
    """Pydantic reads "3" and 3.0 as 3, "no" as false."""
    answer = engine.ask("chat", engine.body("chat", **fields))
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] <= 3


def test_a_flag_in_other_clothes_streams(engine: Contract) -> None:
    """`"stream": 1` and `"yes"` ask for a stream."""
    for value in (1, "yes"):
        answer = engine.ask("chat", engine.body("chat", stream=value))
        assert events_of(answer.text)[-1] == "[DONE]"


def test_the_list_of_models_says_how_long_a_prompt_may_be(engine: Contract) -> None:
    """Root, parent, max_model_len and permission stand beside the id."""
    (model, *_) = engine.get("/v1/models").json()["data"]
    assert model["max_model_len"] == engine.max_length
    assert model["parent"] is None
    assert model["root"]
    assert model["permission"][0]["object"] == "model_permission"
