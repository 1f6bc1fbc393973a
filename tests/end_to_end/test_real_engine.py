"""A deployment with `engine.type: vllm`, from the manifest to a client's answer: the worker starts the engine and ends with it."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
import yaml

from support.installation import REPOSITORY, wait_until
from turnout.api.worker_facts import WorkerFacts
from turnout.terms import ANNOTATION_WORKER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.installation import Installation

pytestmark = pytest.mark.cluster


@pytest.fixture
def programs() -> Iterator[Path]:
    """Return a folder with a program called `vllm`. Not below /tmp, where the pods have a folder of their own."""
    build = REPOSITORY / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="programs-", dir=build) as folder:
        (Path(folder) / "vllm").symlink_to(REPOSITORY / "tests" / "support" / "vllm_program.py")
        yield Path(folder)


@pytest.fixture
def manifest(tmp_path: Path, programs: Path) -> dict[str, Any]:
    """Return the example's manifest, with a program in vLLM's place that takes the same arguments, and a model that it needs."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    made: dict[str, Any] = yaml.safe_load((REPOSITORY / "examples" / "smollm2-vllm.yaml").read_text())
    made["spec"]["model"]["source"] = model.as_uri()
    vllm = made["spec"]["engine"]["vllm"]
    for setting in ("kvCacheMemoryMib", "maxBatchRequests"):
        del vllm[setting]
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    vllm["env"] = [{"name": "PATH", "value": path}]
    return made


def test_prefill_and_decode_workers_with_an_engine_of_their_own_serve(
    turnout: Installation, space: str, manifest: dict[str, Any]
) -> None:
    """The operator learns from the engine how much its KV cache holds, and routers learn it."""
    turnout.apply(manifest, namespace=space)
    turnout.wait_condition("smollm2", space, "Ready")
    with openai.OpenAI(base_url=turnout.router_url(), api_key="none", max_retries=0, timeout=30) as client:
        wait_until("the router lists it", lambda: "smollm2" in {m.id for m in client.models.list()}, 15)
        answer = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Why do railways need turnouts? " * 20}],
            max_tokens=8,
        )
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 8
    for role in ("prefill", "decode"):
        (pod,) = turnout.ready_pods(f"turnout.dev/deployment=smollm2,turnout.dev/role={role}", space)
        name = pod["metadata"]["name"]
        wait_until(f"the cache of {name} is known", lambda name=name: known_tokens(turnout, space, name) > 0)


def known_tokens(turnout: Installation, space: str, pod: str) -> int:
    annotations = turnout.get("pod", pod, namespace=space)["metadata"]["annotations"]
    return WorkerFacts.from_annotation(annotations[ANNOTATION_WORKER]).kv_tokens


def test_an_engine_that_cannot_start_says_why_in_the_condition(
    turnout: Installation, space: str, manifest: dict[str, Any]
) -> None:
    """In the sentence that the worker makes of its last words."""
    manifest["spec"]["engine"]["vllm"]["extraArgs"] = ["--no-such-option"]
    turnout.apply(manifest, namespace=space)

    def said() -> str:
        status = turnout.get("llmd", "smollm2", namespace=space).get("status", {})
        ready = [item for item in status.get("conditions", ()) if item["type"] == "Ready"]
        return str(ready[0]["message"]) if ready and "BadArgument" in ready[0]["message"] else ""

    assert "--no-such-option" in wait_until("the condition says it", said)
