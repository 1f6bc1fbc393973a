"""`routing.cacheKnowledge: Exact` on its way: from the resource to the workers' flags, and back to the router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.api_manifests import deployment
from turnout.api.loading import load_deployment
from turnout.routing import KvEventPorts
from turnout_operator.plan.engines import engine_container
from turnout_operator.plan.facts import worker_facts
from turnout_operator.plan.manifests import pool
from turnout_operator.plan.revision import model_revision
from turnout_router.fleet.discovery.translate import backend_of
from turnout_worker.settings import KvEventsSettings, kv_events_settings

if TYPE_CHECKING:
    from turnout.api import LLMDeployment

EXACT = {"spec.routing.cacheKnowledge": "Exact"}


def loaded(changes: dict[str, Any]) -> LLMDeployment:
    raw = deployment(changes)
    raw["metadata"] |= {"namespace": "default", "uid": "u"}
    return load_deployment(raw)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_workers_are_asked_to_publish(role: Any) -> None:
    """The flag means to the worker what the operator meant, for both roles of a pair."""
    args = engine_container(loaded(EXACT), role).arguments
    settings = kv_events_settings(args[args.index("--kv-events-config") + 1])
    assert settings == KvEventsSettings("tcp://*:5557", "tcp://*:5558", "kv-events")


def test_the_router_finds_the_ports_in_the_pod() -> None:
    """A worker's pod names where it publishes, and one without events names nothing."""
    for changes, expected in ((EXACT, KvEventPorts(5557, 5558)), ({}, None)):
        wanted, facts = loaded(changes), worker_facts(loaded(changes), "decode").to_annotation()
        template = pool(wanted, "decode", "r", 1, "image", facts=facts)["spec"]["template"]
        pod = {
            "metadata": {
                "name": "p",
                "namespace": "default",
                **template["metadata"],
            },
            "spec": template["spec"],
            "status": {"podIP": "127.0.0.9", "conditions": [{"type": "Ready", "status": "True"}]},
        }
        backend = backend_of(pod)
        assert backend is not None
        assert backend.kv_events == expected


def test_nothing_changes_for_those_who_do_not_ask_for_it() -> None:
    """No flag by default; and switching it on makes no other model: pairs stay pairs while pods are replaced."""
    assert "--kv-events-config" not in engine_container(loaded({}), "decode").arguments
    assert model_revision(loaded(EXACT), "image") == model_revision(loaded({}), "image")
