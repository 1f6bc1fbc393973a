"""Two namespaces, one of them hostile: it tries to take what is the other's, to break what both share, and to go.

Under the other one's traffic, which must not fail once, nor reach a worker that is not its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.clients import in_background, until
from support.installation import conditions, llmdeployment
from turnout import terms

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Iterator

    from support.installation import Installation

pytestmark = pytest.mark.cluster


@dataclass
class Traffic:
    """What the victim's clients have seen."""

    namespace: str
    answers: int = 0
    failures: list[str] = field(default_factory=list)

    async def ask(self, client: httpx.AsyncClient, model: str, key: str | None) -> None:
        status, backend = await ask(client, model, key)
        if (status, backend) == (200, self.namespace):
            self.answers += 1
        else:
            self.failures.append(f"{model} with {key}: {status} from {backend!r}")
            await asyncio.sleep(0.05)  # a client that is refused shall not spin


async def ask(client: httpx.AsyncClient, model: str, key: str | None, **headers: str) -> tuple[int, str]:
    """Return the status of an answer, and the namespace of the worker that gave it."""
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}
    answer = await client.post("/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200 or not any(name.startswith("x-turnout-") for name in answer.headers)
    return answer.status_code, answer.headers.get("x-turnout-backend", "").partition("/")[0]


@contextlib.asynccontextmanager
async def asking(url: str, namespace: str, *calls: tuple[str, str | None]) -> AsyncIterator[Traffic]:
    """Keep calling each name with its key, one request after the other, until the block ends."""
    traffic = Traffic(namespace)

    async def run_clients(stop: threading.Event) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:

            async def one(model: str, key: str | None) -> None:
                while not stop.is_set():
                    await traffic.ask(client, model, key)

            await asyncio.gather(*(one(*call) for call in calls))

    async with in_background(run_clients):
        yield traffic


@pytest.fixture
def hostile(turnout: Installation, space: str) -> Iterator[str]:
    """Name of the other namespace."""
    name = f"{space[:40]}-hostile"
    turnout.cluster.kubectl("create", "namespace", name)
    yield name
    turnout.cluster.kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=120s", timeout=130)


def deployment(*served: str, adapters: tuple[str, ...] = ()) -> dict[str, Any]:
    lora = {"adapters": [{"name": name, "source": "hf://acme/lora"} for name in adapters]}
    made = llmdeployment("m", prefill=None, decode=(1, 1), **({"lora": lora} if adapters else {}))
    made["spec"]["model"]["servedNames"] = list(served)
    return made


def route(name: str, target: str, *served: str) -> dict[str, Any]:
    spec = {"names": list(served), "targets": [{"deployment": target}]}
    return {"apiVersion": terms.API_VERSION, "kind": "LLMRoute", "metadata": {"name": name}, "spec": spec}


def budget(*keys: str, **spec: Any) -> dict[str, Any]:
    entries = [
        {"name": f"k{place}", "sha256": hashlib.sha256(key.encode()).hexdigest()}
        for place, key in enumerate(keys)
    ]
    return {
        "apiVersion": terms.API_VERSION,
        "kind": "TokenBudget",
        "metadata": {"name": "b"},
        "spec": {"keys": entries, "explain": True, "priority": "High", **spec},
    }


def odd_pod(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Return a Pod that no node takes, with arguments that are no numbers and no JSON in its annotation."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {terms.ANNOTATION_WORKER: "[" * 15_000},
        },
        "spec": {
            "nodeSelector": {"turnout.dev/nowhere": "true"},
            "containers": [
                {
                    "name": "worker",
                    "image": "none",
                    "args": ["simulate", "--tensor-parallel", "²", "--model", "x" * 5000],
                }
            ],
        },
    }


async def reports(turnout: Installation, namespace: str, kind: str, name: str, reason: str) -> str:
    """Wait until the condition Ready has *reason*; return its message."""

    def said() -> str:
        found = conditions(turnout.get(kind, name, namespace=namespace))
        return next((one["message"] for one in found if one["reason"] == reason), "")

    message: str = await until(f"{kind} {namespace}/{name} says {reason}", said, 60)
    return message


async def test_a_hostile_namespace_harms_no_other(turnout: Installation, space: str, hostile: str) -> None:
    """Names, adapters, routes, keys, explanations, odd objects, a flood, its own end: the other one's clients see none of it."""
    model, adapter, chat, mine, key, own = (
        f"{space}-{what}" for what in ("model", "sql", "chat", "mine", "sk-v", "sk-h")
    )
    turnout.apply(deployment(model, adapters=(adapter,)), route("r", "m", chat), budget(key), namespace=space)
    for kind, name, reason in (
        ("llmd", "m", "Serves"),
        ("llmr", "r", "TargetsExist"),
        ("tb", "b", "KeysValid"),
    ):
        await reports(turnout, space, kind, name, reason)
    url = turnout.router_url()
    calls = [(name, key) for name in (model, adapter, chat, f"{space}/m")]
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def serves(name: str, key: str | None, namespace: str) -> None:
            deadline = asyncio.get_running_loop().time() + 30
            while (answer := await ask(client, name, key)) != (200, namespace):
                assert asyncio.get_running_loop().time() < deadline, answer
                await asyncio.sleep(0.1)

        for name, _ in calls:
            await serves(name, key, space)
        async with asking(url, space, *calls, (model, None)) as traffic:
            # It claims every name and the key, and the whole cluster for its own key.
            turnout.apply(
                deployment(mine, model, chat, adapters=(adapter,)),
                route("r", "m", model, chat, adapter),
                route("s", f"{space}/m", f"{mine}-s"),
                budget(key, own, scope="Cluster"),
                namespace=hostile,
            )
            message = await reports(turnout, hostile, "llmd", "m", "NameConflict")
            assert f"{model} (served by {space}/m)" in message
            assert f"{chat} (served by route {space}/r)" in message
            assert turnout.deployment("m", hostile)["status"]["servedNames"] == [mine]
            await reports(turnout, hostile, "llmr", "r", "ServedNameConflict")
            await reports(turnout, hostile, "llmr", "s", "DeploymentNotFound")
            await reports(turnout, hostile, "tb", "b", "KeyConflict")
            turnout.apply(budget(own, scope="Cluster"), namespace=hostile)
            assert "turnout-system alone" in await reports(turnout, hostile, "tb", "b", "ScopeNotAllowed")
            await serves(mine, own, hostile)
            # Its key finds nothing of the other's, by no name, and is not given the reason; its dummy keys open nothing either.
            for name in (model, adapter, chat, f"{space}/m"):
                assert await ask(client, name, own, **{"x-turnout-explain": "true"}) == (404, "")
                assert await ask(client, name, "sk-any") == (401, "")
            assert await ask(client, f"{mine}-s", own) == (503, "")
            listed = await client.get("/models", headers={"authorization": f"Bearer {own}"})
            assert {one["id"] for one in listed.json()["data"]} == {mine, f"{mine}-s"}
            # Objects that are not what they seem, and many of them.
            worker = {terms.LABEL_DEPLOYMENT: "m", terms.LABEL_ROLE: "aggregated", terms.LABEL_REVISION: "x"}
            router = {terms.LABEL_NAME: "turnout", terms.LABEL_COMPONENT: "router"}
            turnout.apply(
                odd_pod("w", {**worker, terms.LABEL_NAME: "turnout", terms.LABEL_COMPONENT: "worker"}),
                odd_pod("r", router),
                *(route(f"f{number}", "none", model, f"{mine}-{number}") for number in range(200)),
                namespace=hostile,
            )
            turnout.cluster.kubectl(
                "delete", "service", "--namespace", space, "--selector=turnout.dev/deployment=m"
            )
            await until(
                "the operator looks after the other all the same",
                lambda: turnout.get("services", "--selector=turnout.dev/deployment=m", namespace=space)[
                    "items"
                ],
                30,
            )
            before = traffic.answers
            turnout.cluster.kubectl("delete", "namespace", hostile, "--timeout=120s", timeout=130)
            await until("clients are served", lambda: traffic.answers > before + 10, 30)
        assert traffic.failures == []
        assert traffic.answers > 50


async def test_a_name_in_two_namespaces_stays_with_its_first_one(
    turnout: Installation, space: str, hostile: str
) -> None:
    """Deleted and made anew while the other waits for it: in between it is nobody's, and then the first one's again."""
    model = f"{space[:60]}-m"
    turnout.apply(deployment(model), namespace=space)
    await reports(turnout, space, "llmd", "m", "Serves")
    turnout.apply(deployment(model), namespace=hostile)
    await reports(turnout, hostile, "llmd", "m", "ServedNameConflict")
    assert turnout.deployment("m", hostile)["status"]["servedNames"] == []
    seen: set[tuple[int, str]] = set()
    async with httpx.AsyncClient(base_url=turnout.router_url(), timeout=60) as client:

        async def answers(status: int) -> None:
            deadline = asyncio.get_running_loop().time() + 60
            while True:
                answer = await ask(client, model, None)
                seen.add(answer)
                if answer[0] == status:
                    return
                assert asyncio.get_running_loop().time() < deadline, answer
                await asyncio.sleep(0.05)

        await answers(200)
        turnout.cluster.kubectl("delete", "llmd", "m", "--namespace", space)
        await answers(404)
        await reports(turnout, hostile, "llmd", "m", "ServedNameConflict")
        turnout.apply(deployment(model), namespace=space)
        await answers(200)
    assert {backend for status, backend in seen if status == 200} == {space}
    await reports(turnout, space, "llmd", "m", "Serves")
