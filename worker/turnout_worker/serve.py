"""The simulated worker's life: load, serve, drain, end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import uvloop

from turnout.engine import Engine, JournaledKvCache
from turnout.engine.kv import KvCache
from turnout_worker.application import WorkerApplication
from turnout_worker.clock import ScaledClock
from turnout_worker.driver import Driver
from turnout_worker.errors import ConfigurationError
from turnout_worker.http import HttpServer
from turnout_worker.metrics import Metrics
from turnout_worker.serving import Serving
from turnout_worker.transfer import Fetcher, SideChannel

if TYPE_CHECKING:
    from turnout_worker.settings import WorkerSettings

_log = logging.getLogger(__name__)

_LAST_WORDS_SECONDS: Final = 0.5
"""Real time in which a dying engine still answers /health with 500, and the last answers leave the sockets."""
_POLL_SECONDS: Final = 0.05


def run(settings: WorkerSettings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    return uvloop.run(_serve(settings))


async def _serve(settings: WorkerSettings) -> int:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    if await _passed(ending, settings.startup_seconds / settings.time_scale):
        _log.info("asked to end before the model was loaded")
        return 0

    engine_id = str(uuid4())
    metrics = Metrics(settings.served_names[0], settings.engine, settings.kv_bytes_per_token)
    clock = ScaledClock(settings.time_scale, loop.time)
    publisher, events = None, None
    cache = KvCache(settings.engine.kv_blocks)
    if settings.kv_events is not None:
        from turnout_worker.kvevents import CacheEvents, KvEventPublisher  # noqa: PLC0415 - see there

        cache = journal = JournaledKvCache(settings.engine.kv_blocks)
        publisher = KvEventPublisher(settings.kv_events, settings.host)
        events = CacheEvents(journal, settings.engine.block_size, publisher)
    engine = Engine(settings.engine, settings.latency, cache)
    driver = Driver(engine, settings.latency, clock, metrics, events=events)
    fetcher = Fetcher()
    serving = Serving(settings, driver, metrics, fetcher, engine_id, events=events)
    application = WorkerApplication(settings, driver, metrics, serving)
    server = HttpServer(application)
    side_channel = SideChannel(engine_id, driver.release)
    try:
        if settings.role == "prefill":
            serving.side_channel_port = await side_channel.start(settings.host, settings.side_channel_port)
        port = await server.start(settings.host, settings.port)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {settings.host}: {error}") from error
    _log.info(
        "serving %s as %s on %s:%d, role %s, %d KV blocks of %d tokens, time scale %g",
        settings.model, ", ".join(settings.served_names), settings.host, port, settings.role,
        settings.engine.kv_blocks, settings.engine.block_size, settings.time_scale,
    )  # fmt: skip

    causes: list[asyncio.Future[Any]] = [
        asyncio.create_task(ending.wait()),
        application.on_death,
        driver.on_crash,
    ]
    await asyncio.wait(causes, return_when=asyncio.FIRST_COMPLETED)
    causes[0].cancel()
    if driver.on_crash.done():
        _log.error("crashing as ordered")
        os._exit(1)  # like a crash: nothing is closed, nothing is said
    if application.dead:
        application.end()
        await asyncio.sleep(_LAST_WORDS_SECONDS)
        return 1
    await _drain(application, server, settings.shutdown_timeout)
    side_channel.stop()
    await server.stop(_LAST_WORDS_SECONDS)
    fetcher.stop()
    driver.stop()
    if publisher is not None:
        publisher.stop()
    _log.info("ended")
    return 0


async def _drain(application: WorkerApplication, server: HttpServer, seconds: float) -> None:
    """Refuse new requests; let running ones end and pinned prompts be fetched, for at most *seconds*, real."""
    _log.info("draining for at most %g s", seconds)
    application.draining = True
    try:
        async with asyncio.timeout(seconds):
            while application.busy or server.answering:  # noqa: ASYNC110 - pins end by themselves, in the engine's time
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        _log.warning("requests are still running after %g s: they are aborted", seconds)
        application.end()
        await asyncio.sleep(0)  # the engine tells the streams in the loop's next round


async def _passed(event: asyncio.Event, seconds: float) -> bool:
    """Wait for *seconds*. Returns True at once when *event* happens before."""
    if seconds <= 0:
        return event.is_set()
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
