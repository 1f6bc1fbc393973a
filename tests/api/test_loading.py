"""Objects of another schema load; what cannot be used ends in one line, and in nothing worse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.api_manifests import aggregated, deployment, edited
from turnout.api import InvalidResource, LLMDeployment, load_budget, load_deployment
from turnout.quantities import seconds

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "metadata", "metadata.name", "spec", "spec.model", "spec.model.servedNames", "spec.engine", "spec.prefill",
    "spec.decode.replicas", "spec.scaling", "spec.scaling.maxAccelerators", "spec.scaling.prefillToDecode",
    "spec.slo.timeToFirstToken", "status", "status.conditions",
]  # fmt: skip


def test_object_of_a_newer_schema_loads() -> None:
    """Fields that this version does not know are left out, at every depth."""
    newer = edited(
        deployment(),
        {
            "spec.adapters": [{"name": "sql"}],
            "spec.decode.parallelism": {"data": 2},
            "status": {"phase": "Fine"},
        },
    )
    assert load_deployment(newer).spec == load_deployment(deployment()).spec


def test_object_of_an_older_schema_loads() -> None:
    """Fields that an older version had not yet are filled in with their defaults."""
    loaded = load_deployment(edited(aggregated(), {"spec.scaling": {"mode": "Paused"}}))
    assert loaded.spec.scaling.scale_down.stabilization == "5m"
    assert loaded.spec.slo.goodput_percent == 99


def test_metadata_of_the_api_server_is_read() -> None:
    """What decisions need of the metadata is there, whatever else the API server keeps in it."""
    loaded = load_deployment(
        edited(
            deployment(),
            {
                "metadata.namespace": "team-a",
                "metadata.uid": "u",
                "metadata.generation": 3,
                "metadata.creationTimestamp": "2026-01-02T03:04:05Z",
                "metadata.managedFields": [{"manager": "kubectl"}],
            },
        )
    )
    assert loaded.key == "team-a/case"
    assert (loaded.metadata.uid, loaded.metadata.generation) == ("u", 3)
    assert loaded.metadata.creation_timestamp == "2026-01-02T03:04:05Z"


def test_message_names_each_fault_on_one_line() -> None:
    """A condition can carry the message: one line, each fault with the path that stands in the manifest."""
    faulty = edited(
        deployment(),
        {
            "spec.slo.timeToFirstToken": "soon",
            "spec.decode.replicas": {"min": 3},
            "spec.scaling.maxAccelerators": 0,
        },
    )
    with pytest.raises(InvalidResource) as refusal:
        load_deployment(faulty)
    message = str(refusal.value)
    assert "\n" not in message
    assert "spec.slo.timeToFirstToken: not a duration: write" in message
    assert "spec.decode.replicas: replicas.min is greater than replicas.max" in message
    assert "spec.scaling.maxAccelerators: " in message


def test_message_is_bounded() -> None:
    """A hundred faults do not make a message that no condition could hold."""
    keys = [{"name": "", "sha256": "no digest"} for _ in range(50)]
    with pytest.raises(InvalidResource, match="and 92 more") as refusal:
        load_budget({"metadata": {"name": "a"}, "spec": {"keys": keys}})
    assert len(str(refusal.value)) < 4096


def test_what_is_written_loads_again() -> None:
    """A resource survives the way out and back in."""
    first = load_deployment(deployment())
    assert LLMDeployment.model_validate(first.model_dump(by_alias=True)) == first


@given(st.sampled_from(FIELDS), ANYTHING)
def test_nothing_worse_than_a_refusal(field: str, value: Any) -> None:
    """Whatever stands in a field, loading ends with a resource or with InvalidResource."""
    try:
        load_deployment(edited(deployment(), {field: value}))
    except InvalidResource as refusal:
        assert refusal.args  # noqa: PT017 - it may be raised, and need not be


@pytest.mark.parametrize(
    ("text", "expected"), [("500ms", 0.5), ("90s", 90), ("1h2m3s4ms", 3723.004), ("0s", 0), ("5m", 300)]
)
def test_durations_in_seconds(text: str, expected: float) -> None:
    """A duration is worth the sum of its parts."""
    assert seconds(text) == pytest.approx(expected)
