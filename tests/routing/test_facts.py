"""What several workers say of one model, put together."""

from __future__ import annotations

import pytest

from turnout.routing.facts import ModelCard, ModelFacts, model_facts


def base(length: int | None = 4096, root: str | None = "/models/a", created: int | None = 7) -> ModelCard:
    return ModelCard("tiny", root, None, length, created)


@pytest.mark.parametrize(
    ("reports", "length"),
    [
        ([], None),
        ([("a", None)], None),
        ([("a", 4096)], 4096),
        ([("a", 4096), ("a", 2048)], 2048),
        ([("a", 4096), ("a", None)], 4096),
        ([("a", 4096), ("a", 4096), ("a", 1)], 4096),
        ([("a", 4096), ("a", 4096), ("a", 2_000_000_000)], 4096),
        ([("a", 4096), ("a", 4096), ("b", 2048)], 2048),
        ([("a", 4096), ("a", 4096), ("a", 1), ("b", 8192)], 4096),
    ],
    ids=[
        "no worker",
        "does not say",
        "one",
        "two that differ",
        "one does not say",
        "one errs, too little",
        "one errs, too much",
        "a rollout to less",
        "a rollout to more",
    ],
)
def test_the_context_is_what_any_worker_takes(
    reports: list[tuple[str, int | None]], length: int | None
) -> None:
    """The least of the revisions, each by most of its workers: one worker that errs has no say among three."""
    assert model_facts([(revision, [base(each)]) for revision, each in reports]).max_model_len == length


def test_adapters_are_reported_from_the_model() -> None:
    """A worker lists them in any order; what is no adapter of the deployment and has a parent is left out."""
    sql = ModelCard("sql", "/adapters/sql", "tiny")
    french = ModelCard("fr", None, None)
    unknown = ModelCard("other", "/adapters/other", "tiny", 1)
    facts = model_facts([("a", [sql, french, unknown, base()])], {"sql", "fr", "gone"})
    assert facts == ModelFacts(4096, "/models/a", 7, {"sql": sql, "fr": french})


def test_what_most_say_holds() -> None:
    """The root by the number of workers, the earliest time of creation; equal numbers are settled alike everywhere."""
    facts = model_facts(
        [("a", [base(root="/b", created=9)]), ("a", [base(root="/a")]), ("a", [base(root="/b")])]
    )
    assert (facts.root, facts.created) == ("/b", 7)
    for order in (["/b", "/a"], ["/a", "/b"]):
        assert model_facts([("a", [base(root=root)]) for root in order]).root == "/a"
    assert model_facts([("a", [])]) == ModelFacts()
