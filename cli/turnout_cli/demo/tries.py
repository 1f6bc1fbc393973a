"""What to try on a demo that was left running: commands that work when pasted."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from turnout_cli.demo.setup import Serving


def things_to_try(serving: Serving, *, program: Path, cluster: str) -> list[str]:
    """Return commands for *cluster* with real addresses and names. *program* is the turnout command's path."""
    turnout = shlex.quote(str(program))
    kubectl = f"{turnout} dev kubectl --name {shlex.quote(cluster)} --"
    meta = serving.deployment.metadata
    body = {
        "model": serving.model,
        "stream": True,
        "messages": [{"role": "user", "content": "Which signal lets the train pass?"}],
    }
    chat = f"{serving.router_url}/v1/chat/completions"
    more_decode = """'{"spec":{"decode":{"replicas":{"min":2}}}}'"""
    scale = serving.deployment.spec.engine.simulated.time_scale
    target = f"--url {serving.router_url} --model {shlex.quote(serving.model)}"
    return [
        "The demo is left running. Ask the model:",
        f"  curl -sN {chat} -H 'content-type: application/json' -d {shlex.quote(json.dumps(body))}",
        f"  curl -s {serving.router_url}/v1/models",
        "Look at it:",
        f"  {kubectl} get llmdeployments -n {meta.namespace}",
        f"  {kubectl} describe llmdeployment {meta.name} -n {meta.namespace}",
        f"  {kubectl} get pods -A -o wide",
        f"  {kubectl} get events -n {meta.namespace} --sort-by .lastTimestamp",
        f"  {turnout} dev status",
        "Change it, and see it follow:",
        f"  {kubectl} patch llmdeployment {meta.name} -n {meta.namespace} --type merge -p {more_decode}",
        "More traffic:",
        f"  {turnout} replay {target} --time-scale {scale} --minutes 5",
        "End it:",
        f"  {turnout} demo down --name {shlex.quote(cluster)}",
    ]
