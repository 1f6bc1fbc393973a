"""A worker's life: prepare the model, check it, start the engine, warm it up, watch it, end it.

One task brings the engine up and then watches it; it is ended by what happens first of three things: the engine ends, the
worker is asked to end, or a step fails. The phases are those of `turnout_worker.supervise.state`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from turnout_worker.errors import ConfigurationError, WorkerError
from turnout_worker.http import HttpServer
from turnout_worker.supervise.causes import Cause, LastWords, last_words
from turnout_worker.supervise.client import EngineClient, NoAnswerError
from turnout_worker.supervise.guard import MARK, Guard
from turnout_worker.supervise.model import ModelError, NotPreparedError, Prepared, architectures, prepared
from turnout_worker.supervise.output import Pump, Tail
from turnout_worker.supervise.processes import Child, Children, oom_kills
from turnout_worker.supervise.settings import ENV_API_KEY
from turnout_worker.supervise.state import Accelerator, EngineFacts, Phase, WorkerState
from turnout_worker.supervise.status import MAX_BODY_BYTES, MAX_CONNECTIONS, StatusApplication

if TYPE_CHECKING:
    from turnout_worker.supervise.settings import ServeSettings

_log = logging.getLogger(__name__)

PROGRESS_SECONDS: Final = 10.0
"""Between two lines that say how far the worker is."""
PROGRESS_LINES: Final = 50
"""Last lines of the engine in which its progress is looked for."""
POLL_SECONDS: Final = 0.1
HEALTH_SECONDS: Final = 1.0
"""Between two looks at /health of an engine that serves."""
ANSWER_SECONDS: Final = 5.0
"""How long /health may take: an engine on a busy machine answers late."""
STALE_SECONDS: Final = 3.0
"""An answer of /health that is older than that, and ANSWER_SECONDS, counts no more."""
ATTEMPTS: Final = 4
ATTEMPT_PAUSE_SECONDS: Final = 2.0
"""The attempts outlast the 5 s after which vLLM's API server ends itself when its core has died."""
GIVING_UP_SECONDS: Final = 10.0
"""What an engine has after SIGTERM that has failed to start."""
HASTE_SECONDS: Final = 2.0
"""What it has after a second SIGTERM."""
KILL_SECONDS: Final = 5.0
OUTPUT_SECONDS: Final = 2.0
FACTS_SECONDS: Final = 10.0
"""How long the driver may take to describe the accelerators."""
MAX_TERMINATION_BYTES: Final = 4096
"""What kubelet takes from a termination log."""
EXIT_NOT_FOUND: Final = 127
EXIT_NOT_RUNNABLE: Final = 126
_LOADED: Final = re.compile(r"Loading \w+ checkpoint shards:\s+(\d+)%")
_LOCAL: Final = {"do_remote_decode": False, "do_remote_prefill": False}
"""Parameters of a request that a prefill worker answers itself: it keeps no blocks for another one."""


class StepError(WorkerError):
    """A step of the worker's life failed. Its text is a sentence."""

    def __init__(self, sentence: str, cause: str = Cause.STARTUP, status: int = 1) -> None:
        super().__init__(sentence)
        self.words = LastWords(cause, sentence)
        self.status = status


def run(settings: ServeSettings) -> int:
    """Run the worker to its end. Returns the exit status. Raise ConfigurationError where its port cannot be had."""
    guard = Guard()
    try:
        return asyncio.run(Worker(settings, guard).live())
    finally:
        guard.dismiss()


class Worker:
    """One worker. To be made where no other thread runs, and to live once."""

    def __init__(self, settings: ServeSettings, guard: Guard) -> None:
        self._settings = settings
        self._guard = guard
        self._client = EngineClient(settings.engine_host, settings.port, settings.api_key)
        self._tail = Tail()
        self._pump: Pump | None = None
        self._engine: Child | None = None
        self._oom_kills = 0
        self._healthy_at = 0.0
        """When /health last answered well, on the loop's clock."""
        self._health_problem = ""
        self._served = False
        engine = EngineFacts(name=settings.engine, command=settings.shown_command)
        self.state = WorkerState(engine=engine, since=time.time(), message=f"preparing {settings.model}")

    async def live(self) -> int:
        """Live from the first step to the last. Returns the exit status. Raise ConfigurationError."""
        loop = asyncio.get_running_loop()
        self._asked, self._hastened = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask_to_end, number)
        self._children = Children()
        self._ended: asyncio.Future[int] = loop.create_future()
        server = HttpServer(
            StatusApplication(self), _note, max_body_bytes=MAX_BODY_BYTES, max_connections=MAX_CONNECTIONS
        )
        try:
            port = await server.start(self._settings.bind_host, self._settings.status_port)
        except OSError as error:
            where = f"{self._settings.bind_host}:{self._settings.status_port}"
            raise ConfigurationError(
                f"cannot listen on {where} (--status-port): {error.strerror or error}"
            ) from error
        _log.info("status on %s:%d", self._settings.bind_host, port)
        try:
            status = await self._live()
        finally:
            await self._end_processes()
            await server.stop(0.0)
        return status

    async def _live(self) -> int:
        up = asyncio.create_task(self._bring_up())
        asked = asyncio.create_task(self._asked.wait())
        reporting = asyncio.create_task(self._report_progress())
        try:
            first: set[asyncio.Future[Any]] = {up, asked, self._ended}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if self._ended.done():
                return await self._fell()
            if asked.done():
                return await self._stop()
            return await self._give_up(up)
        finally:
            tasks: tuple[asyncio.Task[Any], ...] = (up, asked, reporting)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # Up

    async def _bring_up(self) -> None:
        """Take the steps up to serving, and watch the engine from then on. Raise StepError."""
        files = await self._prepare()
        await self._check(Path(files.model))
        await self._start(files)
        await self._until_healthy()
        await self._warm_up()
        await self._watch()

    async def _prepare(self) -> Prepared:
        """Have the model and its adapters brought into folders, by another process. Raise StepError."""
        command = [sys.executable, "-m", "turnout_worker.sources.prepare", *self._settings.arguments]
        seconds = self._settings.prepare_timeout
        try:
            _, answer = await self._ask_process(command, seconds)
            return prepared(answer)
        except TimeoutError as error:
            raise StepError(f"the model was not there after {seconds:g} s (--prepare-timeout)") from error
        except OSError as error:
            raise StepError(f"the process that fetches the model cannot be started: {error}") from error
        except NotPreparedError as error:
            raise StepError(str(error), error.reason) from error
        except ModelError as error:
            raise StepError(str(error), Cause.MISSING_FILE) from error

    async def _ask_process(self, command: list[str], seconds: float) -> tuple[int, bytes]:
        """Return exit status and output of *command*, whose log goes to this process's stderr.

        Raise OSError where it cannot be started, TimeoutError after *seconds*: then it is killed.
        """
        read, write = os.pipe()
        try:
            child = self._children.spawn(command, os.environ, output=write, errors=sys.stderr.fileno())
        except OSError:
            os.close(read)
            raise
        finally:
            os.close(write)
        with os.fdopen(read, "rb") as pipe:
            try:
                async with asyncio.timeout(seconds):
                    status = await asyncio.shield(child.ended)
            except TimeoutError:
                child.signal_group(signal.SIGKILL)
                raise
            return status, pipe.read(64 * 1024)  # what a pipe holds: the process has ended

    async def _check(self, folder: Path) -> None:
        self._enter(Phase.CHECKING, f"checking {folder}")
        try:
            names = architectures(folder)
        except ModelError as error:
            raise StepError(str(error), Cause.BROKEN_FILE) from error
        found = await self._accelerators()
        self.state = replace(self.state, model_path=str(folder), architectures=names, accelerators=found)
        _log.info("model %s: %s", folder, ", ".join(names) or "without an architecture")
        for one in found:
            _log.info(
                "accelerator: %s, %.1f of %.1f GiB free, compute capability %d.%d",
                one.name, one.free_bytes / 2**30, one.memory_bytes / 2**30, *one.compute_capability,
            )  # fmt: skip

    async def _accelerators(self) -> tuple[Accelerator, ...]:
        """Ask in another process, so that no driver is loaded into this one. Empty where that fails: the engine will say why."""
        program = Path(__file__).with_name("accelerators.py")
        try:
            status, text = await self._ask_process([sys.executable, "-I", "-S", str(program)], FACTS_SECONDS)
        except TimeoutError:
            _log.warning("accelerators are unknown: NVML did not answer within %g s", FACTS_SECONDS)
            return ()
        except OSError as error:
            _log.warning("accelerators are unknown: %s", error)
            return ()
        if status:
            _log.warning("accelerators are unknown: the process that asks ended with status %d", status)
            return ()
        return tuple(_accelerator(one) for one in json.loads(text))

    async def _start(self, files: Prepared) -> None:
        settings = self._settings
        self._enter(Phase.STARTING, "waiting for the engine's /health")
        if not _is_free(settings.engine_host, settings.port):
            raise StepError(f"port {settings.port} is taken by another process", Cause.PORT_TAKEN)
        command = settings.engine_command(files)
        environment = {**os.environ, MARK: self._guard.mark}
        if settings.api_key:
            environment[ENV_API_KEY] = settings.api_key
        self._oom_kills = oom_kills()
        read, write = os.pipe()
        try:
            self._engine = engine = self._children.spawn(command, environment, output=write, errors=write)
        except OSError as error:
            os.close(read)
            raise StepError(
                f"the engine's program {command[0]!r} cannot be started: {error.strerror}",
                Cause.BAD_ARGUMENT,
                EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_RUNNABLE,
            ) from error
        finally:
            os.close(write)
        self._guard.watch(engine.pid)
        self._pump = Pump(read, sys.stdout.fileno(), self._tail)
        self._pump.start()
        engine.ended.add_done_callback(self._note_end)
        self.state = replace(self.state, engine=replace(self.state.engine, pid=engine.pid))
        _log.info("engine, process %d: %s", engine.pid, " ".join(settings.shown_command))

    async def _until_healthy(self) -> None:
        deadline = self._now() + self._settings.startup_timeout
        while not await self._healthy():
            self._read_progress()
            if self._now() >= deadline:
                raise StepError(
                    f"the engine was not healthy after {self._settings.startup_timeout:g} s (--startup-timeout): "
                    f"{self._health_problem}; its last line: {self._tail.last()[:200] or 'none'}"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _warm_up(self) -> None:
        """Have one token generated: only then does an engine serve."""
        self._enter(Phase.WARMING, "waiting for a completion of one token")
        timeout = self._settings.warm_up_timeout
        problem = ""
        try:
            async with asyncio.timeout(timeout):
                for attempt in range(ATTEMPTS):
                    if attempt:
                        await asyncio.sleep(ATTEMPT_PAUSE_SECONDS)
                    problem = await self._complete(timeout)
                    if not problem:
                        break
                    _log.warning("the first completion failed: %s", problem)
        except TimeoutError:
            problem = problem or f"no answer within {timeout:g} s (--warm-up-timeout)"
        if problem:
            raise StepError(f"the engine is healthy, but its first completion failed: {problem}")
        self._enter(Phase.SERVING, "")
        self._served = True
        _log.info("serving on %s:%d", self._settings.engine_host, self._settings.port)

    async def _complete(self, seconds: float) -> str:
        """Ask for one token. Return what went wrong, empty where nothing did. Raise StepError where trying again cannot help."""
        try:
            answer = await self._client.get("/v1/models", seconds)
            _refused_for_good("/v1/models", answer.status, answer.body)
            models = answer.fields().get("data")
            if answer.status != HTTPStatus.OK or not isinstance(models, list) or not models:
                return f"/v1/models answered {answer.status} and names no model"
            body = {"model": models[0].get("id"), "prompt": "Hello", "max_tokens": 1, "temperature": 0}
            if self._settings.role == "prefill":
                body["kv_transfer_params"] = _LOCAL
            answer = await self._client.post("/v1/completions", body, seconds)
        except NoAnswerError as error:
            return str(error)
        _refused_for_good("/v1/completions", answer.status, answer.body)
        if answer.status != HTTPStatus.OK:
            return f"/v1/completions answered {answer.status}: {_shown(answer.body)}"
        choices = answer.fields().get("choices")
        if (
            not isinstance(choices, list)
            or not choices
            or choices[0].get("finish_reason") not in {"length", "stop"}
        ):
            return f"/v1/completions answered without a completion: {_shown(answer.body)}"
        return ""

    def _note_end(self, ended: asyncio.Future[int]) -> None:
        if not self._ended.done():
            self._ended.set_result(ended.result())

    # Serving

    async def _watch(self) -> None:
        """Look at /health again and again. Never returns."""
        while True:
            healthy = await self._healthy()
            if self.state.phase is Phase.SERVING and healthy == bool(self.state.message):
                self.state = replace(self.state, message=self._health_problem)
                _log.info("%s", self._health_problem or "/health answers again")
            await asyncio.sleep(HEALTH_SECONDS)

    async def _healthy(self) -> bool:
        try:
            answer = await self._client.get("/health", ANSWER_SECONDS)
        except NoAnswerError as error:
            self._health_problem = str(error)
            return False
        if answer.status != HTTPStatus.OK:
            self._health_problem = f"/health answered {answer.status}"
            return False
        self._health_problem = ""
        self._healthy_at = self._now()
        return True

    def unready(self) -> str:
        """Return why the engine should get no requests now; empty where it should."""
        if self.state.phase is not Phase.SERVING:
            return self.state.message or self.state.phase.value
        if self._health_problem:
            return self._health_problem
        old = self._now() - self._healthy_at
        return f"/health last answered {old:.0f} s ago" if old > ANSWER_SECONDS + STALE_SECONDS else ""

    def stuck(self) -> str:
        """Return why only a restart helps; empty where that is not so. Steps before serving have deadlines of their own."""
        if self.state.phase is Phase.FAILED:
            return self.state.message
        quiet = self._now() - self._healthy_at
        if self.state.phase is Phase.SERVING and quiet > self._settings.stuck_timeout:
            return f"the engine's /health has not answered well for {quiet:.0f} s: {self._health_problem}"
        return ""

    async def _report_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            if self.state.started:
                return
            loaded = (
                "" if self.state.progress is None else f", {self.state.progress:.0%} of the weights loaded"
            )
            line = self._tail.last()[:200]
            _log.info(
                "%s for %.0f s: %s%s%s", self.state.phase.value, time.time() - self.state.since, self.state.message, loaded,
                f"; the engine's last line: {line}" if line else "",
            )  # fmt: skip

    def _read_progress(self) -> None:
        found = (_LOADED.search(line) for line in reversed(self._tail.lines(PROGRESS_LINES)))
        match = next((one for one in found if one), None)
        if match is not None:
            self.state = replace(self.state, progress=int(match[1]) / 100)

    # Down

    def _ask_to_end(self, number: signal.Signals) -> None:
        (self._hastened if self._asked.is_set() else self._asked).set()
        _log.info(
            "%s: %s", signal.Signals(number).name, "ending now" if self._hastened.is_set() else "ending"
        )

    async def _stop(self) -> int:
        """End the engine as it was asked for. Returns 0 where it ended by itself or by that SIGTERM."""
        stuck = self.stuck()
        seconds = self._settings.shutdown_timeout
        self._enter(Phase.DRAINING, f"the engine has {seconds:g} s to finish its requests")
        if self._engine is None:
            self._enter(Phase.STOPPED, "ended before the engine was started")
            return 0
        in_time = await self._end_engine(seconds)
        await self._end_processes()
        status = self._ended.result()
        if in_time and status in {0, 128 + signal.SIGTERM, 128 + signal.SIGINT} and not stuck:
            self._enter(Phase.STOPPED, "the engine has ended")
            self.state = replace(self.state, engine=replace(self.state.engine, exit_status=status))
            _log.info("the engine has ended")
            return 0
        if in_time:
            words = LastWords(Cause.UNKNOWN, stuck) if stuck else self._last_words(status)
        else:
            words = LastWords(
                Cause.UNKNOWN,
                f"the engine was killed: it had not ended {seconds:g} s after SIGTERM (--shutdown-timeout)",
            )
            if self._hastened.is_set():
                words = LastWords(
                    Cause.UNKNOWN, "the engine was killed: a second SIGTERM came before it had ended"
                )
        return self._fail(words, status or 1)

    async def _end_engine(self, seconds: float) -> bool:
        """End the engine: SIGTERM, and SIGKILL to its group after *seconds*. Return whether it ended before that.

        SIGTERM goes to its first process alone, as it would where that were PID 1: vLLM's ranks end at once at a SIGTERM of their
        own, whatever runs in them.
        """
        assert self._engine is not None  # noqa: S101 - its callers have started it
        self._engine.signal(signal.SIGTERM)
        hastened = asyncio.create_task(self._hastened.wait())
        try:
            first: set[asyncio.Future[Any]] = {self._ended, hastened}
            await asyncio.wait(first, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not self._ended.done() and hastened.done():
                await asyncio.wait({self._ended}, timeout=HASTE_SECONDS)
        finally:
            hastened.cancel()
        if self._ended.done():
            return True
        _log.warning("the engine has not ended: it is killed")
        self._engine.signal_group(signal.SIGKILL)
        await asyncio.wait({self._ended}, timeout=KILL_SECONDS)
        if not self._ended.done():
            self._ended.set_result(
                128 + signal.SIGKILL
            )  # in an uninterruptible call: the container's end is left
        return False

    async def _give_up(self, up: asyncio.Task[None]) -> int:
        """End after a failed step. Returns its exit status."""
        error = up.exception()
        if not isinstance(error, StepError):
            _log.error("the worker failed", exc_info=error)
            error = StepError(f"the worker failed: {type(error).__name__}: {error}", Cause.UNKNOWN)
        words = error.words
        if self._engine is not None:
            await self._end_engine(GIVING_UP_SECONDS)
            await self._end_processes()
        return self._fail(words, error.status)

    async def _fell(self) -> int:
        """Say why the engine ended by itself. Returns its exit status."""
        await self._end_processes()
        status = self._ended.result()
        return self._fail(self._last_words(status), status)

    def _last_words(self, status: int) -> LastWords:
        oom_killed = oom_kills() > self._oom_kills
        return last_words(self._tail.lines(), status, served=self._served, oom_killed=oom_killed)

    async def _end_processes(self) -> None:
        """Kill what the engine has left behind, and have its output copied to the end."""
        engine, self._engine = self._engine, None  # once: its number may come to name another group
        if engine is not None:
            engine.signal_group(signal.SIGKILL)
        await self._children.kill_rest(KILL_SECONDS, spared=frozenset({self._guard.pid}))
        pump, self._pump = self._pump, None
        if pump is not None and not await asyncio.to_thread(pump.join, OUTPUT_SECONDS):
            _log.warning("the engine's output is not read: its last lines may be missing")

    def _fail(self, words: LastWords, status: int) -> int:
        self._enter(Phase.FAILED, str(words))
        ended = self._ended.result() if self._ended.done() else None
        engine = replace(self.state.engine, exit_status=ended, last_words=str(words))
        self.state = replace(self.state, engine=engine)
        _write_termination_log(self._settings.termination_log, str(words))
        sys.stderr.write(f"turnout-worker: {words}\n")
        sys.stderr.flush()
        return status

    def _enter(self, phase: Phase, message: str) -> None:
        self.state = self.state.enter(phase, time.time(), message)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _accelerator(fields: dict[str, Any]) -> Accelerator:
    major, minor = fields["compute_capability"]
    return Accelerator(fields["name"], fields["memory_bytes"], fields["free_bytes"], (major, minor))


def _refused_for_good(path: str, status: int, body: bytes) -> None:
    """Raise StepError where *path* refuses what the worker asks: it will do so again."""
    if (
        HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
        and status != HTTPStatus.TOO_MANY_REQUESTS
    ):
        key = " (--api-key-file)" if status == HTTPStatus.UNAUTHORIZED else ""
        raise StepError(
            f"the engine is healthy, but its first completion failed: {path} answered {status}{key}: {_shown(body)}"
        )


def _shown(body: bytes) -> str:
    return " ".join(body[:300].decode(errors="replace").split()) or "an empty answer"


def _is_free(host: str, port: int) -> bool:
    """Say whether the engine could listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _write_termination_log(path: str, text: str) -> None:
    if not path:
        return
    try:
        Path(path).write_bytes(text.encode()[:MAX_TERMINATION_BYTES])
    except OSError as error:
        _log.warning("the last words cannot be written to %s: %s", path, error)


def _note(where: str, error: BaseException) -> None:
    _log.error("%s failed: %s: %s", where, type(error).__name__, error, exc_info=error)
