"""Whose an object is that has a child's name or labels."""

from __future__ import annotations

from typing import Any

import pytest

from turnout import terms
from turnout_operator.plan.ownership import owns

OWNER = {"name": "llama", "uid": "now"}
LABELS = {terms.LABEL_MANAGED_BY: terms.FIELD_MANAGER, terms.LABEL_DEPLOYMENT: "llama"}


def reference(kind: str, name: str, uid: str, *, controller: bool = True) -> dict[str, Any]:
    return {"kind": kind, "name": name, "uid": uid, "controller": controller}


@pytest.mark.parametrize(
    ("labels", "references", "expected"),
    [
        (LABELS, [reference("LLMDeployment", "llama", "now")], True),
        ({}, [reference("LLMDeployment", "llama", "now")], True),
        (LABELS, [], True),
        (LABELS, [reference("LLMDeployment", "llama", "before")], True),
        (LABELS, [reference("Node", "n", "x", controller=False)], True),
        (LABELS, [reference("LLMDeployment", "other", "x")], False),
        (LABELS, [reference("Helm", "llama", "x")], False),
        ({}, [], False),
        ({terms.LABEL_MANAGED_BY: "Helm", terms.LABEL_DEPLOYMENT: "llama"}, [], False),
        ({**LABELS, terms.LABEL_DEPLOYMENT: "other"}, [], False),
    ],
    ids=[
        "owned",
        "owned though its labels were taken off",
        "left behind by a deletion that orphans",
        "of a namesake that was deleted",
        "with another owner that does not control it",
        "of another deployment",
        "of another controller",
        "another's",
        "another's with one label alike",
        "left behind by another deployment",
    ],
)
def test_whose_it_is(labels: dict[str, str], references: list[dict[str, Any]], expected: bool) -> None:  # noqa: FBT001 - a table's column
    """Only what is provably the deployment's own, or was made for it, is written to or deleted."""
    child = {"metadata": {"name": "llama-decode", "labels": labels, "ownerReferences": references}}
    assert owns(OWNER, child) is expected


def test_objects_without_labels_are_strangers() -> None:
    """The API server leaves empty lists and mappings out."""
    assert not owns(OWNER, {"metadata": {"name": "llama-decode"}})
