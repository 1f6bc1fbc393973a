"""Requests for tokens and for vectors on their way through the engine, from understanding to answer."""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import orjson

from turnout.simulation import DuplicateRequestError, EngineRequest, QueueFullError, RequestTooLargeError
from turnout_worker import body, errors, inputs, messages, openai, pooling, responses, text
from turnout_worker.completions import CompletionForm
from turnout_worker.errors import (
    AnswerError,
    BadRequestError,
    EngineFailedError,
    EngineInputError,
    OverloadedError,
)
from turnout_worker.generation import GeneratedAnswer, Generation, refuse_in_stream

if TYPE_CHECKING:
    from turnout.simulation import Finished
    from turnout_runtime.supervision import Supervisor
    from turnout_worker.answer import Form
    from turnout_worker.body import Kind
    from turnout_worker.driver import Driver, Follower
    from turnout_worker.generation import Choice
    from turnout_worker.http import Exchange
    from turnout_worker.kvevents import CacheEvents
    from turnout_worker.metrics import Metrics
    from turnout_worker.openai import CompletionRequest, RemotePrefill
    from turnout_worker.pooling import PoolingKind, PoolingRequest
    from turnout_worker.settings import WorkerSettings
    from turnout_worker.transfer import Fetcher

MAX_REQUEST_ID: Final = 256
_QUICK_BYTES: Final = 64 * 1024
"""Bytes of text whose vectors take a few milliseconds."""
_SENT_IN_STREAM: Final = 6
"""One in so many streamed text completions that a full queue refuses learns of it inside the stream; of chats, all do."""

_log = logging.getLogger(__name__)


class Serving:
    """Hands requests to the engine, and what it makes of them to clients. Knows which are under way."""

    def __init__(
        self,
        settings: WorkerSettings,
        driver: Driver,
        metrics: Metrics,
        fetcher: Fetcher,
        engine_id: str,
        *,
        supervisor: Supervisor,
        events: CacheEvents | None = None,
    ) -> None:
        self._supervisor = supervisor
        self._settings = settings
        self._driver = driver
        self._metrics = metrics
        self._fetcher = fetcher
        self._engine_id = engine_id
        self._events = events
        self._numbers = count()
        self._refused_texts = count()
        self._fetches: set[asyncio.Task[None]] = set()
        self._live: dict[str, Generation | _Pooled] = {}
        self.side_channel_port = settings.side_channel_port

    def end(self) -> None:
        """Abort what is under way: it ends as if it were whole, with the reason `abort`, as vLLM has it."""
        for request_id in list(self._live):
            self._driver.abort(request_id)
        self._stop_fetching()

    def break_off(self) -> None:
        """End all answers with an error, without the engine, which can do nothing more."""
        for owner in list(self._live.values()):
            owner.break_off()
        self._live.clear()
        self._stop_fetching()

    def _stop_fetching(self) -> None:
        for task in self._fetches:
            task.cancel()

    def adapters_under_way(self) -> tuple[str, ...]:
        """Return the LoRA adapters of the requests that are under way."""
        models = {owner.model for owner in self._live.values()}
        return tuple(name for name in self._settings.adapters if name in models)

    def complete(
        self, exchange: Exchange, kind: Kind, *, cut_after: int | None = None, abort_after: int | None = None
    ) -> None:
        """Generate. Raise an AnswerError, or openai.FatalTransferError as its docstring says."""
        settings = self._settings
        fields = body.read(body.object_of(exchange.request.body), kind)
        chat = fields
        try:
            if kind == "response":
                chat = responses.as_chat(fields)
            elif kind == "message":
                chat = messages.as_chat(fields)
            request = openai.understand(
                chat,
                kind,
                served_names=settings.names,
                max_length=settings.max_length,
                seed=settings.seed,
                transfers=settings.role != "aggregated",
            )
        except AnswerError:
            self._let_go(fields)
            raise
        request_id = request_id_of(exchange)
        answer = GeneratedAnswer(
            form=_form(request, fields, request_id, int(time.time())),
            error_body=messages.error_body if kind == "message" else errors.error_body,
            headers=(("x-request-id", request_id),),
            show_cached_tokens=settings.prompt_tokens_details,
            cut_after=cut_after,
            abort_after=abort_after,
            transfer_params=self._transfer_params if request.pin else None,
        )
        try:
            inputs.check(chat, kind)
            self._generate(exchange, request, answer, request_id)
        except (EngineInputError, OverloadedError) as error:
            if not self._is_sent_in_stream(request, error):
                raise
            refuse_in_stream(exchange, answer, error)

    def _generate(
        self, exchange: Exchange, request: CompletionRequest, answer: GeneratedAnswer, request_id: str
    ) -> None:
        ids: dict[int, str] = {}
        generation = Generation(
            request, exchange, answer, lambda choice, tokens: self._fetch(ids[0], request, choice, tokens)
        )

        def abort() -> None:
            for engine_id in ids.values():
                self._driver.abort(engine_id)

        exchange.on_gone = generation.on_failed = generation.abort = abort
        for index, choice in enumerate(generation.choices):
            ids[index] = f"{request_id}-{next(self._numbers)}"
            try:
                engine_request = self._engine_request(request, index, ids[index])
                self._submit(engine_request, choice, generation)
                if self._events is not None:
                    adapter, salt = self._apart(request)
                    self._events.expect(engine_request, _content(request, index), adapter, salt)
            except BaseException:
                generation.on_failed = generation.abort = exchange.on_gone = None
                abort()
                raise
        if answer.abort_after == 0:
            abort()

    def _is_sent_in_stream(self, request: CompletionRequest, error: AnswerError) -> bool:
        """Say whether the client of a request that the engine has refused has an answer with status 200 by then."""
        if not request.stream:
            return False
        if isinstance(error, OverloadedError) and request.kind == "text":
            return next(self._refused_texts) % _SENT_IN_STREAM == _SENT_IN_STREAM - 1
        return True

    def _let_go(self, fields: dict[str, Any]) -> None:
        """Have the prefill worker free the blocks that it holds for a request which is refused."""
        remote = openai.remote_of(fields) if self._settings.role != "aggregated" else None
        if remote is not None:
            self._keep(self._supervisor.once("kv_fetch", self._released(remote)))

    async def _released(self, remote: RemotePrefill) -> None:
        try:
            await self._fetcher.fetch(remote)
        except EngineFailedError as error:
            _log.warning("a refused request's blocks stay pinned until their lease ends: %s", error)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._fetches.add(task)
        task.add_done_callback(self._fetches.discard)

    def pool(self, exchange: Exchange, kind: PoolingKind) -> None:
        """Compute vectors. Raise an AnswerError."""
        fields = body.object_of(exchange.request.body)
        model = openai.model_of(fields, self._settings.names)
        request = pooling.parse(fields, kind, self._settings.max_length - 1)
        request_id = request_id_of(exchange)
        pooled = _Pooled(request, exchange, model, request_id, self._supervisor)
        ids: list[str] = []

        def abort() -> None:
            for engine_id in ids:
                self._driver.abort(engine_id)

        exchange.on_gone = abort
        for one in request.texts:
            ids.append(f"{request_id}-{next(self._numbers)}")
            engine_request = EngineRequest(
                id=ids[-1],
                prompt_tokens=max(1, text.token_count(one)),
                output_tokens=1,  # the engine has no other way to say that a prompt is computed
                block_hashes=text.block_hashes(one, self._settings.engine.block_size),
                finish_reason="stop",
            )
            try:
                self._submit(engine_request, pooled, pooled)
                if self._events is not None:
                    self._events.expect(engine_request, one)
            except BaseException:
                exchange.on_gone = None
                pooled.forget()
                abort()
                raise

    def _submit(self, request: EngineRequest, follower: Follower, owner: Generation | _Pooled) -> None:
        try:
            self._driver.submit(request, _Tracked(self._live, request.id, follower))
        except QueueFullError as error:
            raise OverloadedError from error
        except RequestTooLargeError as error:
            raise BadRequestError(str(error)) from error
        except DuplicateRequestError as error:
            raise EngineFailedError(str(error)) from error
        self._live[request.id] = owner

    def _engine_request(self, request: CompletionRequest, index: int, request_id: str) -> EngineRequest:
        said = request.outputs[index]
        hashes = text.block_hashes(_content(request, index), self._settings.engine.block_size)
        apart = self._apart(request)
        if any(apart):
            other = hash(apart)
            hashes = tuple(number ^ other for number in hashes)
        return EngineRequest(
            id=request_id,
            prompt_tokens=request.prompt_tokens,
            output_tokens=said.tokens,
            block_hashes=hashes,
            finish_reason=said.finish_reason,
            pin=request.pin,
            remote_tokens=_remote_tokens(request),
        )

    def _apart(self, request: CompletionRequest) -> tuple[str | None, str | None]:
        """Return what parts the request's cache from the model's own: its LoRA adapter and its salt."""
        adapter = request.model if request.model in self._settings.adapters else None
        return adapter, request.cache_salt

    def _transfer_params(self, event: Finished) -> dict[str, Any]:
        """Return what a decode worker needs to fetch the prompt of *event*.

        Block numbers are made up: the simulated engine knows blocks by their content, not by their place.
        """
        size = self._settings.engine.block_size
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(-(-event.prompt_tokens // size)))],
            "remote_engine_id": self._engine_id,
            "remote_request_id": event.id,
            "remote_host": self._settings.advertised_host,
            "remote_port": self.side_channel_port,
            "tp_size": self._settings.tensor_parallel,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": event.prompt_tokens,
            "remote_blocks_expiry_time": None,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": event.cached_tokens,
        }

    def _fetch(self, request_id: str, request: CompletionRequest, choice: Choice, tokens: int) -> None:
        self._keep(self._supervisor.once("kv_fetch", self._fetched(request_id, request, choice, tokens)))

    async def _fetched(
        self, request_id: str, request: CompletionRequest, choice: Choice, tokens: int
    ) -> None:
        remote = request.remote
        if remote is None:
            raise AssertionError("the engine fetches only what a request said is remote")
        try:
            held = await self._fetcher.fetch(remote)
        except EngineFailedError as error:
            self._not_fetched(request_id, error)
            return
        except BaseException:  # a stray CancelledError, too: nothing else would end the request
            self._not_fetched(request_id, EngineFailedError("KV transfer failed"))
            raise
        if held:
            self._metrics.transferred(tokens)
        else:
            self._metrics.stale_reads += 1
            _log.warning("request %s reads KV blocks that were freed: its answer is garbage", request_id)
            said = request.outputs[0]
            choice.read_freed_blocks(
                text.output(self._settings.seed, request.prompt, said.tokens, "freed blocks")
            )
        self._driver.deliver(request_id)

    def _not_fetched(self, request_id: str, error: EngineFailedError) -> None:
        self._metrics.failed_transfers += 1
        if (owner := self._live.get(request_id)) is not None:
            owner.fail(error)
        self._driver.abort(request_id, failed=True)


class _Pooled:
    """Follows the sequences of one pooling request, all at once, and answers when the last one has ended."""

    wants_tokens = False

    def __init__(
        self,
        request: PoolingRequest,
        exchange: Exchange,
        model: str,
        request_id: str,
        supervisor: Supervisor,
    ) -> None:
        self._supervisor = supervisor
        self._request = request
        self._exchange = exchange
        self.model = model
        self._request_id = request_id
        self._left = len(request.texts)
        self._failure = EngineFailedError("The request was aborted by the engine.")

    def forget(self) -> None:
        """Answer nothing any more: the request was refused."""
        self._left = -1

    def break_off(self) -> None:
        """End the answer without the engine."""
        if self._left >= 0:
            self._left = -1
            self._refuse()

    def _refuse(self) -> None:
        headers = (("x-request-id", self._request_id),)
        self._exchange.respond(self._failure.status, errors.error_body(self._failure), headers)

    def fail(self, failure: EngineFailedError) -> None:
        """Say why the request is about to be aborted."""
        self._failure = failure

    def fetch(self, tokens: int) -> None:
        """Refuse: nothing of it is remote."""
        raise AssertionError(f"{tokens} tokens of a pooling request cannot be remote")

    def progress(self, output_tokens: int) -> None:
        """Ignore: no tokens come out of it."""

    def finished(self, event: Finished) -> None:
        """Answer, when this was the last sequence or one has failed."""
        if self._left < 0:
            return
        self._left -= 1
        if event.reason not in {"stop", "length"}:
            self._left = -1
            self._refuse()
        elif not self._left and self._request.tokens * text.TOKEN_BYTES <= _QUICK_BYTES:
            self._respond(self._answer())
        elif not self._left:
            self._supervisor.once("request", self._answer_beside())

    async def _answer_beside(self) -> None:
        """Answer from a thread, which leaves the event loop to others."""
        try:
            self._respond(await asyncio.to_thread(self._answer))
        except BaseException:
            self._refuse()
            raise

    def _answer(self) -> bytes:
        return orjson.dumps(pooling.answer(self._request, self.model, self._request_id, int(time.time())))

    def _respond(self, answer: bytes) -> None:
        self._exchange.respond(200, answer, (("x-request-id", self._request_id),))


class _Tracked:
    """A follower that is forgotten when its request is over."""

    __slots__ = ("_follower", "_live", "_request_id", "fetch", "progress", "wants_tokens")

    def __init__(self, live: dict[str, Generation | _Pooled], request_id: str, follower: Follower) -> None:
        self._live = live
        self._request_id = request_id
        self._follower = follower
        self.wants_tokens = follower.wants_tokens
        self.fetch = follower.fetch
        self.progress = follower.progress

    def finished(self, event: Finished) -> None:
        """Forget the request and pass the end on."""
        self._live.pop(self._request_id, None)
        self._follower.finished(event)

    def break_off(self) -> None:
        """Forget the request and end its answer without the engine."""
        self._live.pop(self._request_id, None)
        self._follower.break_off()


def request_id_of(exchange: Exchange) -> str:
    """Return the id that the client gave its request, or a new one."""
    return exchange.request.headers.get("x-request-id", "")[:MAX_REQUEST_ID] or uuid4().hex


def _form(request: CompletionRequest, fields: dict[str, Any], request_id: str, created: int) -> Form:
    if request.kind == "response":
        return responses.ResponseForm(request, fields, request_id, created)
    if request.kind == "message":
        return messages.MessageForm(request, request_id)
    return CompletionForm(request, request_id, created)


def _content(request: CompletionRequest, index: int) -> bytes:
    """Return the tokens whose KV the choice number *index* leaves behind, as bytes."""
    return request.prompt if request.pin else text.pad(request.prompt) + request.outputs[index].text


def _remote_tokens(request: CompletionRequest) -> int:
    if request.remote is None:
        return 0
    held = request.remote.tokens
    return request.prompt_tokens if held is None else max(1, min(held, request.prompt_tokens))
