"""What runs a model: the simulated engine, or vLLM with the settings that matter and a place for all others."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from turnout.api.meta import Model
from turnout.api.quantities import Duration
from turnout.api.rules import Rule, Unique
from turnout.terms import EngineType

_WORD: Final = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
_OWN_OPTIONS: Final = (
    "host",
    "port",
    "uds",
    "model",
    "served-model-name",
    "max-model-len",
    "tensor-parallel-size",
    "tp",
    "pipeline-parallel-size",
    "pp",
    "data-parallel-[a-z-]+",
    "dp[a-z]*",
    "kv-transfer-config",
    "kv-events-config",
    "api-key",
    "ssl-[a-z-]+",
    "root-path",
    "shutdown-timeout",
    "lora-modules",
    "enable-lora",
    "max-loras",
    "config",
)
"""vLLM's options that `extraArgs` may not repeat: they follow from the resource, or from how the worker is run."""
_OWN_PATTERN: Final = "^--(" + "|".join(_OWN_OPTIONS) + ")(=.*)?$"
_OWN_SHORT: Final = "^-(tp|pp|dp[a-z]*|q|O[0-9])$"
_OWN_VARIABLES: Final = "^(VLLM_API_KEY|VLLM_PORT|VLLM_NIXL_SIDE_CHANNEL_.*|TURNOUT_.*)$"


class SimulatedEngine(Model):
    """Settings of the simulated engine."""

    time_scale: int = Field(
        default=1,
        ge=1,
        le=100,
        description="How many seconds of the engine's life pass in one second. Everything measured on this "
        "deployment (latencies, goodput, stabilization windows) is in the engine's seconds.",
    )
    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="The same seed and prompt give the same text."
    )
    startup_time: Duration = Field(
        default="0s",
        description="How long a worker takes to load the model, in the engine's time, before it is ready.",
    )


class Parallelism(Model):
    """How one replica's accelerators share the model. What `pipeline` and `data` leave is tensor parallelism."""

    pipeline: int = Field(default=1, ge=1, le=16, description="Stages that the layers are split into.")
    data: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Copies of the attention layers inside one replica, each with a batch and a KV cache of its own.",
    )
    expert: bool = Field(
        default=False,
        description="Whether the experts of a mixture-of-experts model are spread over the accelerators instead of each being"
        " split.",
    )

    @property
    def groups(self) -> int:
        """Groups of accelerators of one replica, each of which splits its tensors."""
        return self.pipeline * self.data


class Speculation(Model):
    """Speculative decoding: tokens are proposed cheaply and verified by the model in one step."""

    method: Literal["NGram", "DraftModel", "Eagle", "Eagle3", "MTP"] = Field(
        description="NGram: proposals are copied from the prompt. DraftModel: a small model. Eagle, Eagle3: a head trained for"
        " the model. MTP: the model's own further layers."
    )
    model: str = Field(
        default="",
        max_length=256,
        description="The draft model or head, as vLLM finds it: a name on the Hugging Face hub, or a path inside the container.",
    )
    tokens: int = Field(default=3, ge=1, le=16, description="Tokens that are proposed in a step.")
    lookup_min: int = Field(default=2, ge=1, le=64, description="NGram: fewest tokens that have to match.")
    lookup_max: int = Field(default=4, ge=1, le=64, description="NGram: most tokens that are looked for.")
    max_batch: int | None = Field(
        default=None,
        ge=1,
        le=8192,
        description="Nothing is proposed while more requests than this run: verification then costs more than it saves."
        " Unset: always.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.method in ['DraftModel', 'Eagle', 'Eagle3']) == (self.model != '')",
            "speculation.model is needed by the methods DraftModel, Eagle and Eagle3, and has no effect with NGram and MTP:"
            " add it or remove it",
            lambda s: (s.method in {"DraftModel", "Eagle", "Eagle3"}) == (s.model != ""),
        ),
        Rule(
            "self.method == 'NGram' || (self.lookupMin == 2 && self.lookupMax == 4)",
            "speculation.lookupMin and lookupMax have an effect with the method NGram only: remove them",
            lambda s: s.method == "NGram" or (s.lookup_min, s.lookup_max) == (2, 4),
        ),
        Rule(
            "self.lookupMin <= self.lookupMax",
            "speculation.lookupMin is greater than lookupMax: swap them",
            lambda s: s.lookup_min <= s.lookup_max,
        ),
    )


class KvOffload(Model):
    """Where KV blocks go that the accelerators have no room for, so that their prefixes need not be computed again."""

    backend: Literal["CPU", "LMCache", "MooncakeStore"] = Field(
        description="CPU: the replica's own memory. LMCache: a server of LMCache beside it or elsewhere. MooncakeStore: a"
        " Mooncake store; its configuration is a file that the variable MOONCAKE_CONFIG_PATH names."
    )
    gib: int | None = Field(
        default=None, ge=1, le=8192, description="CPU: memory of one replica for it, in GiB."
    )
    host: str = Field(
        default="", max_length=253, description="LMCache: host of its server. Empty: the pod itself."
    )
    port: int = Field(default=5555, ge=1, le=65535, description="LMCache: port of its server.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.backend == 'CPU') == has(self.gib)",
            "kvOffload.gib is needed by the backend CPU, and has no effect with the others: add it or remove it",
            lambda offload: (offload.backend == "CPU") == (offload.gib is not None),
        ),
        Rule(
            "self.backend == 'LMCache' || (self.host == '' && self.port == 5555)",
            "kvOffload.host and port have an effect with the backend LMCache only: remove them",
            lambda offload: offload.backend == "LMCache" or (offload.host, offload.port) == ("", 5555),
        ),
    )


class Chat(Model):
    """How chats are written as prompts, and answers read."""

    tool_parser: str = Field(
        default="",
        max_length=63,
        description="vLLM's --tool-call-parser, such as hermes or llama3_json; tool calls are then found without being asked"
        " for. Empty: none.",
    )
    reasoning_parser: str = Field(
        default="",
        max_length=63,
        description="vLLM's --reasoning-parser, such as deepseek_r1 or qwen3. Empty: none.",
    )
    template: str = Field(
        default="",
        max_length=32_768,
        description="A Jinja template in place of the model's own.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"(self.toolParser == '' || self.toolParser.matches('{_WORD}'))"
            f" && (self.reasoningParser == '' || self.reasoningParser.matches('{_WORD}'))",
            "a parser's name holds letters, digits, '.', '_' and '-' only, such as hermes or deepseek_r1",
            lambda chat: all(
                not name or re.fullmatch(_WORD, name) for name in (chat.tool_parser, chat.reasoning_parser)
            ),
        ),
    )


class Variable(Model):
    """An environment variable of the engine."""

    name: str = Field(max_length=253, description="Its name, such as VLLM_LOGGING_LEVEL.")
    value: str = Field(default="", max_length=4096, description="Its value.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.name.matches('^[A-Za-z_][A-Za-z0-9_]*$')",
            "a variable's name holds letters, digits and '_' and does not begin with a digit",
            lambda variable: re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", variable.name) is not None,
            field_path=".name",
        ),
        Rule(
            f"!self.name.matches('{_OWN_VARIABLES}')",
            "this variable is set by Turnout: remove it (VLLM_API_KEY, VLLM_PORT, VLLM_NIXL_SIDE_CHANNEL_*, TURNOUT_*)",
            lambda variable: re.fullmatch(_OWN_VARIABLES, variable.name) is None,
            field_path=".name",
        ),
    )


_ExtraArg = Annotated[str, Field(min_length=1, max_length=4096)]


def _is_own(argument: str) -> bool:
    return re.fullmatch(_OWN_PATTERN, argument) is not None or re.fullmatch(_OWN_SHORT, argument) is not None


class VllmEngine(Model):
    """Settings of vLLM. What is not here goes into `extraArgs`."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Of weights and activations. auto: the model's own."
    )
    quantization: str = Field(
        default="",
        max_length=63,
        description="vLLM's --quantization, such as fp8 or awq_marlin. Empty: what the model's config says.",
    )
    kv_cache_type: Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "nvfp4"] = Field(
        default="auto", description="How KV caches are stored. auto: as the activations."
    )
    kv_cache_memory_mib: int | None = Field(
        default=None,
        ge=1,
        le=4_194_304,
        description="Memory of the KV cache on each accelerator, in MiB. Unset: what memoryPercent leaves.",
    )
    memory_percent: int = Field(
        default=92,
        ge=10,
        le=99,
        description="Share of an accelerator's memory that the engine takes, in percent.",
    )
    parallelism: Parallelism = Field(
        default_factory=Parallelism, description="How one replica's accelerators share the model."
    )
    max_batch_requests: int | None = Field(
        default=None, ge=1, le=65_536, description="Most requests in a step. Unset: vLLM's own choice."
    )
    max_batch_tokens: int | None = Field(
        default=None, ge=1, le=1_048_576, description="Most tokens in a step. Unset: vLLM's own choice."
    )
    max_queued_requests: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Requests that may wait in the engine; further ones are refused, and the router tries another worker."
        " Unset: no bound.",
    )
    prefix_caching: bool = Field(
        default=True, description="Whether the KV caches of shared prefixes are kept and used again."
    )
    chunked_prefill: bool = Field(
        default=True, description="Whether long prompts are computed in parts between the steps of others."
    )
    compile: bool = Field(
        default=True,
        description="Whether CUDA graphs and compiled kernels are made at the start: minutes longer, then faster.",
    )
    speculation: Speculation | None = Field(
        default=None, description="Speculative decoding, on the workers that generate. Absent: none."
    )
    kv_load_failure: Literal["Fail", "Recompute"] = Field(
        default="Fail",
        description="What a decode worker does that cannot fetch a prompt's cache. Fail: the router tries again elsewhere."
        " Recompute: the decode worker computes the prompt.",
    )
    kv_offload: KvOffload | None = Field(
        default=None,
        description="Where KV blocks go that the accelerators have no room for. Absent: they are evicted.",
    )
    chat: Chat = Field(
        default_factory=Chat, description="How chats are written as prompts, and answers read."
    )
    structured_output: Literal["auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer"] = Field(
        default="auto", description="What holds answers to a JSON schema, a regular expression or a grammar."
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Whether Python code that comes with the model may run in the worker. Read it first.",
    )
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = Field(
        default=16, description="Highest rank of the LoRA adapters."
    )
    extra_args: list[_ExtraArg] = Field(
        default_factory=list,
        max_length=64,
        description="Further arguments of `vllm serve`, as they are. They come last, so they win over the settings above.",
    )
    env: Annotated[list[Variable], Unique("name")] = Field(
        default_factory=list, max_length=64, description="Environment variables of the engine."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.quantization == '' || self.quantization.matches('{_WORD}')",
            "not a quantization method: write one of vLLM's, such as fp8, awq_marlin or gptq_marlin",
            lambda vllm: not vllm.quantization or re.fullmatch(_WORD, vllm.quantization) is not None,
            field_path=".quantization",
        ),
        Rule(
            f"!self.extraArgs.exists(a, a.matches('{_OWN_PATTERN}') || a.matches('{_OWN_SHORT}'))",
            "extraArgs repeats an option that Turnout sets (address, names, length, parallelism, KV transfer and events, keys,"
            " TLS, LoRA): remove it, or use the field of the resource for it",
            lambda vllm: not any(_is_own(argument) for argument in vllm.extra_args),
            field_path=".extraArgs",
        ),
        Rule(
            "!has(self.kvCacheMemoryMib) || self.memoryPercent == 92",
            "memoryPercent has no effect beside kvCacheMemoryMib: remove one of them",
            lambda vllm: vllm.kv_cache_memory_mib is None or vllm.memory_percent == 92,  # noqa: PLR2004 - the default
        ),
        Rule(
            "!has(self.speculation) || !has(self.speculation.maxBatch) || self.parallelism.data == 1",
            "speculation.maxBatch has no effect with parallelism.data above 1, for vLLM then proposes always: remove one of them",
            lambda vllm: (
                vllm.speculation is None or vllm.speculation.max_batch is None or vllm.parallelism.data == 1
            ),
        ),
        Rule(
            "self.chunkedPrefill || !has(self.maxBatchTokens) || !has(self.maxBatchRequests)"
            " || self.maxBatchTokens >= self.maxBatchRequests",
            "maxBatchTokens is below maxBatchRequests, and each running request takes a token of a step: raise it",
            lambda vllm: (
                vllm.chunked_prefill
                or vllm.max_batch_tokens is None
                or vllm.max_batch_requests is None
                or vllm.max_batch_tokens >= vllm.max_batch_requests
            ),
        ),
        Rule(
            "self.prefixCaching || !has(self.kvOffload)",
            "kvOffload has no effect without prefixCaching, for only cached prefixes are kept: switch it on or remove the other",
            lambda vllm: vllm.prefix_caching or vllm.kv_offload is None,
        ),
    )


class Engine(Model):
    """What runs the model."""

    type: EngineType = Field(
        description="`simulated`: answers as vLLM does over HTTP, with the latencies of the accelerator; no GPU is needed."
        " `vllm`: the real one."
    )
    simulated: SimulatedEngine = Field(
        default_factory=SimulatedEngine, description="Settings of the simulated engine."
    )
    vllm: VllmEngine | None = Field(default=None, description="Settings of vLLM. Absent: their defaults.")
    image: str = Field(
        default="",
        max_length=512,
        description="Image of the workers. Empty: the operator's, which a new release of Turnout changes.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.type == 'vllm' || !has(self.vllm)",
            "engine.vllm has no effect with engine.type simulated: remove it or write type: vllm",
            lambda engine: engine.type == "vllm" or engine.vllm is None,
        ),
        Rule(
            "self.type == 'simulated' || (self.simulated.timeScale == 1 && self.simulated.seed == 0"
            " && self.simulated.startupTime == '0s')",
            "engine.simulated has no effect with engine.type vllm: remove it or write type: simulated",
            lambda engine: engine.type == "simulated" or engine.simulated == SimulatedEngine(),
        ),
        Rule(
            "self.image == '' || !self.image.matches('[ \\\\t\\\\n]')",
            "engine.image holds white space: write an image such as registry.example.com/turnout/worker-vllm:0.2",
            lambda engine: re.search(r"\s", engine.image) is None,
            field_path=".image",
        ),
    )

    @property
    def vllm_settings(self) -> VllmEngine:
        """Settings of vLLM, defaults where the resource has none."""
        return self.vllm or VllmEngine()
