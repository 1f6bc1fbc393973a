"""What a pooling model would answer: embeddings, scores, rankings. Simulated, and marked so in every answer.

A text's vector counts its words, each hashed to one of 256 dimensions and a sign, and has length 1: the same text
has the same vector, texts that share words lie close together, and nothing else is meant by it. A score is the
cosine of two vectors. The engine computes every text as a prompt, so that it takes the time that a prompt takes.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from hashlib import blake2b
from math import sqrt
from typing import Any, Final, Literal

from turnout_worker.errors import BadRequestError
from turnout_worker.text import TOKEN_BYTES, token_count

DIMENSIONS: Final = 256
MAX_TEXTS: Final = 2048
"""Most texts in one request, as at OpenAI."""

PoolingKind = Literal["embed", "score", "rerank"]
_ONE: Final = ("queries", "text_1", "data_1")
_OTHER: Final = ("documents", "items", "text_2", "data_2")
_SIMULATED: Final = {"simulated": True}


@dataclass(frozen=True, slots=True)
class PoolingRequest:
    """A pooling request, understood. `texts` are computed; scores are of `pairs` of them, by index."""

    kind: PoolingKind
    texts: tuple[bytes, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    dimensions: int = DIMENSIONS
    base64: bool = False
    top: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(max(1, token_count(one)) for one in self.texts)


def parse(fields: dict[str, Any], kind: PoolingKind, max_length: int) -> PoolingRequest:
    """Understand *fields*. Raise BadRequestError that says what is wrong."""
    if kind == "embed":
        request = _embedding(fields)
    elif kind == "rerank":
        documents = _texts(fields, "documents")
        query = _texts(fields, "query")
        if len(query) != 1:
            raise BadRequestError("query must be one text", "query")
        pairs = tuple((0, 1 + index) for index in range(len(documents)))
        request = PoolingRequest(
            "rerank", (*query, *documents), pairs, top=_number(fields, "top_n", 0, MAX_TEXTS)
        )
    else:
        request = _scoring(fields)
    for one in request.texts:
        if token_count(one) > max_length:
            raise BadRequestError(
                f"This model's maximum context length is {max_length} tokens. However, a text has {token_count(one)}.",
                "input",
            )
    return request


def answer(request: PoolingRequest, model: str, request_id: str, created: int) -> dict[str, Any]:
    """Return the answer to *request*."""
    usage = {"prompt_tokens": request.tokens, "total_tokens": request.tokens, **_SIMULATED}
    vectors = [embed(one, request.dimensions) for one in request.texts]
    if request.kind == "embed":
        data: list[dict[str, Any]] = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _encoded(vector) if request.base64 else vector,
            }
            for index, vector in enumerate(vectors)
        ]
        common = {"id": f"embd-{request_id}", "object": "list", "created": created, "model": model}
        return {**common, "data": data, "usage": usage, **_SIMULATED}
    scores = [cosine(vectors[one], vectors[other]) for one, other in request.pairs]
    if request.kind == "score":
        data = [{"object": "score", "index": index, "score": score} for index, score in enumerate(scores)]
        common = {"id": f"score-{request_id}", "object": "list", "created": created, "model": model}
        return {**common, "data": data, "usage": usage, **_SIMULATED}
    results = [
        {
            "index": index,
            "document": {"text": request.texts[1 + index].decode(errors="replace")},
            "relevance_score": score,
        }
        for index, score in sorted(enumerate(scores), key=lambda entry: (-entry[1], entry[0]))
    ]
    results = results[: request.top or None]
    return {"id": f"rerank-{request_id}", "model": model, "results": results, "usage": usage, **_SIMULATED}


def embed(one: bytes, dimensions: int = DIMENSIONS) -> list[float]:
    """Return the vector of a text: its hashed words, counted, scaled to length 1."""
    vector = [0.0] * dimensions
    for word in one.lower().split() or [one]:
        digest = blake2b(word, digest_size=5).digest()
        place = int.from_bytes(digest[:4], "big") % dimensions
        vector[place] += 1.0 if digest[4] & 1 else -1.0
    length = sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else vector


def cosine(one: list[float], other: list[float]) -> float:
    """Return the cosine of two vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def _embedding(fields: dict[str, Any]) -> PoolingRequest:
    encoding = fields.get("encoding_format") or "float"
    if encoding not in {"float", "base64"}:
        raise BadRequestError("encoding_format must be float or base64", "encoding_format")
    dimensions = _number(fields, "dimensions", DIMENSIONS, DIMENSIONS) or DIMENSIONS
    return PoolingRequest(
        "embed", _texts(fields, "input"), dimensions=dimensions, base64=encoding == "base64"
    )


def _scoring(fields: dict[str, Any]) -> PoolingRequest:
    ones = _texts(fields, next((name for name in _ONE if name in fields), _ONE[0]))
    others = _texts(fields, next((name for name in _OTHER if name in fields), _OTHER[0]))
    count = max(len(ones), len(others))
    if len(ones) not in {1, count} or len(others) != count:
        raise BadRequestError("queries must be one text, or as many as there are documents", "queries")
    pairs = tuple((min(index, len(ones) - 1), len(ones) + index) for index in range(count))
    return PoolingRequest("score", (*ones, *others), pairs)


def _texts(fields: dict[str, Any], name: str) -> tuple[bytes, ...]:
    """Return the texts in field *name*: one, a list of them, token ids, or lists of token ids."""
    value = fields.get(name)
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        value = [value]
    if not isinstance(value, list) or not value or len(value) > MAX_TEXTS:
        raise BadRequestError(f"{name} must be a text or a list of 1 to {MAX_TEXTS} texts", name)
    return tuple(_text(name, one) for one in value)


def _text(name: str, one: object) -> bytes:
    if isinstance(one, str) and one:
        return one.encode()
    if isinstance(one, list) and one and all(type(t) is int and 0 <= t < 2**32 for t in one):
        return b"".join(token.to_bytes(TOKEN_BYTES, "big") for token in one)
    raise BadRequestError(f"{name} must hold non-empty texts or lists of token ids", name)


def _number(fields: dict[str, Any], name: str, default: int, most: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if type(value) is not int or not 0 <= value <= most:
        raise BadRequestError(f"{name} must be a whole number from 0 to {most}, got {value!r}", name)
    return value


def _encoded(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
