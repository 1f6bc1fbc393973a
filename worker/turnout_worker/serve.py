"""The simulated worker's life: load, serve, drain, end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import uvloop

from turnout.simulation import Engine, JournaledKvCache
from turnout.simulation.kv import KvCache
from turnout_runtime.supervision import Supervisor
from turnout_worker.application import WorkerApplication
from turnout_worker.clock import ScaledClock
from turnout_worker.driver import Driver
from turnout_worker.errors import ConfigurationError, EngineLoopError
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

    worker = Worker(settings)
    loop.set_exception_handler(worker.note_callback)
    port = await worker.start()
    _log.info(
        "serving %s as %s on %s:%d, role %s, %d KV blocks of %d tokens, time scale %g",
        settings.model, ", ".join(settings.served_names), settings.host, port, settings.role,
        settings.engine.kv_blocks, settings.engine.block_size, settings.time_scale,
    )  # fmt: skip
    if not await _lasted(ending, worker):
        return 1
    await _drain(worker.application, worker.server, settings.shutdown_timeout)
    await worker.stop()
    _log.info("ended")
    return 0


class Worker:
    """What a worker is made of, put together. To be made on the event loop."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Raise ConfigurationError where the settings' endpoints cannot be used."""
        self._settings = settings
        loop = asyncio.get_running_loop()
        engine_id = str(uuid4())
        self.metrics = Metrics(settings.served_names[0], settings.engine, settings.kv_bytes_per_token)
        self.supervisor = Supervisor(self.metrics.task_failed, _log)
        note = self.supervisor.note
        self.publisher, self.events = None, None
        cache = KvCache(settings.engine.kv_blocks)
        if settings.kv_events is not None:
            from turnout_worker.kvevents import CacheEvents, KvEventPublisher  # noqa: PLC0415 - see there

            cache = journal = JournaledKvCache(settings.engine.kv_blocks)
            self.publisher = KvEventPublisher(settings.kv_events, settings.host, note)
            self.events = CacheEvents(journal, settings.engine.block_size, self.publisher)
        self.engine = Engine(settings.engine, settings.latency, cache)
        clock = ScaledClock(settings.time_scale, loop.time)
        self.driver = Driver(
            self.engine, settings.latency, clock, self.metrics, note=note, events=self.events
        )
        self.fetcher = Fetcher()
        self.serving = Serving(
            settings,
            self.driver,
            self.metrics,
            self.fetcher,
            engine_id,
            supervisor=self.supervisor,
            events=self.events,
        )
        self.application = WorkerApplication(settings, self.driver, self.metrics, self.serving, note)
        self.server = HttpServer(self.application, note)
        self.side_channel = SideChannel(engine_id, self.driver.release, self.supervisor)

    async def start(self) -> int:
        """Listen. Returns the port. Raise ConfigurationError where that cannot be."""
        settings = self._settings
        try:
            if settings.role == "prefill":
                side = await self.side_channel.start(settings.host, settings.side_channel_port)
                self.serving.side_channel_port = side
            return await self.server.start(settings.host, settings.port)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {settings.host}: {error}") from error

    async def stop(self) -> None:
        """Close everything; clients have a moment to take what was written."""
        self.side_channel.stop()
        await self.server.stop(_LAST_WORDS_SECONDS)
        self.fetcher.stop()
        await self.supervisor.stop()
        self.driver.stop()
        if self.publisher is not None:
            self.publisher.stop()

    def note_callback(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log and count what a callback of the event loop has raised: the loop's exception handler."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            self.supervisor.note("callback", error, detail=str(context.get("message")))
        else:
            loop.default_exception_handler(context)


async def _lasted(ending: asyncio.Event, worker: Worker) -> bool:
    """Serve until *ending*. Return False where the engine could not go on: its requests have ended with errors."""
    application, driver, supervisor = worker.application, worker.driver, worker.supervisor
    supervisor.run("engine", driver.run, fatal=(EngineLoopError,))
    broken = asyncio.create_task(supervisor.ended())
    asked = asyncio.create_task(ending.wait())
    causes: list[asyncio.Future[Any]] = [asked, application.on_death, driver.on_crash, broken]
    await asyncio.wait(causes, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if broken.done() or application.dead:
        cause = broken.exception() if broken.done() else None
        _log.error("the engine cannot go on, and this process ends", exc_info=cause)
        application.break_off()
        await asyncio.sleep(_LAST_WORDS_SECONDS)
        return False
    broken.cancel()
    if driver.on_crash.done():
        _log.error("crashing as ordered")
        os._exit(1)  # like a crash: nothing is closed, nothing is said
    return True


async def _drain(application: WorkerApplication, server: HttpServer, seconds: float) -> None:
    """Refuse new requests; let running ones end and pinned prompts be fetched, for at most *seconds*, real.

    What runs then is aborted and ends like what is whole: with vLLM's default of 0 seconds, all of it.
    """
    _log.info("draining for at most %g s", seconds)
    application.draining = True
    try:
        async with asyncio.timeout(seconds):
            while not application.failed and (application.busy or server.answering):  # noqa: ASYNC110 - pins end by themselves, in the engine's time
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        _log.warning("requests are still running after %g s: they are aborted", seconds)
        application.end()
        await asyncio.sleep(0)  # the engine notifies the streams in the loop's next round
    if application.failed:
        application.break_off()


async def _passed(event: asyncio.Event, seconds: float) -> bool:
    """Wait for *seconds*. Returns True at once when *event* happens before."""
    if seconds <= 0:
        return event.is_set()
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
