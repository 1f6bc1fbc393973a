"""Why an engine ended: what vLLM 0.32 prints, and the sentence that is made of it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from turnout_worker.supervise.causes import MAX_QUOTED, Cause, last_words
from turnout_worker.supervise.state import Phase

LOGS = Path(__file__).parent / "engine_logs"
"""The ends of logs of a real vLLM 0.32 on a CPU that was started in ways that cannot work; paths are replaced."""

REAL = {
    "bad_value": (Cause.BAD_ARGUMENT, "argument --max-num-seqs: invalid int value: 'abc'"),
    "unknown_argument": (Cause.BAD_ARGUMENT, "unrecognized arguments: --max-model-length 5 --foo"),
    "unknown_dtype": (Cause.BAD_ARGUMENT, "argument --dtype: invalid choice: 'fp7'"),
    "context_too_long": (
        Cause.CONTEXT_TOO_LONG,
        "--max-model-len 9999999 is more than the model can: max_position_embeddings",
    ),
    "kv_cache_too_small": (Cause.KV_CACHE_MEMORY, "--max-model-len 2048 tokens needs 0.0 GiB of KV cache"),
    "no_kv_cache": (Cause.KV_CACHE_MEMORY, "the weights leave no memory for the KV cache"),
    "host_memory": (Cause.HOST_MEMORY, "21.66 GiB of node 0's memory are wanted"),
    "heads_not_divisible": (
        Cause.PARALLELISM,
        "the model's 2 attention heads cannot be shared by --tensor-parallel-size 3",
    ),
    "no_adapter": (Cause.ADAPTER, "there is no adapter for sql at /nonexistent/sql"),
    "no_folder": (Cause.MISSING_FILE, "there is no model in /nonexistent/model"),
    "no_weights": (Cause.MISSING_FILE, "there are no weights in /models/nofile"),
    "damaged_weights": (
        Cause.BROKEN_FILE,
        "a file of the weights is damaged or incomplete: Error while deserializing header",
    ),
    "port_taken": (Cause.PORT_TAKEN, "a port that the engine listens on is taken by another process"),
    "unknown_model_type": (Cause.UNSUPPORTED_MODEL, "the model type foo is unknown"),
    "unsupported_architecture": (
        Cause.UNSUPPORTED_MODEL,
        "does not support the architecture ['FooForCausalLM']",
    ),
}

PREFIX = "(EngineCore pid=477) ERROR 12-01 17:28:58 [core.py:1510] "
# From the sources of vLLM 0.32 and PyTorch 2.13: they need a GPU, or an adapter.
FROM_SOURCES = [
    (
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of "
        "which 1.21 GiB is free. Including non-PyTorch memory, this process has 77.88 GiB memory in use."),
        Cause.ACCELERATOR_MEMORY,
        "CUDA is out of memory: 2.00 GiB were asked for on GPU 0, where 1.21 GiB of 79.10 GiB are free",
    ),
    (
        ("RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please try lowering "
        "`max_num_seqs` or `gpu_memory_utilization` when initializing the engine."),
        Cause.ACCELERATOR_MEMORY,
        "CUDA ran out of memory while the sampler was tried with 1024 requests: lower --max-num-seqs or --gpu-memory-utilization",
    ),
    (
        "RuntimeError: CUDA error: out of memory",
        Cause.ACCELERATOR_MEMORY,
        "the accelerator is out of memory: CUDA error: out of memory",
    ),
    (
        ("ValueError: Free memory on device cuda:0 (12.5/79.1 GiB) on startup is less than desired GPU memory utilization "
        "(0.92, 72.77 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."),
        Cause.ACCELERATOR_MEMORY,
        ("72.77 GiB of device cuda:0 are wanted (--gpu-memory-utilization 0.92) and 12.5 of 79.1 GiB are free: another process "
        "holds the rest"),
    ),
    (
        ("ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (5.3 GiB). Based on the available memory, the estimated maximum model length "
        "is 43408. Try increasing `gpu_memory_utilization`"),
        Cause.KV_CACHE_MEMORY,
        ("one request of --max-model-len 131072 tokens needs 16.0 GiB of KV cache and 5.3 GiB are left beside the weights; 43408 "
        "tokens would fit"),
    ),
    (
        ("ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (0.01 GiB). Try increasing `gpu_memory_utilization`"),
        Cause.KV_CACHE_MEMORY,
        "one request of --max-model-len 131072 tokens needs 16.0 GiB of KV cache and 0.01 GiB are left beside the weights",
    ),
    (
        ("ValueError: Model architecture MllamaForConditionalGeneration was supported in vLLM until v0.10.2, and is not supported "
        "anymore. Please use an older version of vLLM"),
        Cause.UNSUPPORTED_MODEL,
        "the architecture MllamaForConditionalGeneration was supported in vLLM until v0.10.2",
    ),
    (
        "  Value error, Model architectures ['LlamaForCausalLM'] failed to be inspected. Please check the logs for more details.",
        Cause.UNSUPPORTED_MODEL,
        "the code of the architecture ['LlamaForCausalLM'] could not be loaded: the engine's log says why",
    ),
    (
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has compute "
        "capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag in CLI, for example: --dtype=half."),
        Cause.UNSUPPORTED_TYPE,
        "bfloat16 needs compute capability 8.0, and the Tesla T4 has compute capability 7.5: --dtype half works there",
    ),
    (
        ("ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89. Current "
        "capability: 80."),
        Cause.UNSUPPORTED_TYPE,
        "quantization fp8 needs compute capability 89 (in tenths) and the accelerator has 80",
    ),
    (
        "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [torch.float16]",
        Cause.UNSUPPORTED_TYPE,
        "quantization awq does not compute with bfloat16, only with [torch.float16]",
    ),
    (
        "ValueError: World size (8) is larger than the number of available GPUs (4) in this node. If this is intentional",
        Cause.PARALLELISM,
        "the parallel sizes make 8 ranks and the pod has 4 GPUs",
    ),
    (
        "ValueError: LoRA rank 64 is greater than max_lora_rank 16.",
        Cause.ADAPTER,
        "the rank 64 of an adapter is above --max-lora-rank 16",
    ),
    (
        "ValueError: Loading lora sql failed: While loading /adapters/sql, expected target modules in ['q_proj']",
        Cause.ADAPTER,
        "the adapter sql cannot be loaded: While loading /adapters/sql, expected target modules in ['q_proj']",
    ),
    (
        "OSError: [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use",
        Cause.PORT_TAKEN,
        "a port that the engine listens on is taken by another process (0.0.0.0:8000)",
    ),
    (
        "zmq.error.ZMQError: Address already in use (addr='tcp://10.0.0.7:5600')",
        Cause.PORT_TAKEN,
        "a port that the engine listens on is taken by another process (tcp://10.0.0.7:5600)",
    ),
    (
        "FileNotFoundError: [Errno 2] No such file or directory: '/templates/chat.jinja'",
        Cause.MISSING_FILE,
        "there is no file /templates/chat.jinja",
    ),
    (
        "OSError: It looks like the config file at '/models/a/config.json' is not a valid JSON file.",
        Cause.BROKEN_FILE,
        "/models/a/config.json is not JSON",
    ),
    (
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
        Cause.ACCELERATOR,
        "the accelerator or its driver failed: CUDA error: an illegal memory access was encountered",
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_a_real_log_names_its_cause(name: str) -> None:
    """The cause is found in what vLLM printed, behind tracebacks of three processes."""
    cause, part = REAL[name]
    words = last_words((LOGS / f"{name}.txt").read_text().splitlines(), 1)
    assert words.cause is cause
    assert part in words.sentence


def test_the_docs_list_every_cause_and_phase() -> None:
    """What the worker may say is explained, and nothing else is."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "worker.md").read_text()
    phases, causes = (
        page.partition("## Phases")[2].split("## The status port")[0],
        page.partition("## Last words")[2].split("## The end")[0],
    )
    row = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
    assert row.findall(phases) == [phase.value for phase in Phase]
    assert sorted(row.findall(causes)) == sorted(cause.value for cause in Cause)


def test_every_log_is_tried() -> None:
    """No log lies there untested."""
    assert {path.stem for path in LOGS.iterdir()} == set(REAL)


@pytest.mark.parametrize(("line", "cause", "sentence"), FROM_SOURCES)
def test_a_line_of_the_sources_names_its_cause(line: str, cause: Cause, sentence: str) -> None:
    """With and without the prefix of a process, and behind it the error that says only that there was one."""
    rest = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
    for lines in ([line], [PREFIX + line, rest]):
        words = last_words(lines, 1)
        assert (words.cause, words.sentence) == (cause, sentence)


@pytest.mark.parametrize(
    ("lines", "status", "sentence"),
    [
        ([], 3, "the engine ended with status 3, without a word"),
        (["bye", "", "  "], 0, "the engine ended with status 0; its last words: bye"),
        ([], 139, "the engine was ended by SIGSEGV, without a word"),
        (["x"], 137, "the engine was ended by SIGKILL, by the kernel where memory is short or by another process; its last words: x"),
        ([], 255, "the engine ended with status 255, without a word"),
        (["ValueError: odd", "RuntimeError: Engine core initialization failed. See root cause above."], 1,
         "the engine ended with status 1; its last words: ValueError: odd"),
        (["RuntimeError: Engine core initialization failed."], 1,
         "the engine ended with status 1; its last words: RuntimeError: Engine core initialization failed."),
        (["pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", "  Value error, it is blue", "more"], 1,
         "the engine ended with status 1; its last words: Value error, it is blue"),
    ],
)  # fmt: skip
def test_what_no_rule_knows_is_quoted(lines: list[str], status: int, sentence: str) -> None:
    """The last exception that says something, else the last line, and how the process ended."""
    words = last_words(lines, status)
    assert (words.cause, words.sentence) == (Cause.UNKNOWN, sentence)


@pytest.mark.parametrize(
    "line",
    [
        "(APIServer pid=1) WARNING 12-01 17:28:28 [parallel.py:746] Address already in use. Retrying with a new port.",
        "(APIServer pid=1) INFO 12-01 17:28:28 [logger.py:10] prompt: 'CUDA out of memory'",
        "WARNING 12-01 [system_utils.py:255] can cause fd limit errors like `OSError: [Errno 24] Too many open files`",
    ],
)
def test_a_line_that_ends_nothing_is_no_cause(line: str) -> None:
    """Warnings about what was mended, and what a prompt says, are not taken for the cause."""
    assert last_words([line], 1).cause is Cause.UNKNOWN


def test_an_engine_that_served_did_not_end_by_what_it_survived() -> None:
    """An adapter that could not be loaded while it served is not why it was killed; memory may be."""
    lines = [
        "ValueError: Loading lora sql failed: No adapter found for /a",
        "torch.OutOfMemoryError: CUDA out of memory.",
    ]
    assert last_words(lines[:1], 137, served=True).cause is Cause.UNKNOWN
    assert last_words(lines[:1], 1).cause is Cause.ADAPTER
    assert last_words(lines, 1, served=True).cause is Cause.ACCELERATOR_MEMORY


def test_the_kernel_s_count_of_kills_comes_first() -> None:
    """Where the container's memory limit was reached, that is the cause, whatever the log says."""
    words = last_words(["RuntimeError: Engine core initialization failed."], 1, oom_killed=True)
    assert str(words).startswith("HostMemory: the kernel killed a process of the engine")


@pytest.mark.parametrize("filling", ["x", "x ", "x.", "CUDA error: "])
def test_sentences_and_work_are_bounded(filling: str) -> None:
    """A megabyte in each of a thousand lines does not become a sentence of one, nor minutes of work."""
    began = time.process_time()
    words = last_words(["ValueError: " + filling * 100_000] * 1000, 1)
    assert time.process_time() - began < 5
    assert len(words.sentence) < MAX_QUOTED + 100
    assert "\n" not in str(words)
