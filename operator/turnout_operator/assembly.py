"""The parts of an operator that acts: what observes, decides and carries out, put together over a client and a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from turnout_operator.controller import Controller
from turnout_operator.name_claims import NameClaims
from turnout_operator.observe.observer import Observer
from turnout_operator.reconciler import Reconciler
from turnout_operator.scaler import Scaler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import kopf

    from turnout_operator.effects import Executor
    from turnout_operator.kube.client import KubeClient
    from turnout_operator.load.collector import Collector
    from turnout_operator.metrics import Metrics
    from turnout_operator.namespace_leases import NamespaceLeases
    from turnout_operator.observe.store import Store
    from turnout_operator.plan.config import PlanConfig
    from turnout_runtime.supervision import Supervisor


@dataclass(frozen=True, slots=True)
class ActingParts:
    """What is started once this operator leads, and what its admin port reads."""

    controller: Controller
    scaler: Scaler


def assemble(
    client: KubeClient,
    store: Store,
    collector: Collector,
    executor: Executor,
    metrics: Metrics,
    *,
    config: PlanConfig,
    tasks: Supervisor,
    namespace_leases: NamespaceLeases,
    connect: Callable[[], Awaitable[kopf.ConnectionInfo]],
    watched: Sequence[str] = (),
    namespaces: Sequence[str] = (),
) -> ActingParts:
    """Return the parts, none of them started.

    *watched* are the namespaces that are read, *namespaces* those that are acted on; empty: all of them. The routers are
    looked for in the namespace of *config*.
    """
    name_claims = NameClaims(store)
    observer = Observer(store, collector, name_claims)
    scaler = Scaler(
        store,
        observer,
        collector,
        metrics,
        router_namespace=config.namespace,
        tasks=tasks,
        acts=namespace_leases.holds,
    )
    reconciler = Reconciler(
        store,
        observer=observer,
        name_claims=name_claims,
        executor=executor,
        scaler=scaler,
        metrics=metrics,
        config=config,
    )
    controller = Controller(
        store,
        client,
        reconciler,
        scaler,
        metrics,
        name_claims=name_claims,
        tasks=tasks,
        namespace_leases=namespace_leases,
        connect=connect,
        watched=watched,
        namespaces=namespaces,
    )
    return ActingParts(controller, scaler)
