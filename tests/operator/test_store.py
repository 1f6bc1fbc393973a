"""The store of observed objects: events late, twice, out of order, or missing."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from support.operator_values import Fleet, raw_deployment
from turnout.terms import LABEL_DEPLOYMENT
from turnout_operator.kube.kinds import DEPLOYMENT, LLM_DEPLOYMENT, POD
from turnout_operator.observe.store import Key, Store
from turnout_operator.plan.observed import observed_pools
from turnout_operator.plan.pods import observed_pod


def thing(name: str = "a", version: int = 1, uid: str = "u", owner: str = "llama") -> dict[str, Any]:
    meta = {
        "namespace": "ns",
        "name": name,
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {LABEL_DEPLOYMENT: owner},
    }
    return {"metadata": {**meta, "managedFields": ["long"]}}


def test_an_older_version_changes_nothing() -> None:
    """What a late event shows does not undo what a newer one showed."""
    store = Store()
    assert store.put(POD, thing(version=10))
    assert not store.put(POD, thing(version=9))
    assert store.put(POD, thing(version=11))


def test_what_was_deleted_does_not_come_back() -> None:
    """The answer to our own write may arrive after the deletion that followed it."""
    store = Store()
    store.put(POD, thing(version=1))
    store.remove(POD, thing(version=2))
    assert not store.put(POD, thing(version=3))
    assert store.put(POD, thing(version=4, uid="another"))


def test_what_only_left_the_selector_comes_back() -> None:
    """A watch by label reports an object that lost the label as deleted; reading the object corrects that."""
    store = Store()
    store.put(POD, thing(version=1))
    store.remove(POD, thing(version=2))
    store.revive("u")
    assert store.put(POD, thing(version=3))


def test_a_list_settles_what_a_watch_left_out() -> None:
    """Objects that are not on a full list are gone, and their owner is looked at; newcomers since are kept."""
    store = Store()
    store.put(DEPLOYMENT, thing("kept", 1, "1"))
    store.put(DEPLOYMENT, thing("lost", 1, "2"))
    known = store.keys(DEPLOYMENT)
    store.put(DEPLOYMENT, thing("new", 5, "3"))
    touched = store.replace(DEPLOYMENT, [thing("kept", 1, "1")], known)
    assert touched == {Key("ns", "llama")}
    assert {key.name for key in store.keys(DEPLOYMENT)} == {"kept", "new"}


def test_children_are_found_by_owner() -> None:
    """Owned objects follow their label, also when it changes."""
    store = Store()
    store.put(POD, thing("p", 1))
    assert len(store.pods(Key("ns", "llama"))) == 1
    store.put(POD, thing("p", 2, owner="other"))
    assert store.pods(Key("ns", "llama")) == ()
    assert len(store.pods(Key("ns", "other"))) == 1
    assert store.concerned(POD, thing()) == (Key("ns", "llama"),)
    assert store.concerned(LLM_DEPLOYMENT, thing("llama")) == (Key("ns", "llama"),)


def test_field_managers_are_not_kept() -> None:
    """The greater part of an object is managedFields, which the operator does not read."""
    store = Store()
    store.put(POD, thing())
    assert "managedFields" not in store.all(POD)[0]["metadata"]


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=30))
def test_order_does_not_matter(events: list[tuple[int, bool]]) -> None:
    """Whatever the order of one object's events, it is there unless it was deleted, at its newest version."""
    store = Store()
    for version, deleted in events:
        (store.remove if deleted else store.put)(POD, thing(version=version))
    if any(deleted for _, deleted in events):
        assert store.get(POD, Key("ns", "a")) is None
    elif events:
        found = store.get(POD, Key("ns", "a"))
        assert found is not None
        assert found["metadata"]["resourceVersion"] == str(max(version for version, _ in events))


def test_what_is_kept_of_an_object_is_all_that_is_read() -> None:
    """Pods and pools are observed alike from the whole object and from what the store keeps of it."""
    fleet = Fleet(raw_deployment())
    for _ in range(3):
        fleet.step()
    store = Store()
    for pod in fleet.pods.values():
        pod["status"] |= {
            "podIP": "10.0.0.1",
            "qosClass": "BestEffort",
            "containerStatuses": [
                {
                    "name": "worker",
                    "restartCount": 3,
                    "state": {"terminated": {"exitCode": 1, "message": "no"}},
                }
            ],
        }
        store.put(POD, pod)
        kept = store.get(POD, Key("models", pod["metadata"]["name"]))
        assert kept is not None
        seen = observed_pod(pod)
        assert seen is not None
        assert seen.arguments
        assert seen.facts
        assert observed_pod(kept) == seen
        assert "nodeSelector" in pod["spec"]
        assert "nodeSelector" not in kept["spec"]
        assert "qosClass" not in kept["status"]
    for (kind, name), child in fleet.children.items():
        if kind == "Deployment":
            child["status"] = {
                "replicas": 2,
                "conditions": [{"type": "ReplicaFailure", "status": "True", "message": "no"}],
            }
            store.put(DEPLOYMENT, child)
            kept = store.get(DEPLOYMENT, Key("models", name))
            assert kept is not None
            assert observed_pools([kept], [])[0].refused == "no"
            assert kept["spec"] == child["spec"]
