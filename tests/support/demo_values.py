"""Values that tests of the demo begin from: a deployment, outcomes, samples."""

from __future__ import annotations

from typing import Any

from turnout.api import LLMDeployment, load_deployment
from turnout_cli.demo.fleet import Fleet
from turnout_cli.demo.samples import Sample, take_sample
from turnout_cli.replay.figures import Objectives, ReplayOutcome
from turnout_cli.replay.replay import Progress

OBJECTIVES = Objectives(time_to_first_token_seconds=2.0, inter_token_latency_seconds=0.05)


def raw_deployment(**status: Any) -> dict[str, Any]:
    """Return an LLMDeployment as the API server hands it out."""
    pool = {"replicas": {"min": 1, "max": 4}, "accelerator": {"type": "H100-SXM", "count": 1}}
    return {
        "apiVersion": "turnout.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "tiny", "namespace": "default", "generation": 2},
        "spec": {
            "model": {"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "servedNames": ["tiny-1"]},
            "engine": {"type": "simulated", "simulated": {"timeScale": 5}},
            "prefill": pool,
            "decode": pool,
        },
        "status": status,
    }


def deployment(**status: Any) -> LLMDeployment:
    """Return the same as a model."""
    return load_deployment(raw_deployment(**status))


def scaling(number: int) -> dict[str, str]:
    """Return one entry of status.lastScaling."""
    return {
        "time": f"2026-01-01T00:00:{number:02}Z",
        "from": f"prefill 1, decode {number}",
        "to": f"prefill 1, decode {number + 1}",
        "reason": f"decode {number} -> {number + 1}: KV cache 9{number} % in use, target 80 %",
    }


def outcome(
    index: int, *, failure: str | None = None, ttft: float = 1.0, sent_at: float = 0.0
) -> ReplayOutcome:
    """Return one request's outcome."""
    return ReplayOutcome(
        index=index,
        sent_at=sent_at,
        lag_seconds=0.001,
        status=200 if failure is None else 503,
        failure=failure,
        ttft_seconds=None if failure else ttft,
        itl_seconds=None if failure else 0.02,
        duration_seconds=3.0,
        prompt_tokens=0 if failure else 100,
        output_tokens=0 if failure else 10,
        cached_tokens=0 if failure else 40,
    )


def sample_at(seconds: float, *outcomes: ReplayOutcome, sent: int = 0, **status: Any) -> Sample:
    """Return a sample of a fleet with *status*."""
    progress = Progress(total=1000, sent=sent, outcomes=list(outcomes))
    return take_sample(seconds, progress, OBJECTIVES, Fleet(deployment(**status)), {"prefill": 0.25})
