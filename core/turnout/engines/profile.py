"""The engines that a router can serve, and how their prefill and decode workers share a request."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

RoutedEngine = Literal["simulated", "vllm", "sglang"]
HandOffProtocol = Literal["Pull", "DispatchBoth"]
"""`Pull`: the prefill worker is sent the request first and hands out parameters, with which the decode worker pulls the KV
cache (vLLM 0.32, `kv_transfer_params`). `DispatchBoth`: both workers are sent the request at once and meet in a room of the
prefill worker's bootstrap server (SGLang 0.5, `bootstrap_host`, `bootstrap_port`, `bootstrap_room`)."""


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """One engine.

    `decode_computes_prompts`: a decode worker can serve a request without a prefill worker.
    """

    hand_off: HandOffProtocol
    decode_computes_prompts: bool


_PULL: Final = EngineProfile(hand_off="Pull", decode_computes_prompts=True)
PROFILES: Final[Mapping[RoutedEngine, EngineProfile]] = MappingProxyType(
    {
        "simulated": _PULL,
        "vllm": _PULL,
        "sglang": EngineProfile(hand_off="DispatchBoth", decode_computes_prompts=False),
    }
)
