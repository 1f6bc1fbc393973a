"""The worker's HTTP surface: routes to the engine and answers about it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import orjson

from turnout.engine import DuplicateRequestError, EngineRequest, QueueFullError, RequestTooLargeError
from turnout_worker import openai, text
from turnout_worker.errors import (
    AnswerError,
    BadRequestError,
    EngineFailedError,
    MethodError,
    OverloadedError,
    UnknownPathError,
)
from turnout_worker.faults import GARBAGE, Fault, parse_fault
from turnout_worker.generation import Answer, Generation

if TYPE_CHECKING:
    from turnout.engine import Finished
    from turnout_worker.driver import Driver
    from turnout_worker.http import Exchange
    from turnout_worker.metrics import Metrics
    from turnout_worker.openai import CompletionRequest, Kind
    from turnout_worker.settings import WorkerSettings
    from turnout_worker.transfer import Fetcher

VERSION: Final = "0.32.0"
"""The vLLM whose likeness this is."""
MAX_REQUEST_ID: Final = 256

_log = logging.getLogger(__name__)
_Route = Callable[["Exchange"], None]


class WorkerApplication:
    """Answers requests. Its state is what it refuses at the moment and which fault was ordered."""

    def __init__(
        self, settings: WorkerSettings, driver: Driver, metrics: Metrics, fetcher: Fetcher, engine_id: str
    ) -> None:
        self._settings = settings
        self._driver = driver
        self._metrics = metrics
        self._fetcher = fetcher
        self._engine_id = engine_id
        self._fault = Fault()
        self._numbers = count()
        self._started = int(time.time())
        self._fetches: set[asyncio.Task[None]] = set()
        self._live: dict[str, Generation] = {}
        self.side_channel_port = settings.side_channel_port
        self.draining = False
        """No new completions: the process is about to end."""
        self.dead = False
        """The engine core has died."""
        self.on_death: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._routes: dict[str, dict[str, _Route]] = {
            "/v1/chat/completions": {"POST": lambda e: self._complete(e, "chat")},
            "/v1/completions": {"POST": lambda e: self._complete(e, "text")},
            "/v1/models": {"GET": self._models},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/version": {"GET": lambda e: _json(e, {"version": VERSION})},
            "/metrics": {"GET": self._metrics_text},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/admin/faults": {
                "GET": lambda e: e.respond(200, self._fault.body()),
                "POST": self._order_fault,
            },
        }

    def __call__(self, exchange: Exchange) -> None:
        """Answer *exchange*, now or when the engine has."""
        request = exchange.request
        try:
            methods = self._routes.get(request.path)
            if methods is None:
                raise UnknownPathError(f"nothing is served under {request.path[:200]}")
            route = methods.get("GET" if request.method == "HEAD" else request.method)
            if route is None:
                raise MethodError(f"{request.path} knows {', '.join(methods)} only")
            route(exchange)
        except AnswerError as error:
            exchange.respond(error.status, openai.error_body(error), _echo(exchange))

    @property
    def busy(self) -> bool:
        """Whether requests are under way or prompts wait to be fetched."""
        return not self._driver.idle or self._driver.stats().pinned > 0

    def end(self) -> None:
        """Abort what is under way: streams end with an error event, as vLLM's do."""
        for request_id, generation in list(self._live.items()):
            generation.fail(EngineFailedError("The worker is shutting down."))
            self._driver.abort(request_id, failed=True)
        for task in self._fetches:
            task.cancel()

    # Completions

    def _complete(self, exchange: Exchange, kind: Kind) -> None:
        if self.dead or self.draining:
            raise EngineFailedError("EngineCore encountered an issue: it is dead or shutting down.")
        if self._fault.strike("error"):
            self._refuse(exchange, self._fault.status)
            return
        if self._fault.strike("garbage"):
            exchange.abandon(GARBAGE)
            return
        settings = self._settings
        try:
            request = openai.parse(
                exchange.request.body,
                kind,
                served_names=settings.served_names,
                max_length=settings.max_length,
                seed=settings.seed,
                transfers=settings.role != "aggregated",
            )
        except openai.FatalTransferError:
            self._die(exchange)
            return
        self._submit(exchange, request)

    def _submit(self, exchange: Exchange, request: CompletionRequest) -> None:
        known_as = exchange.request.headers.get("x-request-id", "")[:MAX_REQUEST_ID] or uuid4().hex
        request_id = f"{known_as}-{next(self._numbers)}"
        answer = Answer(
            id=known_as,
            created=int(time.time()),
            headers=(("x-request-id", known_as),),
            cached_tokens_told=self._settings.prompt_tokens_details,
            cut_after=self._fault.after_tokens if self._fault.strike("reset") else None,
            transfer_params=self._transfer_params if request.pin else None,
        )
        generation = Generation(
            request, exchange, answer, lambda g, tokens: self._fetch(request_id, request, g, tokens)
        )
        whole = request.prompt if request.pin else text.pad(request.prompt) + request.output
        engine_request = EngineRequest(
            id=request_id,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            block_hashes=text.block_hashes(whole, self._settings.engine.block_size),
            finish_reason=request.finish_reason,
            pin=request.pin,
            remote_tokens=_remote_tokens(request),
        )
        try:
            self._driver.submit(engine_request, _Tracked(self._live, request_id, generation))
        except QueueFullError as error:
            raise OverloadedError(f"The engine's queue is full: {error}.") from error
        except RequestTooLargeError as error:
            raise BadRequestError(str(error)) from error
        except DuplicateRequestError as error:
            raise EngineFailedError(str(error)) from error
        self._live[request_id] = generation
        exchange.on_gone = lambda: self._driver.abort(request_id)

    def _transfer_params(self, event: Finished) -> dict[str, Any]:
        """Return what a decode worker needs to fetch the prompt of *event*.

        Block numbers are made up: the simulated engine knows blocks by their content, not by their place.
        """
        size = self._settings.engine.block_size
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": list(range(-(-event.prompt_tokens // size))),
            "remote_engine_id": self._engine_id,
            "remote_request_id": event.id,
            "remote_host": self._settings.advertised_host,
            "remote_port": self.side_channel_port,
            "tp_size": self._settings.tensor_parallel,
            "remote_num_tokens": event.prompt_tokens,
            "transfer_mode": "pull",
        }

    def _fetch(
        self, request_id: str, request: CompletionRequest, generation: Generation, tokens: int
    ) -> None:
        task = asyncio.get_running_loop().create_task(self._fetched(request_id, request, generation, tokens))
        self._fetches.add(task)
        task.add_done_callback(self._fetches.discard)

    async def _fetched(
        self, request_id: str, request: CompletionRequest, generation: Generation, tokens: int
    ) -> None:
        remote = request.remote
        if remote is None:
            raise AssertionError("the engine fetches only what a request said is remote")
        try:
            held = await self._fetcher.fetch(remote)
        except EngineFailedError as error:
            self._metrics.failed_transfers += 1
            generation.fail(error)
            self._driver.abort(request_id, failed=True)
            return
        if held:
            self._metrics.transferred(tokens)
        else:
            self._metrics.stale_reads += 1
            _log.warning("request %s reads KV blocks that were freed: its answer is garbage", request_id)
            generation.read_freed_blocks(
                text.output(self._settings.seed, request.prompt, request.output_tokens, "freed blocks")
            )
        self._driver.deliver(request_id)

    # Faults

    def _refuse(self, exchange: Exchange, status: int) -> None:
        body = {
            "message": "a fault was ordered",
            "type": "InternalServerError",
            "param": None,
            "code": status,
        }
        exchange.respond(status, orjson.dumps({"error": body}), _echo(exchange))

    def _die(self, exchange: Exchange) -> None:
        self.dead = True
        error = EngineFailedError("EngineCore encountered an issue: do_remote_prefill without remote blocks.")
        exchange.respond(error.status, openai.error_body(error), _echo(exchange))
        _log.error("the engine core died: kv_transfer_params asked for a remote prefill without saying where")
        if not self.on_death.done():
            self.on_death.set_result(None)

    def _order_fault(self, exchange: Exchange) -> None:
        self._fault = fault = parse_fault(exchange.request.body)
        self._driver.slow(fault.factor if fault.kind == "slow" else 1.0)
        self._driver.hang(on=fault.kind == "hang")
        self._driver.crash_after(fault.after_tokens if fault.kind == "crash" else None)
        exchange.respond(200, fault.body())

    # About the engine

    def _health(self, exchange: Exchange) -> None:
        exchange.respond(HTTPStatus.INTERNAL_SERVER_ERROR if self.dead else HTTPStatus.OK, b"")

    def _models(self, exchange: Exchange) -> None:
        models = [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": "vllm",
                "root": self._settings.model.removeprefix("hf://"),
                "parent": None,
                "max_model_len": self._settings.max_length,
            }
            for name in self._settings.served_names
        ]
        _json(exchange, {"object": "list", "data": models})

    def _metrics_text(self, exchange: Exchange) -> None:
        body = self._metrics.exposition(self._driver.stats())
        exchange.respond(200, body, type_="text/plain; version=0.0.4; charset=utf-8")

    def _tokenize(self, exchange: Exchange) -> None:
        prompt = openai.prompt_of(exchange.request.body)
        width = text.TOKEN_BYTES
        tokens = [int.from_bytes(prompt[at : at + width], "big") for at in range(0, len(prompt), width)]
        _json(exchange, {"count": len(tokens), "max_model_len": self._settings.max_length, "tokens": tokens})

    def _detokenize(self, exchange: Exchange) -> None:
        _json(exchange, {"prompt": openai.tokens_of(exchange.request.body).decode(errors="replace")})


class _Tracked:
    """A follower that is forgotten when its request is over."""

    __slots__ = ("_generation", "_live", "_request_id", "fetch", "progress", "wants_tokens")

    def __init__(self, live: dict[str, Generation], request_id: str, generation: Generation) -> None:
        self._live = live
        self._request_id = request_id
        self._generation = generation
        self.wants_tokens = generation.wants_tokens
        self.fetch = generation.fetch
        self.progress = generation.progress

    def finished(self, event: Finished) -> None:
        """Forget the request and pass the end on."""
        del self._live[self._request_id]
        self._generation.finished(event)


def _remote_tokens(request: CompletionRequest) -> int:
    if request.remote is None:
        return 0
    held = request.remote.tokens
    return request.prompt_tokens if held is None else max(1, min(held, request.prompt_tokens))


def _json(exchange: Exchange, value: object) -> None:
    exchange.respond(200, orjson.dumps(value))


def _echo(exchange: Exchange) -> tuple[tuple[str, str], ...]:
    known_as = exchange.request.headers.get("x-request-id", "")[:MAX_REQUEST_ID]
    return (("x-request-id", known_as),) if known_as else ()
