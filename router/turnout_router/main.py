"""The composition root of ``turnout-router``: settings in, ports open, signals out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from typing import TYPE_CHECKING

import uvloop

from turnout_router.admin import AdminServer, admin_app
from turnout_router.admin_access import AdminAccess
from turnout_router.errors import ConfigError
from turnout_router.fleet.backends import Backends
from turnout_router.fleet.discovery.file import FileSource, read_config
from turnout_router.fleet.discovery.kubernetes import KubernetesSource
from turnout_router.fleet.kube import load_access
from turnout_router.fleet.learning import Learner
from turnout_router.fleet.peers.discovery import PodPeers, StaticPeers
from turnout_router.fleet.peers.mesh import Mesh, read_secret
from turnout_router.fleet.scrapes.scraper import Scraper
from turnout_router.gateway import Gateway
from turnout_router.http1.listener import Listener
from turnout_router.http1.tls import Certificate
from turnout_router.loop_watch import PERIOD_SECONDS, LoopWatch
from turnout_router.metrics import Metrics
from turnout_router.options import parse_options, settings_of
from turnout_router.request.checks import HealthChecks
from turnout_router.tasks import CERTIFICATE, CHECKS, FLEET, LOOP, LOOP_WATCH, MODELS, PEERS, SCRAPES
from turnout_router.upstream.pools import ConnectionPools
from turnout_runtime.supervision import Supervisor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout.routing import Fleet
    from turnout_router.fleet.discovery import FleetSource
    from turnout_router.fleet.peers.discovery import PeerSource
    from turnout_router.settings import PeerSettings, Settings

_LOG = logging.getLogger("turnout_router")


class Router:
    """All parts together. `run` serves until `stop` is called; also the observer of the fleet's source.

    `port`, `admin_port` and `peers_port` are the real ones once `started` is set, where the settings leave them open (0).
    Whatever a part raises while it works is counted, logged and survived, see `Supervisor`; only what keeps the router from
    beginning ends it.
    """

    def __init__(self, settings: Settings, source: FleetSource) -> None:
        loop = asyncio.get_running_loop()
        self._settings = settings
        self._source = source
        self._metrics = Metrics()
        self._supervisor = Supervisor(self._metrics.task_failed, _LOG)
        self._pools = ConnectionPools(settings.upstream, self._supervisor.note)
        self._backends = Backends(
            self._pools, self._metrics, settings.upstream.health, loop.time, settings.admission
        )
        self._gateway = Gateway(settings, self._backends, self._metrics, loop.time)
        self._listener = Listener(self._gateway, settings.client, self._supervisor.note)
        self._mesh = (
            None if settings.peers is None else _mesh_of(settings.peers, self._backends, self._supervisor)
        )
        if self._mesh is not None:
            self._backends.report_to(self._mesh.sender)
            self._metrics.registry.register(self._mesh.counts)
        self._admin = AdminServer(
            admin_app(
                self,
                self._metrics,
                self._backends,
                self._gateway.decisions,
                access=AdminAccess(settings.admin_token_file),
                mesh=self._mesh,
            ),
            self._supervisor.note,
        )
        self._stopping = asyncio.Event()
        self._stale = ""
        self.port = settings.port
        self.admin_port = settings.admin_port
        self.peers_port = 0 if settings.peers is None else settings.peers.port
        self.started = asyncio.Event()

    @property
    def not_ready_because(self) -> str:
        """Why clients should not be sent here; empty where they may."""
        if self._stopping.is_set():
            return "shutting down"
        return (
            ""
            if self._gateway.ready
            else f"the fleet has not been seen yet{self._stale and ': '}{self._stale}"
        )

    async def run(self) -> None:
        """Serve until stopped. Raise ConfigError or OSError where that cannot begin."""
        async with contextlib.AsyncExitStack() as ending:  # all of it is ended, whatever another part raises
            ending.callback(self._pools.stop)
            ending.callback(self._backends.stop)
            ending.push_async_callback(self._supervisor.stop)
            if self._mesh is not None:
                ending.push_async_callback(self._mesh.stop)
            ending.push_async_callback(self._admin.stop)
            self._supervisor.watch_loop(LOOP)
            watch = LoopWatch(self._metrics.registry)
            self._supervisor.every(LOOP_WATCH, PERIOD_SECONDS, watch.look)
            await self._begin()
            await self._until_stopped()
            await self._shut_down()

    async def _begin(self) -> None:
        """Open the ports and start what works beside them."""
        settings, supervisor = self._settings, self._supervisor
        certificate = None
        if settings.tls_certificate is not None and settings.tls_key is not None:
            certificate = Certificate(settings.tls_certificate, settings.tls_key)
        self.admin_port = await self._admin.start(settings.host, settings.admin_port)
        supervisor.run(FLEET, lambda: self._source.run(self, supervisor), fatal=(ConfigError,))
        supervisor.run(CHECKS, HealthChecks(self._backends, settings.upstream, supervisor).run)
        supervisor.run(MODELS, Learner(self._backends, supervisor).run)
        if settings.scrape_seconds:
            others = (lambda: 0) if self._mesh is None else self._mesh.others
            scraper = Scraper(self._backends, settings.scrape_seconds, supervisor, others)
            supervisor.run(SCRAPES, scraper.run)
        if certificate is not None:
            supervisor.run(CERTIFICATE, certificate.follow)
        self.port = await self._listener.start(
            settings.host, settings.port, None if certificate is None else certificate.context
        )
        self._pools.start()
        if self._mesh is not None:
            self.peers_port = await self._mesh.start(settings.host, self.peers_port)
            supervisor.run(PEERS, self._mesh.run)
        _LOG.info("serving on %s: port %d, admin port %d", settings.host, self.port, self.admin_port)
        self.started.set()
        gc.freeze()  # what is loaded by now stays: the collector need not look at it again

    async def _until_stopped(self) -> None:
        """Wait for `stop`. Raise ConfigError where the fleet can never be known."""
        waiting = [
            asyncio.create_task(self._stopping.wait(), name="stopping"),
            asyncio.create_task(self._supervisor.ended(), name="ended"),
        ]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in waiting:
                task.cancel()

    def stop(self) -> None:
        """Begin to shut down (SIGTERM)."""
        self._gateway.leaving = True
        self._stopping.set()

    def reload(self) -> None:
        """Read the fleet again (SIGHUP)."""
        self._source.reload()

    def changed(self, fleet: Fleet) -> None:
        """Take over a new fleet."""
        self._backends.update(fleet)
        if not self._gateway.ready:
            count = sum(len(group) for group in fleet.backends.values())
            _LOG.info("fleet seen: %d deployments, %d workers", len(fleet.deployments), count)
        self._gateway.ready = True

    def stale(self, reason: str) -> None:
        """Go on with the last fleet, and log that."""
        if reason and reason != self._stale:
            _LOG.warning("going on with the last fleet known: %s", reason)
        elif self._stale and not reason:
            _LOG.info("the fleet can be read again")
        self._stale = reason
        self._metrics.fleet_stale.set(1 if reason else 0)

    def unreadable(self, namespace: str, resource: str, reason: str) -> None:
        """Log once which part of the fleet is left out, and show it as long as it lasts."""
        where = f"{resource} of {f'namespace {namespace}' if namespace else 'all namespaces'}"
        if reason:
            _LOG.warning("cannot be read, going on without: %s: %s", where, reason)
            self._metrics.unreadable.labels(namespace, resource).set(1)
        else:
            _LOG.info("can be read: %s", where)
            self._metrics.unreadable.remove(namespace, resource)

    def rejected(self, what: str) -> None:
        """Count and log what was left out."""
        _LOG.warning("left out: %s", what)
        self._metrics.fleet_rejected.inc()

    async def _shut_down(self) -> None:
        _LOG.info("shutting down: finishing running requests")
        await asyncio.sleep(self._settings.shutdown_delay_seconds)
        cut = await self._listener.stop(self._settings.shutdown_grace_seconds)
        _LOG.info("stopped, %d connections cut", cut)


def _mesh_of(settings: PeerSettings, backends: Backends, supervisor: Supervisor) -> Mesh:
    """Return the conversation with other routers. Raise ConfigError where it cannot be had."""
    secret = None if settings.secret_file is None else read_secret(settings.secret_file)
    if secret is None:
        _LOG.warning(
            "no --peers-secret-file: every process that reaches the peers' port is accepted, and can mislead this router's choices"
        )
    sources: list[PeerSource] = [StaticPeers(settings.hosts)] if settings.hosts else []
    if settings.pods is not None:
        sources.append(PodPeers(load_access(), *settings.pods))
    return Mesh(backends, sources, secret, settings.batch_seconds, supervisor)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``turnout-router``."""
    options = parse_options(argv)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        if options.check:
            read_config(options.config)
            return
        source: FleetSource
        if options.config is not None:
            source = FileSource(options.config)
        else:
            source = KubernetesSource(load_access(), tuple(options.watch_namespace), options.namespace)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings_of(options), source))
    except (ConfigError, OSError) as error:
        sys.exit(f"turnout-router: {error}")


async def _serve(settings: Settings, source: FleetSource) -> None:
    router = Router(settings, source)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, router.stop)
    loop.add_signal_handler(signal.SIGHUP, router.reload)
    await router.run()
