"""The models whose sizes are known before a worker has read them: `catalog.json` beside this file.

One line for each model, as `ModelArchitecture.to_fields` writes it; `name` is what follows ``hf://``. Each was thinned from a
larger catalog of December 2026, whose figures come from config.json files and tables of models in aiconfigurator-core
0.12.0, xinference 4.1.0, litgpt 0.5.13, mlc-llm (79d603f0) and transformers 5.24.0 (all Apache-2.0), and llmfit 1.1.17
(MIT): numbers only, no text of theirs. Where several of them give a number they agree.

Thinning: weights are 2 bytes a parameter; of a checkpoint that is published quantized, 2 for embeddings and output layer
and 1 (fp8), 4.25/8 (mxfp4) or 4.5/8 (4 bits with a scale for each 32 values) for the rest. An entry of attention is 2
bytes a value. State is fp32 with a bf16 convolution; of Qwen3-Next, Qwen3-Coder-Next and Qwen3.8-27B, whose sources
leave it out, it is that of the same layer in Qwen3.5-4B and Qwen3.6-27B. A base model whose name
its instruction-tuned one begins with (Llama-3.1-70B) has the same line. Left out are encoders, and models whose layers or
state the sources do not give: gemma-4-E4B and -12B, DeepSeek-V4, Ministral-3-3B, Nemotron-Nano-9B-v2, Falcon-H1-7B and
granite-4.0-h-small.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from turnout.sizing.architecture import ModelArchitecture

if TYPE_CHECKING:
    from collections.abc import Mapping

HUB: Final = "hf://"
"""How a source on the Hugging Face hub begins."""


@cache
def catalog() -> Mapping[str, ModelArchitecture]:
    """Return every known model by its name on the hub in lower case. The file is read at the first call."""
    text = files("turnout.sizing").joinpath("catalog.json").read_text(encoding="utf-8")
    found = map(ModelArchitecture.from_fields, json.loads(text))
    return MappingProxyType({each.name.lower(): each for each in found})


def known(source: str) -> ModelArchitecture | None:
    """Return the model that *source* (``hf://ORGANIZATION/NAME``) names, None where it is not in the catalog.

    The hub does not tell upper from lower case in names, so neither does this.
    """
    if not source.startswith(HUB):
        return None
    return catalog().get(source.removeprefix(HUB).lower())
