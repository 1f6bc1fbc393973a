"""What goes into an engine and what comes out: settings, requests, events. Plain values, times in engine seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from turnout.simulation.errors import SettingsError

FinishReason = Literal["stop", "length", "abort", "error"]
"""vLLM's ``finished_reason``."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine is configured. The defaults are vLLM's on H100-class accelerators."""

    kv_blocks: int
    """Blocks of KV cache (vLLM's num_gpu_blocks)."""
    block_size: int = 16
    """Tokens of a block."""
    max_num_seqs: int = 1024
    """Most sequences in one iteration."""
    max_num_batched_tokens: int = 8192
    """Most tokens computed in one iteration; longer prompts are computed in chunks."""
    max_num_queued: int | None = None
    """Most requests that wait; one more is refused. None: no bound."""
    kv_lease_seconds: float = 30.0
    """How long a prefilled prompt stays pinned for its decode worker (vLLM's kv_lease_duration)."""
    transfer_seconds_per_token: float = 3e-6
    """Time to pull the KV of one token from a prefill worker: 128 KiB at some 45 GB/s, one 400 Gbit/s link."""

    def __post_init__(self) -> None:
        """Raise SettingsError for settings that contradict each other, as vLLM does."""
        if min(self.kv_blocks, self.block_size, self.max_num_seqs) < 1:
            raise SettingsError("kv_blocks, block_size and max_num_seqs must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise SettingsError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}): "
                "an iteration could not give every sequence its token; raise the first or lower the second"
            )
        if self.max_num_queued is not None and self.max_num_queued < 0:
            raise SettingsError("max_num_queued must be 0 or more")


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request."""

    id: str
    prompt_tokens: int
    output_tokens: int
    """Tokens after which it finishes; at least 1."""
    block_hashes: tuple[int, ...] = ()
    """For each full block of the prompt, and of the output as far as it is known, a number that stands for the
    block and all before it. Blocks beyond the end are computed but never shared."""
    finish_reason: FinishReason = "length"
    """What its end is called."""
    pin: bool = False
    """Keep the prompt's KV for a decode worker when it has finished (``do_remote_decode``)."""
    remote_tokens: int = 0
    """Prompt tokens whose KV a prefill worker holds (``do_remote_prefill``). The last token of a prompt is always
    computed here: its logits are what the first token is drawn from."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """A request with remote KV has got its blocks: the driver fetches and answers with ``Engine.deliver``."""

    at: float
    id: str
    tokens: int
    """Tokens to transfer: those not already cached here."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first token of a request is there."""

    at: float
    id: str
    cached_tokens: int
    """Prompt tokens that were not computed: prefix-cache hits and KV from a prefill worker, as in vLLM's usage."""
    arrived_at: float


@dataclass(frozen=True, slots=True)
class Decoded:
    """*steps* iterations in a row gave each of *sequences* sequences one token that was not its first."""

    at: float
    """End of the last of them."""
    steps: int
    sequences: int
    seconds_per_step: float


@dataclass(frozen=True, slots=True)
class Preempted:
    """The KV cache was full: the request lost its blocks, waits first in line, and is computed again."""

    at: float
    id: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A request has ended."""

    at: float
    id: str
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    arrived_at: float
    scheduled_at: float | None
    """When it was first given blocks; None where it ended in the queue."""
    first_token_at: float | None
    pinned_until: float | None = None
    """End of the lease on its KV, where it was asked to be pinned."""


@dataclass(frozen=True, slots=True)
class LeaseExpired:
    """No worker fetched a pinned prompt in time: its blocks are free again."""

    at: float
    id: str


Event = Fetch | FirstToken | Decoded | Preempted | Finished | LeaseExpired
