"""What a request's body says about its prompt: about how many tokens, and whether its cache can be moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTES_PER_TOKEN: Final = 4.0
"""Mean bytes of UTF-8 text per token, the usual figure for English under byte-pair encodings."""


def estimate_prompt_tokens(body: Mapping[str, Any], bytes_per_token: float = BYTES_PER_TOKEN) -> int:
    """Return about how many tokens the prompt of an OpenAI request has: its text's bytes / *bytes_per_token*.

    Counts the text of messages and of `prompt`; a prompt of token ids is counted exactly. What it does not
    understand counts as nothing: the worker judges it.
    """
    prompt = body.get("prompt")
    if prompt is not None:
        return _prompt_tokens(prompt, bytes_per_token)
    messages = body.get("messages")
    if not isinstance(messages, list):
        return 0
    text_bytes = 0
    for message in messages:
        if isinstance(message, dict):
            text_bytes += _content_bytes(message.get("content"))
    return int(text_bytes / bytes_per_token)


def needs_local_prefill(body: Mapping[str, Any]) -> bool:
    """Say whether only the decoding worker can compute this prompt.

    So it is with several choices or several prompts in one request (the exchange of caches is for one sequence)
    and with log probabilities of the prompt, which the prefill worker would keep to itself.
    """
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    return (
        several
        or _above_one(body.get("n"))
        or _above_one(body.get("best_of"))
        or body.get("echo") is True
        or body.get("prompt_logprobs") is not None
    )


def _above_one(value: object) -> bool:
    return isinstance(value, int) and value > 1


def _prompt_tokens(prompt: object, bytes_per_token: float) -> int:
    if isinstance(prompt, str):
        return int(_utf8_bytes(prompt) / bytes_per_token)
    if not isinstance(prompt, list) or not prompt:
        return 0
    if isinstance(prompt[0], int):
        return len(prompt)
    tokens = 0
    for part in prompt:
        if isinstance(part, str):
            tokens += int(_utf8_bytes(part) / bytes_per_token)
        elif isinstance(part, list):
            tokens += len(part)
    return tokens


def _content_bytes(content: object) -> int:
    if isinstance(content, str):
        return _utf8_bytes(content)
    if not isinstance(content, list):
        return 0
    total = 0
    for part in content:
        if isinstance(part, dict) and isinstance(text := part.get("text"), str):
            total += _utf8_bytes(text)
    return total


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
