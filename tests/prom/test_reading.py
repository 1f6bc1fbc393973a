"""The lean readers of Prometheus' text format: what they find, and that no page costs more than its length."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from turnout_prom.exposition import Excerpt, samples
from turnout_prom.search import PageError, search, total


@given(
    values=st.dictionaries(
        st.text(max_size=12),
        st.floats(allow_nan=False),
        max_size=5,
    )
)
def test_the_lean_reader_agrees_with_the_library(values: dict[str, float]) -> None:
    """Labels with quotes, backslashes, newlines and braces, and values of any size, are read as prometheus_client does."""
    registry = CollectorRegistry()
    gauge = Gauge("wanted", "help", ("label",), registry=registry)
    Gauge("other", "help", registry=registry).set(1)
    for label, value in values.items():
        gauge.labels(label).set(value)
    text = generate_latest(registry).decode()
    expected = {
        (sample.labels["label"], sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "wanted"
    }
    assert {(sample.labels["label"], sample.value) for sample in samples(text, {"wanted"})} == expected


@given(
    lines=st.lists(
        st.sampled_from(
            [
                'wanted{a="b"} 1',
                "wanted 2",
                "wanted_more 3",
                "# wanted 4",
                "",
                "wanted{",
                "other 5",
                "wanted\t6",
            ]
        ),
        max_size=30,
    ),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    end=st.sampled_from(["", "\n"]),
)
def test_a_page_in_pieces_is_the_same_page(lines: list[str], cuts: list[int], end: str) -> None:
    """Wherever it is cut, the lines that matter are kept, and no others."""
    text = "\n".join(lines) + end
    excerpt = Excerpt({"wanted"}, max_bytes=10_000, max_kept=10_000)
    for start, stop in itertools.pairwise([0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]):
        excerpt.add(text[start:stop].encode())
    kept = excerpt.text()
    assert list(samples(kept, {"wanted"})) == list(samples(text, {"wanted"}))
    assert "other" not in kept


@pytest.mark.parametrize(
    "line",
    [
        "wanted{" + "a" * 8000 + "} 1",
        "wanted{" + 'a="\\' * 2000 + "} 1",
        "wanted{" + 'a="b",' * 1300 + "} 1",
        "wanted{" + " " * 8000 + "} 1",
        "wanted{" + 'a="' + "\\" * 7900 + "} 1",
    ],
    ids=["a name without end", "open quotes", "many labels", "blanks", "backslashes"],
)
def test_the_time_for_a_line_grows_with_its_length_alone(line: str) -> None:
    """Sixteen such lines are all that a worker's page may have of them; they take milliseconds."""
    began = time.process_time()
    assert len(list(samples("\n".join([line] * 16), {"wanted"}))) == 16
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "text",
    ["", "wanted", "wanted{", "wanted{a=", 'wanted{a="b"}', "wanted x", "# wanted 1", "\x00", "wanted} 1"],
)
def test_garbage_is_skipped(text: str) -> None:
    """A page that is none raises nothing."""
    assert list(samples(text, {"wanted"})) == []


@given(values=st.dictionaries(st.text(max_size=12), st.floats(allow_nan=False), min_size=1, max_size=5))
def test_what_is_searched_for_is_found_with_its_values(values: dict[str, float]) -> None:
    """Whatever the labels hold, each sample of the name is found, in the page's order, and none of a longer name."""
    registry = CollectorRegistry()
    Gauge("wanted_more", "help", ("label",), registry=registry).labels("x").set(1)
    gauge = Gauge("wanted", "help", ("label",), registry=registry)
    for label, value in values.items():
        gauge.labels(label).set(value)
    page = generate_latest(registry)
    assert [value for _, value in search(page, b"wanted")] == list(values.values())
    assert total(page, b"wanted_more") == 1
    assert total(page, b"wanted_less") is None


@pytest.mark.parametrize("page", [b"wanted{} x", b"wanted{", b"wanted{" + b"a" * 20_000, b"wanted{} 1\n" * 3])
def test_a_search_refuses_what_is_no_sample_or_too_much(page: bytes) -> None:
    """What has no value, no end, or comes more often than allowed raises an error of its own."""
    with pytest.raises(PageError):
        list(search(page, b"wanted", most=2))
