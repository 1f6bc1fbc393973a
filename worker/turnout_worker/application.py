"""The worker's HTTP surface: routes to the engine and answers about it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import orjson

from turnout_worker import body, errors, messages, openai, text
from turnout_worker.errors import AnswerError, BodyError, EngineFailedError, MethodError, UnknownPathError
from turnout_worker.faults import GARBAGE, Fault, parse_fault
from turnout_worker.metrics import LoraState
from turnout_worker.serving import MAX_REQUEST_ID

if TYPE_CHECKING:
    from turnout_worker.body import Kind
    from turnout_worker.driver import Driver
    from turnout_worker.http import Exchange
    from turnout_worker.metrics import Metrics
    from turnout_worker.pooling import PoolingKind
    from turnout_worker.serving import Serving
    from turnout_worker.settings import WorkerSettings

VERSION: Final = "0.32.0"
"""The vLLM whose likeness this is."""

_log = logging.getLogger(__name__)
_Route = Callable[["Exchange"], None]


class WorkerApplication:
    """Answers requests. Its state is what it refuses at the moment and which fault was ordered."""

    def __init__(
        self,
        settings: WorkerSettings,
        driver: Driver,
        metrics: Metrics,
        serving: Serving,
        note: Callable[[str, BaseException], None],
    ) -> None:
        """*note* is given what a request raises that it should not, under the name `request`."""
        self._note = note
        self._settings = settings
        self._driver = driver
        self._metrics = metrics
        self._serving = serving
        self._fault = Fault()
        self._started = int(time.time())
        self.draining = False
        """No new completions: the process is about to end."""
        self.dead = False
        """The engine core has died."""
        self.on_death: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        completions: dict[str, Kind] = {
            "/v1/chat/completions": "chat",
            "/v1/completions": "text",
            "/v1/responses": "response",
            "/v1/messages": "message",
        }
        poolings: dict[str, PoolingKind] = {
            "/v1/embeddings": "embed",
            "/v1/score": "score",
            "/score": "score",
            "/v1/rerank": "rerank",
            "/v2/rerank": "rerank",
            "/rerank": "rerank",
        }
        self._routes: dict[str, dict[str, _Route]] = {
            **{path: {"POST": self._completion(kind)} for path, kind in completions.items()},
            **{path: {"POST": self._pooling(kind)} for path, kind in poolings.items()},
            "/v1/messages/count_tokens": {"POST": self._count_tokens},
            "/v1/models": {"GET": self._models},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/version": {"GET": lambda e: _json(e, {"version": VERSION})},
            "/metrics": {"GET": self._metrics_text},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/reset_prefix_cache": {"POST": self._reset_prefix_cache},
            "/admin/faults": {
                "GET": lambda e: e.respond(200, self._fault.body()),
                "POST": self._order_fault,
            },
        }

    def __call__(self, exchange: Exchange) -> None:
        """Answer *exchange*, now or when the engine has."""
        try:
            self._route(exchange)
        except AnswerError as error:
            _refuse(exchange, error)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it is this request's, and no other's
            self._note("request", error)
            if exchange.streaming:
                exchange.abandon()
            else:
                _refuse(exchange, EngineFailedError(f"The request failed: {type(error).__name__}."))

    def _route(self, exchange: Exchange) -> None:
        request = exchange.request
        methods = self._routes.get(request.path)
        if methods is None:
            raise UnknownPathError("Not Found")
        route = methods.get(request.method)  # vLLM does not answer HEAD where it answers GET
        if route is None:
            raise MethodError(", ".join(methods))
        route(exchange)

    @property
    def busy(self) -> bool:
        """Whether requests are under way or prompts wait to be fetched."""
        return not self._driver.idle or self._driver.stats().pinned > 0

    @property
    def failed(self) -> bool:
        """Whether the engine cannot go on."""
        return self._driver.failed

    def end(self) -> None:
        """Abort what is under way."""
        self._serving.end()

    def break_off(self) -> None:
        """Refuse everything and end what is under way with an error: the engine can do nothing more."""
        self.dead = True
        self._serving.break_off()

    # What the engine computes

    def _completion(self, kind: Kind) -> _Route:
        def route(exchange: Exchange) -> None:
            if self._may_serve(exchange):
                after = self._fault.after_tokens
                cut_after = after if self._fault.strike("reset") else None
                abort_after = after if self._fault.strike("abort") else None
                try:
                    self._serving.complete(exchange, kind, cut_after=cut_after, abort_after=abort_after)
                except openai.FatalTransferError:
                    self._die(exchange)

        return route

    def _pooling(self, kind: PoolingKind) -> _Route:
        def route(exchange: Exchange) -> None:
            if self._may_serve(exchange):
                self._serving.pool(exchange, kind)

        return route

    def _may_serve(self, exchange: Exchange) -> bool:
        """Say whether *exchange* may go on to the engine; answer it as an ordered fault has it where not."""
        if self.dead or self.draining or self.failed:
            raise EngineFailedError("EngineCore encountered an issue: it is dead or shutting down.")
        if self._fault.strike("error"):
            status = self._fault.status
            said = {
                "message": "a fault was ordered",
                "type": "InternalServerError",
                "param": None,
                "code": status,
            }
            exchange.respond(status, orjson.dumps({"error": said}), _echo(exchange))
            return False
        if self._fault.strike("garbage"):
            exchange.abandon(GARBAGE)
            return False
        return True

    def _die(self, exchange: Exchange) -> None:
        self.dead = True
        _refuse(
            exchange,
            EngineFailedError("EngineCore encountered an issue: do_remote_prefill without remote blocks."),
        )
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
        dead = self.dead or self.failed
        exchange.respond(HTTPStatus.INTERNAL_SERVER_ERROR if dead else HTTPStatus.OK, b"")

    def _models(self, exchange: Exchange) -> None:
        settings = self._settings
        models = [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": "vllm",
                "root": settings.adapters.get(name, settings.model.removeprefix("hf://")),
                "parent": settings.served_names[0] if name in settings.adapters else None,
                "max_model_len": None if name in settings.adapters else settings.max_length,
                "permission": [_permission(name, self._started)],
            }
            for name in settings.names
        ]
        _json(exchange, {"object": "list", "data": models})

    def _metrics_text(self, exchange: Exchange) -> None:
        lora = None
        if self._settings.adapters:
            lora = LoraState(self._settings.max_loras, self._serving.adapters_under_way(), time.time())
        page = self._metrics.exposition(self._driver.stats(), lora)
        exchange.respond(200, page, type_="text/plain; version=0.0.4; charset=utf-8")

    def _reset_prefix_cache(self, exchange: Exchange) -> None:
        _json(exchange, {"success": self._driver.reset_prefix_cache()})

    # Tokens without the engine

    def _tokenize(self, exchange: Exchange) -> None:
        prompt = openai.prompt_of(self._about_tokens(exchange))
        tokens = text.token_ids(prompt)
        _json(exchange, {"count": len(tokens), "max_model_len": self._settings.max_length, "tokens": tokens})

    def _detokenize(self, exchange: Exchange) -> None:
        said = openai.tokens_of(self._about_tokens(exchange))
        _json(exchange, {"prompt": said.decode(errors="replace")})

    def _count_tokens(self, exchange: Exchange) -> None:
        prompt = openai.prompt_of(messages.as_chat(self._about_tokens(exchange)))
        _json(exchange, {"input_tokens": text.token_count(prompt)})

    def _about_tokens(self, exchange: Exchange) -> dict[str, Any]:
        fields = body.object_of(exchange.request.body)
        openai.model_of(fields, self._settings.names)
        return fields


def _refuse(exchange: Exchange, error: AnswerError) -> None:
    """Answer with *error*, in the words of the API that was asked."""
    if isinstance(error, UnknownPathError | MethodError):
        allowed = (("allow", error.methods),) if isinstance(error, MethodError) else ()
        exchange.respond(error.status, orjson.dumps({"detail": error.message}), allowed)
        return
    anthropic = exchange.request.path.startswith("/v1/messages") and not isinstance(error, BodyError)
    answer = messages.error_body(error) if anthropic else errors.error_body(error)
    exchange.respond(error.status, answer, _echo(exchange))


def _permission(name: str, created: int) -> dict[str, Any]:
    """Return the permission object that OpenAI's API once had, and vLLM's still has."""
    return {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }


def _json(exchange: Exchange, value: object) -> None:
    exchange.respond(200, orjson.dumps(value), _echo(exchange))


def _echo(exchange: Exchange) -> tuple[tuple[str, str], ...]:
    request_id = exchange.request.headers.get("x-request-id", "")[:MAX_REQUEST_ID]
    return (("x-request-id", request_id),) if request_id else ()
