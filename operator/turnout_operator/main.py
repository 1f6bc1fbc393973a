"""turnout-operator: puts the parts together, waits for the lease, acts while it is held."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import uvloop

from turnout_operator.admin import serving
from turnout_operator.assembly import assemble
from turnout_operator.controller import own_signals
from turnout_operator.effects import Executor
from turnout_operator.errors import ConfigurationError, LeadershipLost, OperatorError
from turnout_operator.kube.client import KubeClient
from turnout_operator.kube.credentials import Credentials
from turnout_operator.kube.kinds import LEASE
from turnout_operator.lease import Lease
from turnout_operator.load.collector import Collector
from turnout_operator.metrics import Metrics
from turnout_operator.namespace_leases import TASK as NAMESPACES_TASK
from turnout_operator.namespace_leases import NamespaceLeases
from turnout_operator.observe.store import Store
from turnout_operator.plan.config import PlanConfig
from turnout_operator.plan.effects import Notice
from turnout_operator.settings import Settings, parse
from turnout_runtime.supervision import Supervisor

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

LOG: Final = logging.getLogger(__name__)

GARBAGE_THRESHOLD: Final = 20_000
"""Objects made, less those gone, before the youngest are looked through for cycles; Python's own is 700."""
LEASE_REQUEST_SECONDS: Final = 3.0
"""Longest wait for an answer about the lease: a slow one must not outlast the lease itself."""


async def run(settings: Settings) -> None:
    """Run an operator until a signal stops it. Raise OperatorError where it cannot go on."""
    stop = asyncio.Event()
    own_signals(stop)
    metrics = Metrics()
    credentials = Credentials()
    tasks = Supervisor(metrics.task_failed, LOG)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(tasks.stop)
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
            failed=lambda error: tasks.note("lease", error),
        )

        def announce(namespace: str, by: str) -> None:
            tasks.once(NAMESPACES_TASK, _announce(executor, settings, namespace, by))

        namespace_leases = NamespaceLeases(
            lease_client,
            release=f"{settings.namespace}/{settings.lease_name}",
            namespaces=settings.watch_namespaces,
            failed=lambda error: tasks.note(NAMESPACES_TASK, error),
            kept_out=announce,
            changed=metrics.namespace_leases,
        )

        def fence(namespace: str) -> None:
            lease.fence()
            namespace_leases.fence(namespace)

        client = await stack.enter_async_context(
            KubeClient(credentials.configuration, count=metrics.count_request, fence=fence)
        )
        collector = await stack.enter_async_context(
            Collector(tasks, failed=lambda target: metrics.scrape_failures.labels(target).inc())
        )
        store = Store()
        executor = Executor(client, store, settings.identity)
        config = PlanConfig(
            worker_image=settings.worker_image,
            vllm_image=settings.vllm_image,
            allow_host_paths=settings.host_paths == "allow",
            router_host=f"{settings.router_service}.{settings.namespace}.svc",
            namespace=settings.namespace,
        )
        # The routers live in the operator's own namespace, so that one is watched in any case.
        watched = dict.fromkeys((*settings.watch_namespaces, settings.namespace))
        parts = assemble(
            client,
            store,
            collector,
            executor,
            metrics,
            config=config,
            tasks=tasks,
            namespace_leases=namespace_leases,
            connect=credentials.connection,
            watched=tuple(watched) if settings.watch_namespaces else (),
            namespaces=settings.watch_namespaces,
        )
        controller = parts.controller
        leading = asyncio.Event()

        def not_ready() -> str:
            return (
                "leads, but does not know the cluster yet"
                if leading.is_set() and not controller.synced
                else ""
            )

        await stack.enter_async_context(
            serving(
                settings.admin_host,
                settings.admin_port,
                metrics,
                tasks,
                not_ready=not_ready,
                remark=namespace_leases.sentence,
                decisions=parts.scaler.reasons,
            )
        )

        async def compete() -> None:
            if not leading.is_set():
                await lease.acquire()
                leading.set()
            await lease.keep()

        competing = tasks.run("lease", compete, fatal=(LeadershipLost,))
        try:
            if await _before(stop, leading.wait(), tasks):
                controller.start(stop)
                await _before(stop, None, tasks)
        finally:
            await controller.stop()
            competing.cancel()
            await asyncio.wait([competing])
            await lease.release()
            await controller.end_watches()
    LOG.info("stopped")


async def _announce(executor: Executor, settings: Settings, namespace: str, by: str) -> None:
    """Say in an Event about this release's own lease where it stands still, and why."""
    own = {
        "apiVersion": LEASE.api_version,
        "kind": LEASE.name,
        "metadata": {"namespace": settings.namespace, "name": settings.lease_name},
    }
    where = f"namespace {namespace}" if namespace else "all namespaces"
    notice = Notice("Warning", "StandingStill", f"nothing is done in {where}: {by}")
    await executor.post(own, [notice], fenced=False)


async def _before(
    stop: asyncio.Event, work: Coroutine[object, object, object] | None, tasks: Supervisor
) -> bool:
    """Return whether *work* came to its end before *stop* was set. Raise what a task must not survive."""
    stopping = asyncio.ensure_future(stop.wait())
    ended = asyncio.ensure_future(tasks.ended())
    working = asyncio.ensure_future(work) if work is not None else None
    waited = {stopping, ended} | ({working} if working is not None else set())
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            ended.result()
        return working is not None and working.done()
    finally:
        for future in waited:
            future.cancel()
        await asyncio.gather(*waited, return_exceptions=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Console script. Exit status 0: stopped by a signal; 1: it could not go on; 2: wrong settings."""
    settings = parse(arguments)
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # Objects of the cluster are plain trees without cycles, and many: looking for cycles among them costs much and finds none.
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)
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
