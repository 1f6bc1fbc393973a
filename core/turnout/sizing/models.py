"""Architectures of models that Turnout knows, as their published config.json files state them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class ModelArchitecture:
    """What sizing needs of a decoder-only transformer."""

    name: str
    parameters_billion: float
    layers: int
    attention_heads: int
    kv_heads: int
    head_dimension: int

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of KV cache for one token: keys and values of every KV head in every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dimension * bytes_per_value

    def weight_bytes(self, bytes_per_value: int = 2) -> int:
        """Bytes of all weights."""
        return int(self.parameters_billion * 1e9) * bytes_per_value


_LLAMA_8B: Final = ModelArchitecture("llama-3.1-8b", 8.03, 32, 32, 8, 128)
_LLAMA_70B: Final = ModelArchitecture("llama-3.1-70b", 70.6, 80, 64, 8, 128)

MODELS: Final = MappingProxyType(
    {
        "hf://meta-llama/Llama-3.1-8B": _LLAMA_8B,
        "hf://meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
        "hf://meta-llama/Llama-3.1-70B": _LLAMA_70B,
        "hf://meta-llama/Llama-3.1-70B-Instruct": _LLAMA_70B,
        "hf://meta-llama/Llama-3.3-70B-Instruct": _LLAMA_70B,
    }
)
"""By ``model.source``."""
