"""turnout-operator: puts the parts together, waits for the lease, acts while it is held."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import uvloop

from turnout_operator.admin import serving
from turnout_operator.controller import Controller, own_signals
from turnout_operator.effects import Executor
from turnout_operator.errors import ConfigurationError, OperatorError
from turnout_operator.kube.client import KubeClient
from turnout_operator.kube.credentials import Credentials
from turnout_operator.lease import Lease
from turnout_operator.load.collector import Collector
from turnout_operator.metrics import Metrics
from turnout_operator.observe.store import Store
from turnout_operator.plan.config import PlanConfig
from turnout_operator.reconciler import Reconciler
from turnout_operator.scaler import Scaler
from turnout_operator.settings import Settings, parse
from turnout_operator.settling import Settling

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

LOG: Final = logging.getLogger(__name__)

LEASE_REQUEST_SECONDS: Final = 3.0
"""Longest wait for an answer about the lease: a slow one must not outlast the lease itself."""


async def run(settings: Settings) -> None:
    """Run an operator until it is told to stop. Raise OperatorError for what makes going on impossible."""
    stop = asyncio.Event()
    own_signals(stop)
    metrics = Metrics()
    credentials = Credentials()
    async with AsyncExitStack() as stack:
        lease_client = await stack.enter_async_context(
            KubeClient(
                credentials.configuration, count=metrics.count_request, timeout_seconds=LEASE_REQUEST_SECONDS
            )
        )
        lease = Lease(
            lease_client,
            namespace=settings.namespace,
            name=settings.lease_name,
            identity=settings.identity,
            held=lambda held: metrics.leader.set(1 if held else 0),
        )
        client = await stack.enter_async_context(
            KubeClient(credentials.configuration, count=metrics.count_request, fence=lease.fence)
        )
        collector = await stack.enter_async_context(
            Collector(failed=lambda target: metrics.scrape_failures.labels(target).inc())
        )
        store = Store()
        scaler = Scaler(store, collector, metrics, settings.namespace)
        config = PlanConfig(
            settings.worker_image,
            f"{settings.router_service}.{settings.namespace}.svc",
            settings.namespace,
        )
        settling = Settling(store)
        reconciler = Reconciler(
            store,
            settling=settling,
            executor=Executor(client, store, settings.identity),
            scaler=scaler,
            collector=collector,
            metrics=metrics,
            config=config,
        )
        # The routers live in the operator's own namespace, so that one is watched in any case.
        watched = dict.fromkeys((*settings.watch_namespaces, settings.namespace))
        controller = Controller(
            store,
            client,
            reconciler,
            scaler,
            metrics,
            settling=settling,
            connect=credentials.connection,
            watched=tuple(watched) if settings.watch_namespaces else (),
            namespaces=settings.watch_namespaces,
        )
        leading = False

        def not_ready() -> str:
            return "leads, but does not know the cluster yet" if leading and not controller.synced else ""

        await stack.enter_async_context(
            serving(
                settings.admin_host,
                settings.admin_port,
                metrics,
                not_ready=not_ready,
                decisions=scaler.reasons,
            )
        )
        try:
            if not await _unless(stop, lease.acquire()):
                return
            leading = True
            await _first(lease.keep(), controller.run(stop))
        finally:
            await lease.release()
    LOG.info("stopped")


async def _unless(stop: asyncio.Event, work: Coroutine[object, object, object]) -> bool:
    """Return whether *work* came to its end before *stop* was set."""
    task, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return task.done()
    finally:
        task.cancel()
        stopping.cancel()


async def _first(*works: Coroutine[object, object, object]) -> None:
    """Run *works* until the first of them ends; end the others, then raise what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def main(arguments: Sequence[str] | None = None) -> None:
    """Console script. Exit status 0: told to stop; 1: it could not go on; 2: wrong settings."""
    settings = parse(arguments)
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        uvloop.run(run(settings))
    except ConfigurationError as error:
        LOG.error("%s", error)  # noqa: TRY400 - the message says it all
        sys.exit(2)
    except OperatorError as error:
        LOG.error("%s", error)  # noqa: TRY400 - the message says it all
        sys.exit(1)


if __name__ == "__main__":
    main()
