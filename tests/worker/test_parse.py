"""Understanding a completion request, without a process: whatever comes is understood or refused, and texts agree."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout_worker import openai, text
from turnout_worker.errors import AnswerError
from turnout_worker.openai import CompletionRequest, FatalTransferError

FIELDS = [
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "ignore_eos",
    "stream",
    "stream_options",
    "stop",
    "seed",
    "n",
    "echo",
    "logprobs",
    "kv_transfer_params",
    "temperature",
]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "include_usage", "do_remote_prefill"]), inner
        )
    ),
    max_leaves=8,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.text(max_size=9), "content": st.text(max_size=50)}), min_size=1
)


def parse(fields: object, kind: openai.Kind = "chat", seed: int = 0) -> CompletionRequest:
    return openai.parse(
        orjson.dumps(fields), kind, served_names=("m",), max_length=1000, seed=seed, transfers=True
    )


@given(fields=st.dictionaries(st.sampled_from(FIELDS), values), kind=st.sampled_from(["chat", "text"]))
@settings(max_examples=300)
def test_whatever_comes_is_understood_or_refused(fields: dict[str, Any], kind: openai.Kind) -> None:
    """Any JSON object ends in a request or in an answer with a reason, never in another error."""
    with contextlib.suppress(AnswerError, FatalTransferError):
        request = parse(fields, kind)
        assert 1 <= request.outputs[0].tokens <= 1000 - request.prompt_tokens


@given(turns=messages, seed=st.integers(0, 2**31 - 1))
def test_the_same_prompt_and_seed_give_the_same_text(turns: list[dict[str, str]], seed: int) -> None:
    """Text depends on seed and prompt alone: a shorter answer is the beginning of a longer one."""
    ask = {"messages": turns, "ignore_eos": True}
    long = parse({**ask, "max_tokens": 50}, seed=seed)
    assert parse({**ask, "max_tokens": 50}, seed=seed) == long
    assert long.outputs[0].text.startswith(parse({**ask, "max_tokens": 7}, seed=seed).outputs[0].text)
    assert len(long.outputs[0].text) == 50 * text.TOKEN_BYTES


@given(turns=messages)
def test_a_conversation_begins_with_the_tokens_of_its_beginning(turns: list[dict[str, str]]) -> None:
    """With the answer and another question added, the prompt starts with the old prompt and the answer's tokens."""
    first = parse({"messages": turns, "max_tokens": 9})
    answer = {"role": "assistant", "content": first.outputs[0].text.decode()}
    second = parse({"messages": [*turns, answer, {"role": "user", "content": "more"}], "max_tokens": 1})
    assert len(first.prompt) % text.TOKEN_BYTES == 0
    assert second.prompt.startswith(first.prompt + first.outputs[0].text)


@pytest.mark.parametrize("size", [16, 512])
def test_block_hashes_stand_for_everything_before_them(size: int) -> None:
    """Equal prefixes have equal hashes block by block; one changed byte changes all from its block on."""
    data = bytes(range(256)) * 64
    width = size * text.TOKEN_BYTES
    changed = bytearray(data)
    changed[width] ^= 1
    hashes, others = text.block_hashes(data, size), text.block_hashes(bytes(changed), size)
    assert len(hashes) == len(data) // width
    assert hashes[0] == others[0]
    assert not set(hashes[1:]) & set(others[1:])


def test_natural_lengths_are_spread_around_their_median() -> None:
    """Lengths without a limit lie between 20 and 400 tokens, half of them below about 110."""
    lengths = sorted(text.natural_length(0, str(n).encode()) for n in range(500))
    assert lengths[0] >= 20
    assert lengths[-1] <= 400
    assert 90 < lengths[250] < 130
