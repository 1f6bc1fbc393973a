"""Why an engine ended, read from its last lines. Pure; the words are those of vLLM 0.32 and of what it stands on.

Each rule was written from a line that vLLM 0.32 prints; tests/worker/test_causes.py has them.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_LINE: Final = 1200
"""Characters of a line that are looked at."""
MAX_QUOTED: Final = 400
"""Characters of an engine's line that a sentence quotes."""


class Cause(StrEnum):
    """What kind of thing ended an engine: the first word of its last words."""

    HOST_MEMORY = "HostMemory"
    ACCELERATOR_MEMORY = "AcceleratorMemory"
    KV_CACHE_MEMORY = "KvCacheMemory"
    CONTEXT_TOO_LONG = "ContextTooLong"
    UNSUPPORTED_MODEL = "UnsupportedModel"
    UNSUPPORTED_TYPE = "UnsupportedDataType"
    PARALLELISM = "Parallelism"
    ADAPTER = "Adapter"
    PORT_TAKEN = "PortTaken"
    MISSING_FILE = "MissingFile"
    BROKEN_FILE = "BrokenFile"
    BAD_ARGUMENT = "BadArgument"
    ACCELERATOR = "Accelerator"
    STARTUP = "Startup"
    """The worker gave up on it: it was not healthy in time, or did not answer its first completion."""
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class LastWords:
    """Why an engine ended."""

    cause: str
    """A `Cause`, or why the model's files could not be had (`turnout.reasons.SourceReason`)."""
    sentence: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class _Rule:
    cause: Cause
    pattern: re.Pattern[str]
    sentence: str
    """With the pattern's groups by name."""


def _rule(cause: Cause, pattern: str, sentence: str) -> _Rule:
    return _Rule(cause, re.compile(pattern), sentence)


_RULES: Final = (
    _rule(
        Cause.KV_CACHE_MEMORY,
        r"max seq len \((?P<length>\d+)\), \((?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the available "
        r"KV cache memory \((?P<available>[\d.]+) GiB\).*?estimated maximum model length is (?P<fits>\d+)",
        "one request of --max-model-len {length} tokens needs {needed} GiB of KV cache and {available} GiB are left beside the "
        "weights; {fits} tokens would fit",
    ),
    _rule(
        Cause.KV_CACHE_MEMORY,
        r"max seq len \((?P<length>\d+)\), \((?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the available "
        r"KV cache memory \((?P<available>[\d.]+) GiB\)",
        "one request of --max-model-len {length} tokens needs {needed} GiB of KV cache and {available} GiB are left beside the "
        "weights",
    ),
    _rule(
        Cause.KV_CACHE_MEMORY,
        r"No available memory for the cache blocks",
        "the weights leave no memory for the KV cache within --gpu-memory-utilization",
    ),
    _rule(
        Cause.ACCELERATOR_MEMORY,
        r"Free memory on device (?P<device>\S+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than desired GPU "
        r"memory utilization \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        "{wanted} GiB of device {device} are wanted (--gpu-memory-utilization {share}) and {free} of {total} GiB are free: "
        "another process holds the rest",
    ),
    _rule(
        Cause.HOST_MEMORY,
        r"Available memory on node (?P<node>\d+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than desired CPU "
        r"memory utilization \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        "{wanted} GiB of node {node}'s memory are wanted (--gpu-memory-utilization {share}) and {free} of {total} GiB are free: "
        "give --kv-cache-memory-bytes",
    ),
    _rule(
        Cause.ACCELERATOR_MEMORY,
        r"CUDA out of memory\. Tried to allocate (?P<wanted>[\d.]+ \w+)\. GPU (?P<gpu>\d+) has a total capacity of "
        r"(?P<total>[\d.]+ \w+) of which (?P<free>[\d.]+ \w+) is free",
        "CUDA is out of memory: {wanted} were asked for on GPU {gpu}, where {free} of {total} are free",
    ),
    _rule(
        Cause.ACCELERATOR_MEMORY,
        r"CUDA out of memory occurred when warming up (?P<what>\w+) with (?P<requests>\d+) dummy requests",
        "CUDA ran out of memory while the {what} was tried with {requests} requests: lower --max-num-seqs or "
        "--gpu-memory-utilization",
    ),
    _rule(
        Cause.ACCELERATOR_MEMORY,
        r"(?P<said>(?:torch\.(?:cuda\.)?)?OutOfMemoryError: .*|CUDA out of memory.*|HIP out of memory.*|"
        r"CUDA error: out of memory.*)",
        "the accelerator is out of memory: {said}",
    ),
    _rule(
        Cause.CONTEXT_TOO_LONG,
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len "
        r"\((?P<key>\w+)=(?P<most>[\d.]+)",
        "--max-model-len {asked} is more than the model can: {key} of its config.json is {most}",
    ),
    _rule(
        Cause.UNSUPPORTED_MODEL,
        r"Model architectures (?P<names>\[.*?\]) are not supported for now",
        "this version of the engine does not support the architecture {names}",
    ),
    _rule(
        Cause.UNSUPPORTED_MODEL,
        r"Model architecture (?P<name>\S+) (?P<said>was supported in vLLM until v[\d.]+\d|is not supported in-tree anymore)",
        "the architecture {name} {said}",
    ),
    _rule(
        Cause.UNSUPPORTED_MODEL,
        r"The checkpoint you are trying to load has model type `(?P<type>[^`]+)` but Transformers does not recognize",
        "the model type {type} is unknown to the engine's version of Transformers",
    ),
    _rule(
        Cause.UNSUPPORTED_MODEL,
        r"Model architectures (?P<names>\[.*?\]) failed to be inspected",
        "the code of the architecture {names} could not be loaded: the engine's log says why",
    ),
    _rule(
        Cause.UNSUPPORTED_TYPE,
        r"Bfloat16 is only supported on GPUs with compute capability of at least (?P<wanted>[\d.]+)\. "
        r"Your (?P<gpu>.+?) GPU (?P<has>has compute capability [\d.]+\d|does not have a compute capability)",
        "bfloat16 needs compute capability {wanted}, and the {gpu} {has}: --dtype half works there",
    ),
    _rule(
        Cause.UNSUPPORTED_TYPE,
        r"The quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum capability: (?P<least>\d+)\. "
        r"Current capability: (?P<has>\d+)",
        "quantization {method} needs compute capability {least} (in tenths) and the accelerator has {has}",
    ),
    _rule(
        Cause.UNSUPPORTED_TYPE,
        r"\b(?P<type>\w+) is not supported for quantization method (?P<method>\w+)\. "
        r"Supported dtypes: (?P<types>\[.*?\])",
        "quantization {method} does not compute with {type}, only with {types}",
    ),
    _rule(
        Cause.UNSUPPORTED_TYPE,
        r"Unknown dtype: '?(?P<type>[\w.]+)",
        "there is no data type {type}",
    ),
    _rule(
        Cause.UNSUPPORTED_TYPE,
        r"type (?P<type>fp8\w*) not supported in this architecture",
        "the accelerator does not compute with {type}",
    ),
    _rule(
        Cause.PARALLELISM,
        r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size \((?P<ranks>\d+)\)",
        "the model's {heads} attention heads cannot be shared by --tensor-parallel-size {ranks}",
    ),
    _rule(
        Cause.PARALLELISM,
        r"World size \((?P<ranks>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)",
        "the parallel sizes make {ranks} ranks and the pod has {gpus} GPUs",
    ),
    _rule(
        Cause.ADAPTER,
        r"Loading lora (?P<name>.+?) failed: No adapter found for (?P<path>[^'\s]+)",
        "there is no adapter for {name} at {path}",
    ),
    _rule(
        Cause.ADAPTER,
        r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank (?P<most>\d+)",
        "the rank {rank} of an adapter is above --max-lora-rank {most}",
    ),
    _rule(
        Cause.ADAPTER,
        r"Loading lora (?P<name>.+?) failed: (?P<said>.+)",
        "the adapter {name} cannot be loaded: {said}",
    ),
    _rule(
        Cause.PORT_TAKEN,
        r"^(?!.*Retrying).*(?:error while attempting to bind on address \('(?P<host>[^']*)', (?P<port>\d+)|"
        r"Errno 98\] Address already in use|Address already in use \(addr='(?P<address>[^']*)'\))",
        "a port that the engine listens on is taken by another process{where}",
    ),
    _rule(
        Cause.MISSING_FILE,
        r"Cannot find any model weights with `(?P<path>[^`]+)`",
        "there are no weights in {path}",
    ),
    _rule(
        Cause.MISSING_FILE,
        r"(?:HFValidationError: Repo id must be in the form|Invalid repository ID or local directory specified:?).*?"
        r"'(?P<path>/[^']*)'",
        "there is no model in {path}",
    ),
    _rule(
        Cause.BROKEN_FILE,
        r"SafetensorError: (?P<said>.+)",
        "a file of the weights is damaged or incomplete: {said}",
    ),
    _rule(
        Cause.BROKEN_FILE,
        r"OSError: It looks like the config file at '(?P<path>[^']+)' is not a valid JSON file",
        "{path} is not JSON",
    ),
    _rule(
        Cause.MISSING_FILE,
        r"FileNotFoundError: \[Errno 2\] No such file or directory: '(?P<path>[^']+)'",
        "there is no file {path}",
    ),
    _rule(
        Cause.BAD_ARGUMENT,
        r"^(?P<program>[\w .-]+): error: (?P<said>.+)",
        "{said}",
    ),
    _rule(
        Cause.ACCELERATOR,
        r"(?P<said>CUDA error: .+|CUDA driver version is insufficient.*|No CUDA GPUs are available.*|"
        r"Failed to infer device type.*|NCCL error.*)",
        "the accelerator or its driver failed: {said}",
    ),
)
"""The first one that a line matches counts: what names its numbers stands before what does not."""

_WHILE_SERVING: Final = frozenset({Cause.ACCELERATOR_MEMORY, Cause.ACCELERATOR})
"""What ends an engine that has served. Other errors of its log are those of requests, or of adapters that could not be loaded."""
_SIGNALS: Final = 128
"""A status above it names a signal, as with shells."""

_PREFIX: Final = re.compile(
    r"^(?:\([\w .-]+ pid=\d+\) )?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]+\] ?)?)?"
)
"""Of a line that vLLM prints: the process, the level, the time and the place."""
_QUIET: Final = re.compile(r"(?:INFO|DEBUG) \d\d-\d\d ")
_GENERIC: Final = re.compile(
    r"(?:Engine core initialization failed|EngineCore encountered an issue|WorkerProc initialization failed|"
    r"Worker failed with error|Executor failed|cancelled|See stack trace)"
)
"""Errors that only say that there was another one."""
_EXCEPTION: Final = re.compile(r"^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)\b(?::.*)?$")


def last_words(
    lines: Sequence[str], status: int, *, served: bool = False, oom_killed: bool = False
) -> LastWords:
    """Return why an engine with these last *lines* ended with *status* (128 plus the signal's number where one ended it).

    *served*: it had answered its first completion, so that whatever went wrong while it loaded had not ended it.
    *oom_killed*: the kernel has killed a process since the engine started, for the container's memory limit.
    """
    if oom_killed:
        return LastWords(
            Cause.HOST_MEMORY,
            f"the kernel killed a process of the engine because the container reached its memory limit (status {status})",
        )
    stripped = [_PREFIX.sub("", line[:MAX_LINE]).rstrip() for line in lines if not _QUIET.search(line[:80])]
    found = _by_rules(stripped, [rule for rule in _RULES if not served or rule.cause in _WHILE_SERVING])
    if found is not None:
        return found
    last = next((line for line in reversed(stripped) if line), "")
    how = _how(status)
    quoted = _quote(last if status > _SIGNALS else _error_of(stripped) or last)
    if status == _SIGNALS + signal.SIGKILL:
        return LastWords(
            Cause.UNKNOWN,
            f"the engine {how}, by the kernel where memory is short or by another process{_last(quoted)}",
        )
    return LastWords(Cause.UNKNOWN, f"the engine {how}{_last(quoted)}")


def _by_rules(lines: Sequence[str], rules: Sequence[_Rule]) -> LastWords | None:
    for rule in rules:
        for line in reversed(lines):
            match = rule.pattern.search(line)
            if match is not None:
                return LastWords(rule.cause, rule.sentence.format_map(_groups(match)))
    return None


def _groups(match: re.Match[str]) -> dict[str, str]:
    groups = {
        name: _quote(value).rstrip(".") for name, value in match.groupdict().items() if value is not None
    }
    where = groups.get("address") or ":".join(groups[name] for name in ("host", "port") if name in groups)
    return groups | {"where": f" ({where})" if where else ""}


def _error_of(lines: Sequence[str]) -> str:
    """Return the last exception that says more than that there was one; the last of all where none does."""
    errors = list(_errors(lines))
    specific = [error for error in errors if not _GENERIC.search(error)]
    return (specific or errors or [""])[-1]


def _errors(lines: Sequence[str]) -> Iterator[str]:
    for position, line in enumerate(lines):
        if _EXCEPTION.match(line):
            more = lines[position + 1].strip() if position + 1 < len(lines) else ""
            # pydantic writes what is wrong into the line below
            yield more if "ValidationError" in line and more else line


def _how(status: int) -> str:
    if status > _SIGNALS:
        try:
            return f"was ended by {signal.Signals(status - _SIGNALS).name}"
        except ValueError:
            pass  # no signal of that number: a status like any other
    return f"ended with status {status}"


def _last(quoted: str) -> str:
    return f"; its last words: {quoted}" if quoted else ", without a word"


def _quote(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 4] + " ..."
