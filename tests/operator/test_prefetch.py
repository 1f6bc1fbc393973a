"""A prefetch: when its Job is made, what waits for it, and what status says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.operator_values import CONFIG, Fleet, raw_deployment
from turnout import terms
from turnout_worker.main import parser

CLAIM = {"type": "Claim", "claimName": "weights"}


def fleet(**model: Any) -> Fleet:
    source = {"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "cache": CLAIM, "prefetch": True}
    return Fleet(raw_deployment(model=source | model))


def job(cluster: Fleet) -> dict[str, Any]:
    """Return the one Job."""
    (found,) = [child for (kind, _), child in cluster.children.items() if kind == "Job"]
    return found


def complete(cluster: Fleet) -> None:
    job(cluster)["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}


def cached(cluster: Fleet) -> dict[str, Any]:
    """Return the condition ModelCached."""
    return next(item for item in cluster.raw["status"]["conditions"] if item["type"] == "ModelCached")


def put_pod(cluster: Fleet, status: dict[str, Any]) -> None:
    """Make the Job's pod, in *status*."""
    meta = job(cluster)["spec"]["template"]["metadata"]
    name = job(cluster)["metadata"]["name"]
    cluster.pods["fetching"] = {
        "metadata": {
            "name": "fetching",
            "uid": "uid-fetching",
            "namespace": "models",
            "pool": "",
            "labels": {**meta["labels"], "batch.kubernetes.io/job-name": name},
        },
        "status": status,
    }


def test_workers_wait_for_it() -> None:
    """The first workers of a deployment are made when the cache is filled, and not before."""
    cluster = fleet()
    cluster.step()
    cluster.step()
    assert cluster.replicas() == {}
    assert (cached(cluster)["status"], cached(cluster)["reason"]) == ("False", "Copying")
    complete(cluster)
    cluster.step()
    assert sorted(cluster.replicas().values()) == [1, 2]
    assert (cached(cluster)["status"], cached(cluster)["reason"]) == ("True", "Copied")


def test_what_serves_goes_on() -> None:
    """While the next revision's files are copied the one that serves keeps its replicas; then it is replaced."""
    cluster = fleet()
    cluster.step()
    complete(cluster)
    for _ in range(3):
        cluster.step()
    before, old = cluster.replicas(), job(cluster)["metadata"]["name"]
    cluster.raw["spec"]["model"]["revision"] = "v2"
    cluster.step()
    cluster.step()
    assert cluster.replicas() == before
    assert job(cluster)["metadata"]["name"] != old
    complete(cluster)
    for _ in range(20):
        cluster.step()
    assert len(cluster.replicas()) == 2
    assert not cluster.replicas().keys() & before.keys()


def test_another_secret_is_another_job() -> None:
    """A Job cannot be changed: with another Secret it is replaced, and workers of the revision go on meanwhile."""
    cluster = fleet()
    cluster.step()
    complete(cluster)
    cluster.step()
    before, old = cluster.replicas(), job(cluster)["metadata"]["name"]
    cluster.raw["spec"]["model"]["secretName"] = "hub-token"
    cluster.step()
    assert job(cluster)["metadata"]["name"] != old
    assert cluster.replicas() == before


def test_not_asked_for_any_more() -> None:
    """Without prefetch the Job goes, the condition with it, and workers wait for nothing."""
    cluster = fleet()
    cluster.step()
    cluster.raw["spec"]["model"]["prefetch"] = False
    cluster.step()
    assert not [kind for kind, _ in cluster.children if kind == "Job"]
    assert sorted(cluster.replicas().values()) == [1, 2]
    assert "ModelCached" not in {item["type"] for item in cluster.raw["status"]["conditions"]}


def test_a_model_that_does_not_fit_is_not_copied() -> None:
    """Nothing is copied that could not be served."""
    cluster = fleet(source="hf://meta-llama/Llama-3.1-70B-Instruct")
    cluster.step()
    assert cluster.children == {}


GATED = "turnout-worker: Gated: hf://meta-llama/Llama-3.1-8B-Instruct is gated: accept its terms"


@pytest.mark.parametrize(
    ("status", "reason", "says"),
    [
        (
            {"phase": "Running"},
            "Copying",
            "copies the model's files into the cache: see kubectl logs job/llama-prefetch-",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "fetch",
                        "restartCount": 3,
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {
                            "terminated": {
                                "exitCode": 3,
                                "reason": "Error",
                                "message": f"INFO copying\n{GATED}\n",
                            }
                        },
                    }
                ]
            },
            "Gated",
            "hf://meta-llama/Llama-3.1-8B-Instruct is gated: accept its terms",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "fetch",
                        "state": {
                            "waiting": {
                                "reason": "CreateContainerConfigError",
                                "message": 'secret "hub-token" not found',
                            }
                        },
                    }
                ]
            },
            "PrefetchFails",
            'CreateContainerConfigError: secret "hub-token" not found',
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "fetch",
                        "restartCount": 1,
                        "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                    }
                ]
            },
            "PrefetchFails",
            "fetch ended with OOMKilled, exit status 137",
        ),
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/4 nodes are available: unbound PersistentVolumeClaim",
                    }
                ]
            },
            "PrefetchFails",
            "fetching finds no node: 0/4 nodes are available: unbound PersistentVolumeClaim",
        ),
    ],
)
def test_condition(status: dict[str, Any], reason: str, says: str) -> None:
    """What the prefetch ended with last is the condition's reason, with its own sentence."""
    cluster = fleet()
    cluster.step()
    put_pod(cluster, status)
    cluster.step()
    assert (cached(cluster)["status"], cached(cluster)["reason"]) == ("False", reason)
    assert says in cached(cluster)["message"]


def test_pod_is_no_worker() -> None:
    """The Job's pod counts neither as a worker nor for a Service of workers, and runs what the worker's image has."""
    cluster = fleet()
    cluster.step()
    template = job(cluster)["spec"]["template"]
    assert terms.LABEL_ROLE not in template["metadata"]["labels"]
    (container,) = template["spec"]["containers"]
    options = parser().parse_args(container["args"])
    assert options.model == "hf://meta-llama/Llama-3.1-8B-Instruct"
    put_pod(cluster, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    assert cluster.observed().pods == ()


def test_cache_of_a_node() -> None:
    """A cache on nodes is filled on a node that workers run on."""
    cluster = fleet(cache={"type": "HostPath", "path": "/var/models"})
    cluster.step(config=replace(CONFIG, allow_host_paths=True))
    pod = job(cluster)["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "fsGroup" not in pod["securityContext"]


def test_ready_says_what_is_waited_for() -> None:
    """Ready says that the model is copied, or why it is not."""
    cluster = fleet()
    cluster.step()
    put_pod(
        cluster,
        {
            "containerStatuses": [
                {"name": "fetch", "state": {"terminated": {"exitCode": 3, "message": GATED}}}
            ]
        },
    )
    cluster.step()
    ready = next(item for item in cluster.raw["status"]["conditions"] if item["type"] == "Ready")
    assert ready["reason"] == "NoReadyWorkers"
    assert "decode 0 of 2 ready; hf://meta-llama/Llama-3.1-8B-Instruct is gated" in ready["message"]


@pytest.mark.parametrize(
    ("engine", "image"),
    [
        ({"type": "simulated"}, CONFIG.vllm_image),
        ({"type": "simulated", "image": "own/simulated:1"}, CONFIG.vllm_image),
        ({"type": "vllm"}, CONFIG.vllm_image),
        ({"type": "vllm", "image": "own/vllm:1"}, "own/vllm:1"),
    ],
)
def test_the_image_has_what_copies_a_model(engine: dict[str, str], image: str) -> None:
    """The simulated engine's has no libraries for it."""
    source = {"source": "hf://meta-llama/Llama-3.1-8B-Instruct", "cache": CLAIM, "prefetch": True}
    cluster = Fleet(raw_deployment(model=source, engine=engine))
    cluster.step()
    assert job(cluster)["spec"]["template"]["spec"]["containers"][0]["image"] == image
