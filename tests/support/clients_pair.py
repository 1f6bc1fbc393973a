"""A prefill and a decode worker, simulated, as the official clients' tests put them behind a router."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from support.router_running import DEPLOYMENT
from support.worker_process import NAME, WorkerProcess, running_worker

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Pair:
    """Both workers of one deployment."""

    prefill: WorkerProcess
    decode: WorkerProcess

    @property
    def config(self) -> dict[str, Any]:
        """The router's configuration: by load, so that every cache that may be moved is."""
        backends = [
            {"role": "prefill", "url": self.prefill.url},
            {"role": "decode", "url": self.decode.url},
        ]
        deployment = {"name": DEPLOYMENT, "servedNames": [NAME], "timeScale": 10, "backends": backends}
        return {"deployments": [deployment | {"policy": "LeastLoaded"}]}

    @property
    def moved_tokens(self) -> float:
        """Prompt tokens that the decode worker has fetched from the prefill worker."""
        return self.decode.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer")


@contextmanager
def running_pair() -> Iterator[Pair]:
    """Start both, and end them at the end."""
    with (
        running_worker(role="prefill", time_scale=10) as prefill,
        running_worker(role="decode", time_scale=10) as decode,
    ):
        yield Pair(prefill, decode)
