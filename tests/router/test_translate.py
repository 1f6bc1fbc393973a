"""Kubernetes' objects as routing needs them, where no API server is needed to show it."""

from __future__ import annotations

from typing import Any

from turnout.api import names
from turnout.routing.admission import AdmissionBounds
from turnout_router.discovery.translate import backend_of, deployment_of, grants_of


def deployment(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": "LLMDeployment",
        "metadata": {"name": "m", "namespace": "ns"},
        "spec": {
            "model": {"source": "hf://meta-llama/Llama-3.1-8B-Instruct"},
            "engine": {"type": "simulated"},
            "decode": {"accelerator": {"type": "H100-SXM"}},
            **spec,
        },
    }


def test_a_deployments_own_bounds_are_read() -> None:
    """What it does not say is left to the router."""
    assert deployment_of(deployment()).admission == AdmissionBounds()
    own = {"requestsPerWorker": 3, "waitingRequests": 0, "maxWait": "1m500ms"}
    assert deployment_of(deployment(routing={"admission": own})).admission == AdmissionBounds(
        requests_per_worker=3, waiting=0, wait_seconds=60.5
    )


def test_where_requests_wait_is_read() -> None:
    """In the engines, unless it is said."""
    assert deployment_of(deployment()).queueing == "Engine"
    assert deployment_of(deployment(routing={"queueing": "Router"})).queueing == "Router"


def test_adapters_are_names_of_the_deployment_and_of_workers_that_were_told() -> None:
    """A worker of an older revision, which was not told of an adapter, does not answer to it."""
    route = deployment_of(deployment(lora={"adapters": [{"name": "sql", "source": "hf://acme/sql"}]}))
    assert (route.adapters, route.claimed_names) == ({"sql"}, ("m", "sql"))

    def worker(*args: str) -> tuple[str, ...]:
        backend = backend_of(
            {
                "metadata": {
                    "name": "w",
                    "namespace": "ns",
                    "labels": {names.LABEL_DEPLOYMENT: "m", names.LABEL_ROLE: "decode"},
                },
                "spec": {"containers": [{"name": "worker", "args": ["simulate", *args]}]},
                "status": {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
            }
        )
        assert backend is not None
        return backend.names

    assert worker("--served-name", "m") == ("m",)
    told = worker("--lora-modules", "sql=hf://acme/sql", "--served-name", "m", "--max-loras", "1")
    assert told == ("m", "sql"), "a request under another name is sent as one for the model itself"


def test_a_budget_says_whose_holders_may_ask_why() -> None:
    """Nobody's, unless it is said."""
    budget: dict[str, Any] = {
        "apiVersion": names.API_VERSION,
        "kind": "TokenBudget",
        "metadata": {"name": "b", "namespace": "ns"},
        "spec": {"keys": [{"name": "k", "sha256": "0" * 64}]},
    }
    assert [grant.explain for grant in grants_of(budget, "")] == [False]
    budget["spec"]["explain"] = True
    assert [grant.explain for grant in grants_of(budget, "")] == [True]
