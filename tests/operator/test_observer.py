"""What is known of a deployment is put together once, and anew as soon as any part of it has changed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import pytest

from support.operator_values import Fleet, raw_deployment
from turnout.terms import LABEL_DEPLOYMENT
from turnout_operator.kube.kinds import LLM_DEPLOYMENT, POD, kind_of
from turnout_operator.load.collector import Collector
from turnout_operator.name_claims import NameClaims
from turnout_operator.observe import observer as module
from turnout_operator.observe.observer import Observer
from turnout_operator.observe.store import Key, Store

if TYPE_CHECKING:
    from turnout_operator.plan.observed import Observed
    from turnout_runtime.supervision import Supervisor

KEY = Key("models", "llama")


class World:
    """A store with a deployment that serves, and its observer."""

    def __init__(self) -> None:
        self.store = Store()
        self.collector = Collector(cast("Supervisor", None))
        self.name_claims = NameClaims(self.store)
        self.observer = Observer(self.store, self.collector, self.name_claims)
        self.version = 0
        self.fleet = Fleet(raw_deployment())
        for _ in range(3):
            self.fleet.step()
        self.raw = copy.deepcopy(self.fleet.raw)
        self.put(self.raw)
        for child in self.fleet.children.values():
            self.put(copy.deepcopy(child))
        for pod in self.fleet.pods.values():
            self.put({**copy.deepcopy(pod), "kind": "Pod"})
        self.settle()

    def put(self, raw: dict[str, Any]) -> None:
        self.version += 1
        raw["metadata"]["resourceVersion"] = str(self.version)
        self.store.put(kind_of(raw), raw)

    def settle(self) -> None:
        self.name_claims.look_at_all()
        self.name_claims.assign()

    def observed(self) -> Observed:
        found = self.observer.observe(KEY)
        assert found is not None
        return found


def test_it_is_what_a_plan_needs() -> None:
    """Pods, pools and names are found by what they belong to; what is kept of them is enough to find nothing to do."""
    world = World()
    seen = world.observed()
    assert (len(seen.pods), len(seen.pools)) == (3, 2)
    assert seen.names.served == ("llama",)
    assert dict(seen.desired) == {"prefill": 1, "decode": 2}
    assert not world.fleet.plan().apply


def test_nothing_is_made_anew_while_nothing_changes() -> None:
    """Scaling and reconciling see the very same values."""
    world = World()
    assert world.observed() is world.observed()
    before = world.observed()
    world.put({**raw_deployment("other"), "kind": "LLMDeployment"})
    assert world.observed() is before


async def test_every_change_is_seen() -> None:
    """Of the deployment, of a child, of a pod, of the load, and of the assignment of its name."""
    world = World()
    seen = [world.observed()]

    def changed() -> Observed:
        now = world.observed()
        assert all(now is not before for before in seen)
        seen.append(now)
        return now

    pod = copy.deepcopy(next(iter(world.fleet.pods.values())))
    pod["status"] = {"phase": "Pending"}
    world.put({**pod, "kind": "Pod"})
    assert sum(item.ready for item in changed().pods) == 2
    world.store.remove(POD, pod)
    assert len(changed().pods) == 2
    child = copy.deepcopy(
        next(item for (kind, _), item in world.fleet.children.items() if kind == "Deployment")
    )
    child["spec"]["replicas"] = 7
    world.put(child)
    assert 7 in [pool.replicas for pool in changed().pools]
    child["metadata"]["labels"].pop(LABEL_DEPLOYMENT)
    world.put(child)
    assert len(changed().pools) == 1
    await world.collector.read(KEY, [], 1)
    changed()
    rival = raw_deployment("rival", model={**world.raw["spec"]["model"], "servedNames": ["llama", "other"]})
    rival["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    world.put({**rival, "kind": "LLMDeployment"})
    world.store.remove(LLM_DEPLOYMENT, world.raw)
    world.settle()
    assert world.observer.observe(KEY) is None
    again = copy.deepcopy(world.raw)
    again["metadata"]["uid"] = "another"
    world.put(again)
    world.settle()
    assert changed().deployment.metadata.uid == "another"
    assert world.observed().names.served == ()
    world.store.remove(LLM_DEPLOYMENT, rival)
    world.settle()
    assert changed().names.served == ("llama",)


def test_a_spec_is_parsed_once_per_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that cannot be used, which says why each time."""
    world = World()
    parsed: list[str] = []
    load = module.load_deployment

    def counting(raw: Any) -> Any:
        parsed.append(raw["metadata"]["resourceVersion"])
        return load(raw)

    monkeypatch.setattr(module, "load_deployment", counting)
    raw = copy.deepcopy(world.raw)
    raw["spec"]["decode"]["replicas"]["max"] = 0
    world.put(raw)
    messages = set()
    for _ in range(3):
        with pytest.raises(ValueError, match="replicas") as caught:
            world.observed()
        messages.add(str(caught.value))
    assert len(messages) == 1
    world.put(copy.deepcopy(world.raw))
    first = world.observed()
    world.store.remove(POD, next(iter(world.fleet.pods.values())))
    assert world.observed().deployment is first.deployment
    assert len(parsed) == 2
