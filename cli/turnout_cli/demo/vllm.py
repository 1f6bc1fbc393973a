"""The demo with a real model: vLLM on this machine's processor, a prefill and a decode worker, and questions with real answers."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from turnout.terms import LABEL_DEPLOYMENT, LABEL_ROLE, WORKER_PORT
from turnout_cli.demo.diagnostics import write_diagnostics
from turnout_cli.demo.errors import DemoError, ReadError, SetupError
from turnout_cli.demo.setup import install, serve
from turnout_cli.demo.source import CHART, find_checkout, read_manifest
from turnout_devcluster.cluster import Cluster
from turnout_devcluster.errors import DevClusterError
from turnout_devcluster.progress import Progress
from turnout_devcluster.vllm.environment import python
from turnout_devcluster.vllm.models import ensure_model
from turnout_prom.exposition import samples

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from turnout_cli.demo.setup import Serving

EXAMPLE: Final = "examples/smollm2-vllm.yaml"
READY_SECONDS: Final = 600.0
"""An engine on two busy cores needs minutes to start."""
QUESTIONS: Final = (
    "What is the capital of France?",
    "Name three colors of the rainbow.",
    "Why is the sky blue? Answer in one sentence.",
    "Write a haiku about trains.",
    "What does a router do?",
    "How many days has a week?",
)
AT_ONCE: Final = 2
MAX_TOKENS: Final = 48
ANSWER_SECONDS: Final = 120.0
_BY_SOURCE: Final = "vllm:prompt_tokens_by_source_total"
_MOVED: Final = "external_kv_transfer"
_SHOWN: Final = 60
"""Characters of an answer that the table shows: its end, while it grows."""


@dataclass(slots=True)
class Question:
    """A question, and its answer as far as it has come."""

    text: str
    answer: str = ""
    asked_at: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0
    tokens: int = 0
    error: str = ""

    @property
    def first_seconds(self) -> float | None:
        """Time to the first token. None: there is none yet."""
        return self.first_at - self.asked_at if self.first_at else None

    @property
    def token_seconds(self) -> float | None:
        """Mean time between tokens. None: there are fewer than two."""
        return (self.last_at - self.first_at) / (self.tokens - 1) if self.tokens > 1 else None


@dataclass(slots=True)
class Conversation:
    """All questions, and what the decode worker says of where prompts come from."""

    questions: list[Question] = field(default_factory=list)
    prompt_tokens: dict[str, int] = field(default_factory=dict)
    """Prompt tokens of the decode worker by source."""


def run_vllm_demo(*, keep: bool, name: str, output: Path) -> int:
    """Run the demo and return how many questions were not answered. Raise DemoError where a step fails."""
    checkout = find_checkout()
    say = Progress()
    try:
        # Pods are processes of this machine: they find the program where this process does.
        os.environ["PATH"] = f"{os.environ['PATH']}{os.pathsep}{python().parent}"
        manifest = read_manifest(checkout / EXAMPLE)
        manifest["spec"]["model"]["source"] = f"file://{ensure_model('smollm2', say)}"
        cluster = Cluster.up(name, owner_pid=None if keep else os.getpid(), progress=say)
    except DevClusterError as error:
        raise SetupError(str(error)) from error
    try:
        install(cluster, checkout / CHART, say, "operator.hostPaths=allow")
        serving = serve(cluster, manifest, say, ready_seconds=READY_SECONDS)
        decode = _decode_url(cluster, serving)
        talk = asyncio.run(_talk(serving, decode))
        report(talk)
    except (DemoError, DevClusterError) as error:
        path = output / "diagnostics.txt"
        write_diagnostics(cluster, path)
        if not keep:
            cluster.down()
        raise DemoError(f"{error}\nNodes, pods, events and the ends of all logs are in {path}") from error
    except BaseException:
        cluster.down()
        raise
    if keep:
        print(
            f"\nThe cluster {name} is left running. Ask it: curl {serving.router_url}/v1/chat/completions -d '"
            + json.dumps(
                {"model": serving.model, "messages": [{"role": "user", "content": "Who wrote Hamlet?"}]}
            )
            + "'\nEnd it: make demo-down"
        )
    else:
        say.line(f"taking the cluster {name} down")
        cluster.down()
    return sum(bool(question.error) for question in talk.questions)


def _decode_url(cluster: Cluster, serving: Serving) -> str:
    selector = f"{LABEL_DEPLOYMENT}={serving.deployment.metadata.name},{LABEL_ROLE}=decode"
    found = json.loads(cluster.kubectl("get", "pods", "--selector", selector, "--output", "json"))["items"]
    return f"http://{found[0]['status']['podIP']}:{WORKER_PORT}"


async def _talk(serving: Serving, decode: str) -> Conversation:
    """Ask all questions, two at a time, and show the answers while they come."""
    talk = Conversation([Question(text) for text in QUESTIONS])
    console = Console()
    slots = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS) as http:

        async def one(question: Question) -> None:
            async with slots:
                await _ask(http, serving, question)
                await _read(http, decode, talk)

        if not console.is_terminal:
            await asyncio.gather(*map(one, talk.questions))
            return talk
        with Live(get_renderable=lambda: table(talk), console=console, refresh_per_second=8):
            await asyncio.gather(*map(one, talk.questions))
    return talk


async def _ask(http: httpx.AsyncClient, serving: Serving, question: Question) -> None:
    body = {
        "model": serving.model,
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    clock: Callable[[], float] = time.monotonic
    question.asked_at = clock()
    try:
        async with http.stream("POST", f"{serving.router_url}/v1/chat/completions", json=body) as answer:
            if not answer.is_success:
                question.error = f"HTTP {answer.status_code}: {(await answer.aread()).decode()[:200]}"
                return
            async for line in answer.aiter_lines():
                take(question, line, clock())
    except httpx.HTTPError as error:
        question.error = f"{type(error).__name__}: {error}"
    if not question.tokens and not question.error:
        question.error = "an answer without words"


def take(question: Question, line: str, now: float) -> None:
    """Take one line of the stream."""
    data = line.removeprefix("data: ")
    if data in {line, "[DONE]"}:
        return
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        question.error = str(event["error"].get("message", event["error"]))
        return
    for choice in event.get("choices", ()):
        text = choice["delta"].get("content")
        if text:
            question.answer += text
            question.tokens += 1
            question.first_at = question.first_at or now
            question.last_at = now


async def _read(http: httpx.AsyncClient, decode: str, talk: Conversation) -> None:
    try:
        page = (await http.get(f"{decode}/metrics")).text
    except httpx.HTTPError as error:
        raise ReadError(f"the decode worker at {decode} has no metrics: {error}") from error
    found: dict[str, int] = {}
    for _, labels, value in samples(page, {_BY_SOURCE}):
        source = labels.get("source", "")
        found[source] = found.get(source, 0) + int(value)
    talk.prompt_tokens = found


def table(talk: Conversation) -> Table:
    """Return what has come so far."""
    moved = talk.prompt_tokens.get(_MOVED, 0)
    shown = Table(
        caption=f"prompt tokens whose KV cache came over NIXL: {moved}; computed by the decode worker:"
        f" {talk.prompt_tokens.get('local_compute', 0)}"
    )
    for title, justify in (
        ("question", "left"),
        ("answer", "left"),
        ("first", "right"),
        ("per token", "right"),
    ):
        shown.add_column(title, justify="left" if justify == "left" else "right", no_wrap=True)
    for question in talk.questions:
        first, each = question.first_seconds, question.token_seconds
        shown.add_row(
            question.text,
            (question.error or question.answer.replace("\n", " "))[-_SHOWN:],
            "" if first is None else f"{first:.1f} s",
            "" if each is None else f"{each * 1e3:.0f} ms",
        )
    return shown


def report(talk: Conversation) -> None:
    """Write all answers in full, and the figures."""
    lines = []
    for question in talk.questions:
        lines += ["", f"Q: {question.text}", f"A: {question.error or question.answer.strip()}"]
    answered = [question for question in talk.questions if not question.error]
    firsts = sorted(question.first_seconds or 0.0 for question in answered)
    if firsts:
        tokens = sum(question.tokens for question in answered)
        span = f"first token after {firsts[0]:.1f} to {firsts[-1]:.1f} s"
        lines += ["", f"{len(answered)} of {len(talk.questions)} questions answered, {tokens} tokens; {span}"]
    moved = talk.prompt_tokens.get(_MOVED, 0)
    lines.append(f'vllm:prompt_tokens_by_source_total{{source="{_MOVED}"}} of the decode worker: {moved}')
    print("\n".join(lines))
    if not moved:
        raise DemoError("no KV cache came over NIXL: the decode worker has computed the prompts itself")
