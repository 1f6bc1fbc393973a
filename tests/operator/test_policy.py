"""What the plan makes of a resource's fields on scaling."""

from __future__ import annotations

from dataclasses import replace

from support.scaling_values import policy_of
from turnout.api import LLMDeploymentSpec
from turnout_operator.plan.policy import policy_of as policy_from


def test_a_policy_comes_from_a_spec() -> None:
    """Every field of the spec that scaling reads arrives, in the deployment's seconds."""
    spec = LLMDeploymentSpec.model_validate(
        {
            "model": {"source": "hf://meta-llama/Llama-3.1-8B"},
            "engine": {"type": "simulated"},
            "prefill": {"replicas": {"min": 2, "max": 6}, "accelerator": {"type": "L40S", "count": 2}},
            "decode": {"replicas": {"min": 1, "max": 12}, "accelerator": {"type": "H100-SXM"}},
            "slo": {"timeToFirstToken": "500ms", "interTokenLatency": "40ms", "goodputPercent": 95},
            "scaling": {
                "kvCacheUtilizationPercent": 70,
                "maxAccelerators": 16,
                "prefillToDecode": {"min": "1:4", "max": "2:1"},
                "scaleDown": {"stabilization": "5m"},
            },
        }
    )
    policy = policy_from(spec, interval_seconds=10.0)
    expected = policy_of(
        prefill=(2, 6),
        decode=(1, 12),
        budget=16,
        ratio=("1:4", "2:1"),
        prefill_accelerators=2,
        prefill_type="L40S",
        kv_target=0.7,
        interval_seconds=10.0,
    )
    assert policy == replace(expected, goodput_target_percent=95.0)
    assert policy.stale_after_seconds == 30.0
