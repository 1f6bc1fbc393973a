"""Writes that do not last: admission is accepted, people are corrected at once, other controllers ever more rarely."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.operator_values import CONFIG, raw_deployment
from turnout_operator.effects import Executor
from turnout_operator.errors import Forbidden, NotFound
from turnout_operator.kube.kinds import DEPLOYMENT, LLM_DEPLOYMENT, POD, Kind, kind_of
from turnout_operator.load.collector import Collector
from turnout_operator.metrics import Metrics
from turnout_operator.name_claims import NameClaims
from turnout_operator.observe.observer import Observer
from turnout_operator.observe.store import Key, Store
from turnout_operator.plan import write_conflicts
from turnout_operator.plan.drift import Deviation, deviations, holds
from turnout_operator.plan.effects import Plan, PodPatch
from turnout_operator.plan.pods import observed_pod
from turnout_operator.plan.status import condition
from turnout_operator.plan.write_conflicts import (
    WriteRecord,
    due_in,
    manager_of,
    pause,
    quiet_seconds,
    sentences,
    written,
)
from turnout_operator.reconciler import Reconciler
from turnout_operator.write_history import WriteHistory

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout_operator.kube.client import KubeClient
    from turnout_operator.scaler import Scaler
    from turnout_runtime.supervision import Supervisor

KEY = Key("models", "llama")
IMAGE = ("spec", "template", "spec", "containers", "[name=worker]", "image")
MIRRORED = (Deviation(IMAGE, "mirror/worker:1", "worker:1"),)
EDITED = (Deviation(IMAGE, "evil:1", "worker:1"),)


# What differs.


@pytest.mark.parametrize(
    ("live", "wanted", "fields"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["a"]),
        ({}, {"a": False}, ["a"]),
        ({}, {"a": {}, "b": [], "c": None, "d": ""}, []),
        ({"a": {"b": {}}}, {"a": {"b": {"c": 1}}}, ["a.b.c"]),
        ({"l": [{"name": "x", "v": 1}]}, {"l": [{"name": "x", "v": 2}]}, ["l[name=x].v"]),
        ({"l": [{"name": "x"}]}, {"l": [{"name": "y"}]}, ["l[name=y]"]),
        ({"l": [{"name": "x"}, {"name": "sidecar"}]}, {"l": [{"name": "x"}]}, []),
        ({"l": ["a", "b"]}, {"l": ["a"]}, ["l"]),
        ({"l": ["a"]}, {"l": []}, ["l"]),
        ({"limits": {"cpu": "500m", "memory": "1Gi"}}, {"limits": {"cpu": "0.5", "memory": "1024Mi"}}, []),
        ({"requests": {"cpu": "2"}}, {"requests": {"cpu": 2}}, []),
        ({"requests": {"cpu": "600m"}}, {"requests": {"cpu": "0.5"}}, ["requests.cpu"]),
        ({"args": {"cpu": "500m"}}, {"args": {"cpu": "0.5"}}, ["args.cpu"]),
    ],
)
def test_what_differs_is_named(live: Any, wanted: Any, fields: list[str]) -> None:
    """Down to the field; what the API server leaves out or writes in another way is the same."""
    assert [item.field for item in deviations(live, wanted)] == fields
    assert holds(live, wanted) == (not fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_everything_holds_itself(value: dict[str, Any]) -> None:
    """Whatever was applied, an answer that equals it lacks nothing."""
    assert deviations(value, value) == ()


# When it is written.


def test_what_admission_changes_is_written_once() -> None:
    """The answer to the write shows it; the same difference later is no reason to write, any other is."""
    first = written(None, "v1", [], MIRRORED, 0.0)
    assert due_in(first, "v1", MIRRORED, 1.0) is None
    assert due_in(first, "v1", EDITED, 1.0) == 0.0
    assert due_in(first, "v2", MIRRORED, 1.0) == 0.0
    assert due_in(None, "v1", MIRRORED, 1.0) == 0.0


def test_who_edits_again_and_again_is_put_back_ever_more_rarely() -> None:
    """Three times at once; then with pauses from 10 s to 10 min; a quiet time starts it over."""
    now, writing, times = 0.0, written(None, "v", [], (), 0.0), []
    for _ in range(12):
        delay = due_in(writing, "v", EDITED, now)
        assert delay is not None
        now += delay
        times.append(delay)
        writing = written(writing, "v", EDITED, (), now)
    assert times == [0.0, 0.0, 0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0, 600.0]
    assert write_conflicts.is_contested(writing, now)
    later = now + quiet_seconds(writing) + 1
    assert not write_conflicts.is_contested(writing, later)
    assert due_in(writing, "v", EDITED, later) == 0.0
    assert written(writing, "v", EDITED, (), later).repairs == 1


@given(st.lists(st.floats(0.0, 1000.0), max_size=60))
def test_writes_are_bounded_whatever_the_other_does(edits: list[float]) -> None:
    """In any time of an hour no more than a handful of repairs of one content, however fast it is edited."""
    now, writing, repairs = 0.0, written(None, "v", [], (), 0.0), []
    for gap in edits:
        now += gap
        if due_in(writing, "v", EDITED, now) == 0.0:
            writing = written(writing, "v", EDITED, (), now)
            repairs.append(now)
    for start in repairs:
        fast = [at for at in repairs if start <= at < start + write_conflicts.QUIET_SECONDS]
        assert len(fast) <= write_conflicts.FREE_REPAIRS + 3
    assert pause(10**6) == write_conflicts.LAST_PAUSE_SECONDS


def test_another_content_is_written_at_once() -> None:
    """A conflict about what was wanted before does not hold back what is wanted now."""
    writing = WriteRecord("v1", 100.0, repairs=9)
    assert due_in(writing, "v1", EDITED, 101.0) == pause(9) - 1.0
    assert due_in(writing, "v2", EDITED, 101.0) == 0.0
    assert written(writing, "v2", EDITED, (), 101.0).repairs == 0


# What is said.


def test_what_is_said() -> None:
    """Of admission field and values; of a conflict field and manager, without values that may change each time."""
    assert sentences("Deployment d", written(None, "v", [], MIRRORED, 0.0), 0.0) == (
        (
            "Deployment d: changed on admission and left so: "
            'spec.template.spec.containers[name=worker].image is "mirror/worker:1", not "worker:1"'
        ),
    )
    insisted = WriteRecord("v", 0.0, repairs=3, changed=EDITED, manager="hpa" * 100)
    (said,) = sentences("Deployment d", insisted, 1.0)
    assert said.startswith('Deployment d: field manager "hpahpa')
    assert "containers[name=worker].image again and again" in said
    assert "evil" not in said
    assert len(said) < 400
    assert sentences("Deployment d", WriteRecord("v", 0.0, repairs=2, changed=EDITED), 1.0) == ()
    left_out = Deviation(("spec", "hostNetwork"), None, False)
    assert sentences("Deployment d", written(None, "v", [], [left_out], 0.0), 0.0) == ()


def entry(manager: str, fields: dict[str, Any], time: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    return {"manager": manager, "operation": "Update", "time": time, "fieldsV1": fields}


CONTAINERS = {"f:template": {"f:spec": {"f:containers": {'k:{"name":"worker"}': {"f:image": {}}}}}}


@pytest.mark.parametrize(
    ("path", "managed", "expected"),
    [
        (("spec", "replicas"), [entry("hpa", {"f:spec": {"f:replicas": {}}})], "hpa"),
        (("spec", "replicas"), [entry("hpa", {"f:spec": {"f:paused": {}}})], ""),
        (("spec", "replicas"), [entry("turnout-operator", {"f:spec": {"f:replicas": {}}})], ""),
        (IMAGE, [entry("mirror", {"f:spec": CONTAINERS})], "mirror"),
        (
            (*IMAGE[:4], "[name=other]", "image"),
            [entry("mirror", {"f:spec": CONTAINERS})],
            "",
        ),
        (("spec", "selector", "app"), [entry("atomic", {"f:spec": {"f:selector": {}}})], "atomic"),
        (("spec", "args"), [entry("part", {"f:spec": {"f:args": {"v:x": {}}}})], "part"),
        (
            ("spec", "ports", "[name=http]", "port"),
            [entry("ports", {"f:spec": {"f:ports": {'k:{"port":80}': {"f:port": {}}, "k:{": {}}}})],
            "ports",
        ),
        (
            ("spec", "replicas"),
            [
                entry("old", {"f:spec": {"f:replicas": {}}}, "2026-01-01T00:00:00Z"),
                entry("new", {"f:spec": {"f:replicas": {}}}, "2026-02-01T00:00:00Z"),
            ],
            "new",
        ),
    ],
)
def test_the_field_manager_is_found(
    path: tuple[str, ...], managed: list[dict[str, Any]], expected: str
) -> None:
    """The last writer of a field, by its managedFields."""
    assert manager_of(managed, [Deviation(path, 1, 2)]) == expected


def test_memory_is_bounded_and_goes_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written, no more than so many objects are remembered, and none of a resource that is gone."""
    monkeypatch.setattr("turnout_operator.write_history.MAX_RECORDS", 10)
    memory = WriteHistory(clock=lambda: 0.0)
    owner = (LLM_DEPLOYMENT, KEY)
    for number in range(30):
        target = (DEPLOYMENT, Key("models", f"d-{number:02}"), "")
        memory.written(target, owner, "v", found=(), answer=MIRRORED)
    assert len(memory.sentences(owner)) == 10
    memory.forget((DEPLOYMENT, Key("models", "d-29"), ""))
    assert len(memory.sentences(owner)) == 9
    memory.forget_owner(owner)
    assert memory.sentences(owner) == ()
    assert memory.due_in((DEPLOYMENT, Key("models", "d-25"), ""), "v", MIRRORED) == 0.0


# All of it together, over an API server that is played.


@dataclass
class Server:
    """Keeps what is applied, after *admission* has changed it; *insists* changes it again behind that."""

    store: Store
    admission: Callable[[Kind, dict[str, Any]], None] = lambda _kind, _object: None
    insists: Callable[[Kind, dict[str, Any]], None] = lambda _kind, _object: None
    objects: dict[tuple[Kind, str], dict[str, Any]] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    refuses: set[Kind] = field(default_factory=set)
    """Kinds of which nothing is let in."""
    reads: int = 0
    version: int = 10

    async def get(self, kind: Kind, _: str, name: str) -> dict[str, Any]:
        self.reads += 1
        if (kind, name) not in self.objects:
            raise NotFound("there is none", status=404)
        return self.objects[kind, name]

    async def apply(
        self, kind: Kind, manifest: dict[str, Any], subresource: str | None = None, *, force: bool = True
    ) -> dict[str, Any]:
        assert subresource or force or (kind, manifest["metadata"]["name"]) not in self.objects
        name = manifest["metadata"]["name"]
        if not subresource and kind in self.refuses:
            self.writes.append(f"refused {name}")
            raise Forbidden("admission webhook denied the request", status=403)
        self.writes.append(f"{kind.name}{'/' + subresource if subresource else ''} {name}")
        live = self.objects.get((kind, name), {})
        meta = {"uid": f"uid-{name}", **live.get("metadata", {}), **manifest["metadata"]}
        return self._keep(kind, copy.deepcopy({**live, **manifest, "metadata": meta}))

    async def patch(self, kind: Kind, _: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self.writes.append(f"{kind.name} {name}")
        made = copy.deepcopy(self.objects[kind, name])
        for part, values in body["metadata"].items():
            made["metadata"][part] = {**made["metadata"].get(part, {}), **values}
        return self._keep(kind, made)

    async def create(self, _: Kind, manifest: dict[str, Any], **__: object) -> None:
        self.events.append(manifest["reason"])

    def edit(self, kind: Kind, name: str, change: Callable[[dict[str, Any]], None], manager: str) -> None:
        """Change an object as another writer, and have the operator see it."""
        made = copy.deepcopy(self.objects[kind, name])
        change(made)
        made["metadata"]["managedFields"] = [entry(manager, {"f:spec": {"f:replicas": {}}})]
        self._keep(kind, made, admit=False)
        self.store.put(kind, self.objects[kind, name])

    def _keep(self, kind: Kind, made: dict[str, Any], *, admit: bool = True) -> dict[str, Any]:
        if admit:
            self.admission(kind, made)
        self.version += 1
        made["metadata"]["resourceVersion"] = str(self.version)
        self.objects[kind, made["metadata"]["name"]] = made
        return made


class Idle:
    """A scaler that has decided nothing."""

    def decision(self, _: Key) -> None:
        return None


@dataclass
class World:
    """An operator over a server that is played, with a clock that the test moves."""

    store: Store = field(default_factory=Store)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.server = Server(self.store)
        self.executor = Executor(cast("KubeClient", self.server), self.store, "test")
        self.executor.write_history = WriteHistory(clock=lambda: self.now)
        name_claims = NameClaims(self.store)
        silent = Collector(cast("Supervisor", None))
        self.reconciler = Reconciler(
            self.store,
            observer=Observer(self.store, silent, name_claims),
            name_claims=name_claims,
            executor=self.executor,
            scaler=cast("Scaler", Idle()),
            metrics=Metrics(),
            config=CONFIG,
        )
        raw = raw_deployment(prefill=None, decode=(2, 4))
        raw["metadata"]["resourceVersion"] = "5"
        self.server.objects[LLM_DEPLOYMENT, "llama"] = raw
        self.store.put(LLM_DEPLOYMENT, raw)
        name_claims.look_at_all()
        name_claims.assign()

    async def passes(
        self, count: int, seconds: float = 5.0, each: Callable[[], None] = lambda: None
    ) -> list[str]:
        """Look at the deployment *count* times; return what was written."""
        self.server.writes.clear()
        for _ in range(count):
            each()
            await self.reconciler.deployment(KEY)
            self.now += seconds
        return list(self.server.writes)

    def said(self) -> str:
        raw = self.store.get(LLM_DEPLOYMENT, KEY)
        assert raw is not None
        return str(condition(raw["status"], "FieldsOverridden").get("message", ""))

    def pool(self) -> tuple[Kind, str]:
        (found,) = [key for key in self.server.objects if key[0] == DEPLOYMENT]
        return found


async def test_a_policy_that_rewrites_a_field_is_written_to_once() -> None:
    """No write in an hour of passes; the condition and one Event name field and values."""
    world = World()

    def mirror(kind: Kind, made: dict[str, Any]) -> None:
        if kind == DEPLOYMENT:
            for container in made["spec"]["template"]["spec"]["containers"]:
                if not container["image"].startswith("mirror/"):
                    container["image"] = f"mirror/{container['image']}"

    world.server.admission = mirror
    await world.passes(2)
    assert await world.passes(720) == []
    assert "spec.template.spec.containers[name=worker].image is " in world.said()
    assert "changed on admission" in world.said()
    assert world.server.events.count("FieldsOverridden") == 1


async def test_what_a_person_edits_is_put_back_at_once_beside_such_a_policy() -> None:
    """The policy's value is accepted, another value is not."""
    world = World()

    def mirror(kind: Kind, made: dict[str, Any]) -> None:
        if kind == DEPLOYMENT:
            made["spec"]["template"]["spec"]["containers"][0]["image"] = "mirror/it"

    world.server.admission = mirror
    await world.passes(2)
    kind, name = world.pool()

    def evil(made: dict[str, Any]) -> None:
        made["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1"

    world.server.edit(kind, name, evil, "kubectl")
    assert await world.passes(3) == [f"Deployment {name}"]
    live = world.server.objects[kind, name]
    assert live["spec"]["template"]["spec"]["containers"][0]["image"] == "mirror/it"


async def test_a_policy_that_strips_labels_and_annotations_is_written_to_once() -> None:
    """Also our own digest: what is missing from the answer to a write will be missing the next time."""
    world = World()

    def strip(kind: Kind, made: dict[str, Any]) -> None:
        if kind != LLM_DEPLOYMENT:
            made["metadata"]["annotations"] = {}

    world.server.admission = strip
    await world.passes(2)
    assert await world.passes(720) == []
    assert "metadata.annotations.turnout.dev/applied is absent" in world.said()


async def test_a_controller_that_insists_is_answered_ever_more_rarely() -> None:
    """An hour in which another sets replicas after each of our writes: 14 writes, its name in one condition and Event."""
    world = World()
    await world.passes(2)
    kind, name = world.pool()

    def insist() -> None:
        if world.server.objects[kind, name]["spec"]["replicas"] != 7:
            world.server.edit(kind, name, lambda made: made["spec"].update(replicas=7), "some-autoscaler")

    done = await world.passes(720, each=insist)
    assert done.count(f"Deployment {name}") <= 14
    assert 'field manager "some-autoscaler" changes spec.replicas again and again' in world.said()
    assert world.server.events.count("FieldsOverridden") == 1
    assert len(done) - done.count(f"Deployment {name}") <= 2  # status, for the condition
    await world.passes(400)  # it has given up
    assert world.server.objects[kind, name]["spec"]["replicas"] == 2
    assert world.said() == ""


async def test_drift_that_is_seldom_is_put_back_at_once_each_time() -> None:
    """A person who edits every other minute is corrected every time, and no condition speaks of it."""
    world = World()
    await world.passes(2)
    kind, name = world.pool()
    for _ in range(8):
        world.server.edit(kind, name, lambda made: made["spec"].update(replicas=7), "kubectl")
        assert f"Deployment {name}" in await world.passes(1)
        await world.passes(24)
    assert world.said() == ""


async def test_a_status_that_another_overwrites_is_written_ever_more_rarely() -> None:
    """An operator of a version that knows no marks, say: no endless loop of two writers."""
    world = World()
    await world.passes(2)

    def overwrite() -> None:
        def change(made: dict[str, Any]) -> None:
            made["status"] = {**made["status"], "endpoint": "http://another.example/v1"}

        world.server.edit(LLM_DEPLOYMENT, "llama", change, "other-operator")

    done = await world.passes(720, each=overwrite)
    assert len(done) <= 20


async def test_a_status_that_waits_is_written_once_it_may_be() -> None:
    """No event announces that the pause is over: the pass says when to look again."""
    world = World()
    await world.passes(3)
    waits = []
    for _ in range(write_conflicts.FREE_REPAIRS + 2):
        world.server.edit(
            LLM_DEPLOYMENT,
            "llama",
            lambda made: made["status"].update(endpoint="http://another.example/v1"),
            "another",
        )
        waits.append(await world.reconciler.deployment(KEY))
    assert waits[:2] == [None, None]
    assert waits[-1] == write_conflicts.FIRST_PAUSE_SECONDS
    world.now += write_conflicts.FIRST_PAUSE_SECONDS
    assert await world.passes(1) == ["LLMDeployment/status llama"]


async def test_counts_of_pods_wait_for_each_other() -> None:
    """What pods of a deployment do within a second is one write of its status, and what matters more does not wait."""
    world = World()
    await world.passes(3)
    kind, name = world.pool()

    def refuse(message: str) -> Callable[[dict[str, Any]], None]:
        failure = {"type": "ReplicaFailure", "status": "True", "message": message}
        return lambda made: made.update(status={"conditions": [failure]})

    world.server.edit(kind, name, refuse("first"), "kube")
    assert await world.passes(1, seconds=0.25) == ["LLMDeployment/status llama"]
    world.server.edit(kind, name, refuse("second"), "kube")
    assert not await world.passes(1, seconds=0.25)
    assert await world.reconciler.deployment(KEY) == 0.5
    world.now += 0.5
    assert await world.passes(1, seconds=0.25) == ["LLMDeployment/status llama"]
    raw = world.store.get(LLM_DEPLOYMENT, KEY)
    assert raw is not None
    assert "second" in condition(raw["status"], "Ready")["message"]
    world.server.edit(LLM_DEPLOYMENT, "llama", lambda made: made["metadata"].update(generation=2), "kubectl")
    assert await world.passes(1) == ["LLMDeployment/status llama"], "it is about another generation"


async def test_the_end_of_a_conflict_is_reported() -> None:
    """No writer changes the object any more, which causes no event either."""
    world = World()
    await world.passes(3)
    (name,) = [name for kind, name in world.server.objects if kind == DEPLOYMENT]
    for _ in range(write_conflicts.FREE_REPAIRS):
        world.server.edit(DEPLOYMENT, name, lambda made: made["spec"].update(replicas=7), "some-autoscaler")
        await world.reconciler.deployment(KEY)
    wait = await world.reconciler.deployment(KEY)
    assert "again and again" in world.said()
    assert wait is not None
    world.now += wait
    await world.reconciler.deployment(KEY)
    assert world.said() == ""


async def test_a_status_field_that_the_schema_drops_is_written_once() -> None:
    """A CRD of an older version prunes what it does not know."""
    world = World()

    def prune(kind: Kind, made: dict[str, Any]) -> None:
        if kind == LLM_DEPLOYMENT:
            made.get("status", {}).pop("endpoint", None)

    world.server.admission = prune
    await world.passes(3)
    assert await world.passes(200) == []


async def test_a_mark_on_a_pod_that_is_stripped_is_tried_ever_more_rarely() -> None:
    """Its value has a time in it, which is another one at each attempt; the pass is not repeated at once either."""
    world = World()
    pod = {
        "metadata": {"name": "p", "namespace": "models", "uid": "u", "labels": {}, "annotations": {}},
        "spec": {},
        "status": {},
    }
    world.server.objects[POD, "p"] = pod
    world.store.put(POD, pod)
    world.server.admission = lambda _, made: made["metadata"].update(labels={}, annotations={})
    assert observed_pod(pod) is None
    owner = world.store.get(LLM_DEPLOYMENT, KEY)
    assert owner is not None
    again = []
    for second in range(3600):
        body = {
            "metadata": {
                "labels": {"turnout.dev/draining": "true"},
                "annotations": {"turnout.dev/draining-since": f"second {second}"},
            }
        }
        plan = world.executor.sift(Plan(patches=(PodPatch("models", "p", body),), requeue_seconds=0.2))
        again.append(plan.requeue_seconds)
        assert await world.executor.change(owner, plan) is None
        world.now += 1.0
    assert len(world.server.writes) <= 14
    assert sum(pause == 0.2 for pause in again) == len(world.server.writes)
    assert min(pause for pause in again if pause != 0.2) > 0.2
    (said,) = world.executor.write_history.sentences((kind_of(owner), KEY))
    assert said.startswith("Pod p: admission changes metadata.annotations.turnout.dev/draining-since")


async def test_what_is_refused_is_asked_for_ever_more_rarely() -> None:
    """A webhook that denies every Deployment: not one request per pass; the reason stands all the time, until it is let in."""
    world = World()
    world.server.refuses = {DEPLOYMENT}

    async def passes(count: int) -> list[str]:
        world.server.writes.clear()
        for _ in range(count):
            with contextlib.suppress(Forbidden):
                await world.reconciler.deployment(KEY)
            world.now += 5.0
        return [write for write in world.server.writes if write.startswith("refused")]

    assert len(await passes(720)) <= 70
    raw = world.store.get(LLM_DEPLOYMENT, KEY)
    assert raw is not None
    assert "admission webhook denied the request" in condition(raw["status"], "Ready")["message"]

    def another_revision(made: dict[str, Any]) -> None:
        made["spec"]["model"]["revision"] = "v2"

    world.server.edit(LLM_DEPLOYMENT, "llama", another_revision, "kubectl")  # is asked for at once
    assert len(await passes(1)) == 1
    world.server.refuses.clear()
    await passes(12)
    assert world.pool()
    raw = world.store.get(LLM_DEPLOYMENT, KEY)
    assert raw is not None
    assert condition(raw["status"], "Ready")["reason"] == "NoReadyWorkers"
