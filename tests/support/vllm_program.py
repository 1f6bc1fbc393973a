#!/usr/bin/env python
"""Stands in for the program `vllm`: takes `vllm serve`'s arguments, and runs the simulated engine by them.

It is what the operator's pods start where a test must not wait for a real vLLM; tests/vllm holds the simulated engine and vLLM
to the same contract. An argument that it does not know ends it, as it would end vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

_ROLES = {"kv_producer": "prefill", "kv_consumer": "decode", "kv_both": "aggregated"}
MODEL = "hf://meta-llama/Llama-3.1-8B-Instruct"
"""Whose latencies are simulated, whatever the folder holds."""


def main() -> None:
    """Become the simulated engine."""
    reader = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    add = reader.add_argument
    add("command", choices=["serve"])
    add("model")
    for flag in (
        "--host",
        "--port",
        "--max-model-len",
        "--shutdown-timeout",
        "--gpu-memory-utilization",
        "--kv-transfer-config",
    ):
        add(flag)
    add("--served-model-name", nargs="+")
    for flag in ("--disable-uvicorn-access-log", "--enable-prompt-tokens-details", "--enforce-eager"):
        add(flag, action="store_true")
    given = reader.parse_args()
    if not (Path(given.model) / "config.json").is_file():
        sys.exit(f"OSError: {given.model} does not appear to have a file named config.json")
    transfer = json.loads(given.kv_transfer_config or '{"kv_role": "kv_both"}')
    names = [word for name in given.served_model_name for word in ("--served-name", name)]
    flags = {
        "--role": _ROLES[transfer["kv_role"]],
        "--host": given.host,
        "--port": given.port,
        "--max-length": given.max_model_len,
        "--shutdown-timeout": given.shutdown_timeout,
        "--side-channel-port": os.environ.get("VLLM_NIXL_SIDE_CHANNEL_PORT", "5600"),
        "--time-scale": "10",
    }
    words = [word for pair in flags.items() for word in pair]
    program = [sys.executable, "-m", "turnout_worker.main", "simulate", "--model", MODEL]
    os.execv(program[0], [*program, *names, *words])  # noqa: S606 - no shell


if __name__ == "__main__":
    main()
