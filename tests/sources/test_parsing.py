"""A source's text and its value say the same, and a wrong text is refused with what to write."""

from __future__ import annotations

import pytest

from support.api_sources import RIGHT_SOURCES, WRONG_SOURCES
from turnout.quantities import size_bytes
from turnout.sources import InvalidSourceError, Source, parse_source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://Qwen/Qwen3-32B", Source("hf", "Qwen/Qwen3-32B")),
        ("pvc://models", Source("pvc", "models")),
        ("pvc://models/llama/v1/", Source("pvc", "models", "llama/v1")),
        ("s3://bucket/a/b", Source("s3", "bucket", "a/b")),
        ("gs://my_bucket", Source("gs", "my_bucket")),
        ("oci://localhost:5000/llama:1", Source("oci", "localhost:5000/llama:1")),
        ("file:///models/llama", Source("file", "", "/models/llama")),
    ],
)
def test_parts(text: str, source: Source) -> None:
    """Each scheme's parts are where the worker and the operator look for them."""
    assert parse_source(text) == source


@pytest.mark.parametrize("text", RIGHT_SOURCES)
def test_text_of_a_value(text: str) -> None:
    """The text of a value is the text it was read from, but for a slash at the end."""
    assert str(parse_source(text)) == text.rstrip("/")


@pytest.mark.parametrize(("text", "says"), WRONG_SOURCES.items())
def test_wrong(text: str, says: str) -> None:
    """What the API refuses is refused by the command line with the same sentence."""
    with pytest.raises(InvalidSourceError) as refusal:
        parse_source(text)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "size"), [("1Mi", 2**20), ("200Gi", 200 * 2**30), ("2T", 2 * 10**12), ("3M", 3_000_000)]
)
def test_sizes(text: str, size: int) -> None:
    """Kubernetes' units, decimal and binary."""
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0Gi", "1.5Gi", "200", "200GB", "Gi", "-1Gi"])
def test_wrong_sizes(text: str) -> None:
    """Another form is refused with one that is accepted."""
    with pytest.raises(ValueError, match="200Gi"):
        size_bytes(text)
