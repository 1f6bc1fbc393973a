"""Tokens of the simulated model: four bytes each, and what it has to say.

A prompt is rendered to bytes with every part padded to whole tokens, so that a longer conversation begins with
exactly the tokens of the shorter one, the model's own answers included: prefixes are shared as with a real
tokenizer and chat template.
"""

from __future__ import annotations

from hashlib import blake2b
from math import exp, log
from struct import unpack_from
from typing import Final

TOKEN_BYTES: Final = 4

_WORDS: Final = (
    "the and for you are but not all any can her was one our out day get has him his how man new now old see two way "
    "who boy did its let put say she too use air arm art ask bag bed big box bus buy car cat cup cut dog dry ear eat "
    "egg end eye far few fly fun gas hat hot ice job key law leg lie low map may mix mud net nor oak odd off oil own "
    "pay pen pot ran raw red rib row run sad sea set shy sir sit six sky son sum sun tea ten tie tin tip toe top toy "
    "try van war wet why win yes yet zoo add age ago aid aim bar bay"
)
_VOCABULARY: Final = tuple(f"{word} ".encode() for word in _WORDS.split())
"""128 words of three letters and a space: one token each."""

_END_OF_MESSAGE: Final = b"<|e|"
_ASSISTANT: Final = b"<|assistant|>\0\0\0"

_SHORTEST: Final = 20
_LONGEST: Final = 400
_MEDIAN: Final = 110.0
_SPREAD: Final = 0.7


def pad(data: bytes) -> bytes:
    """Return *data* filled up to whole tokens."""
    return data + b"\0" * (-len(data) % TOKEN_BYTES)


def render_chat(messages: list[tuple[str, str]]) -> bytes:
    """Render (role, content) pairs as the model's prompt: a few tokens more for each than its content has."""
    parts = []
    for role, content in messages:
        parts += [pad(f"<|{role}|>".encode()), pad(content.encode()), _END_OF_MESSAGE]
    parts.append(_ASSISTANT)
    return b"".join(parts)


def token_count(data: bytes) -> int:
    """Tokens of *data*: one per four bytes, the last one may be shorter."""
    return -(-len(data) // TOKEN_BYTES)


def token_ids(data: bytes) -> list[int]:
    """Return the tokens of *data* as numbers."""
    whole = len(data) // TOKEN_BYTES
    numbers = list(unpack_from(f">{whole}I", data))
    rest = data[whole * TOKEN_BYTES :]
    return [*numbers, int.from_bytes(rest, "big")] if rest else numbers


def natural_length(seed: int, prompt: bytes) -> int:
    """Tokens after which the model stops by itself: log-normal, median 110, from 20 to 400."""
    digest = blake2b(prompt, digest_size=12, key=_key(seed, "length")).digest()
    normal = sum(digest) / 255 - 6  # twelve uniform numbers less six are nearly normal
    return max(_SHORTEST, min(_LONGEST, round(_MEDIAN * exp(_SPREAD * normal))))


def output(seed: int, prompt: bytes, tokens: int, purpose: str = "text") -> bytes:
    """Return what the model says to *prompt*: *tokens* tokens of four bytes. The same for the same seed and prompt."""
    base = blake2b(prompt, digest_size=32, key=_key(seed, purpose)).digest()
    words = _VOCABULARY
    parts: list[bytes] = []
    for start in range(0, tokens, 64):
        block = blake2b(base + start.to_bytes(8, "big")).digest()
        parts += [words[byte & 127] for byte in block[: tokens - start]]
    return b"".join(parts)


def seed_of_choice(seed: int, index: int) -> int:
    """Return the seed of the choice number *index*; the first one's is *seed* itself."""
    return seed if not index else seed ^ (index << 32)


def log_probability() -> float:
    """Return the natural logarithm of the probability of every token: all words are equally likely."""
    return -log(len(_VOCABULARY))


def alternatives(count: int) -> list[bytes]:
    """Return *count* of the most likely tokens; as all are, the first ones of the vocabulary."""
    return list(_VOCABULARY[:count])


def block_hashes(data: bytes, block_size: int) -> tuple[int, ...]:
    """Return a number for each full block of *data* that stands for the block and everything before it.

    The numbers mean something in this process only.
    """
    width = block_size * TOKEN_BYTES
    hashes, parent = [], 0
    for start in range(0, len(data) - width + 1, width):
        parent = hash((parent, data[start : start + width]))
        hashes.append(parent)
    return tuple(hashes)


def _key(seed: int, purpose: str) -> bytes:
    return f"{purpose}-{seed}".encode()
