"""Where the demo's parts come from: the checkout's chart and example, and the traffic."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from turnout.api import InvalidResource, LLMDeployment, load_deployment
from turnout_cli.demo.errors import MissingError
from turnout_simulator.generate import generate
from turnout_simulator.traces import Trace, clip, read_trace, spread, window

CHART: Final = Path("charts/turnout")
EXAMPLE: Final = Path("examples/llama-8b.yaml")
TRACE: Final = Path("traces/mooncake_conversation.jsonl")

DATA_VARIABLE: Final = "TURNOUT_DATA"

TEMPLATE_TOKENS: Final = 64
"""Room left for the chat template, which adds tokens to every prompt."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is replayed, and what was done to it."""

    trace: Trace
    clipped: int
    """Requests that were shortened to fit the model."""


def find_checkout(start: Path | None = None) -> Path:
    """Return the nearest folder, from *start* (default: here) upwards, that holds chart and example.

    The folder that this module was installed from is tried last. Raise MissingError where none does.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (folder / CHART / "Chart.yaml").is_file() and (folder / EXAMPLE).is_file():
            return folder
    raise MissingError(f"no {CHART} and {EXAMPLE} at or above {here}: run the demo in a checkout of Turnout")


def read_manifest(path: Path, *, time_scale: int | None = None) -> dict[str, Any]:
    """Return the LLMDeployment manifest at *path*, its time scale replaced where *time_scale* is given.

    Raise MissingError where the file holds no LLMDeployment that validates.
    """
    try:
        manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
        if time_scale is not None:
            manifest["spec"]["engine"].setdefault("simulated", {})["timeScale"] = time_scale
        load_deployment(manifest)
    except (OSError, yaml.YAMLError, KeyError, TypeError, InvalidResource) as error:
        raise MissingError(f"{path} holds no LLMDeployment that can be run: {error}") from error
    return dict(manifest)


def choose_traffic(
    deployment: LLMDeployment,
    *,
    checkout: Path,
    minutes: float,
    seed: int,
    file: Path | None = None,
) -> Traffic:
    """Return *minutes* of traffic, fitted to *deployment*: from *file*, the data folder, or the generator.

    Raise TraceError where a trace that is there cannot be read, MissingError where it is empty so early.
    """
    seconds = minutes * 60
    data = Path(os.environ.get(DATA_VARIABLE, checkout.parent / "shared" / "data"))
    path = file or data / TRACE
    if file is not None or path.is_file():
        whole = read_trace(path)
        trace = spread(window(whole, duration_seconds=seconds), seed=seed)
        name = f"{path.name}: the first {minutes:g} of {whole.duration_seconds / 60:.0f} minutes"
        trace = replace(trace, name=name)
    else:
        trace = generate(seconds, seed=seed)
    if not trace.requests:
        raise MissingError(f"no request within {minutes:g} minutes of {trace.name}: raise --minutes")
    fitted, clipped = clip(trace, max_tokens=deployment.spec.model.max_length - TEMPLATE_TOKENS)
    return Traffic(fitted, clipped)
