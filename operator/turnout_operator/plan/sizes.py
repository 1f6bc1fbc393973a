"""What is known of a deployment's model, and whether it fits: by `spec.model.architecture`, else by the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnout.sizing.capacity import Capacity, DoesNotFit, Unknown, fits
from turnout.sizing.catalog import HUB, known

if TYPE_CHECKING:
    from turnout.api import LLMDeployment, Role
    from turnout.sizing.architecture import ModelArchitecture


def architecture(deployment: LLMDeployment) -> ModelArchitecture | None:
    """Return what is known of the model's size. None: nothing."""
    model = deployment.spec.model
    if model.architecture is not None:
        return model.architecture.sizing(model.source.removeprefix(HUB))
    return known(model.source)


def fit(deployment: LLMDeployment, role: Role) -> Capacity | DoesNotFit | Unknown:
    """Say whether the model fits on one replica of the *role* pool."""
    accelerator = deployment.spec.pool(role).accelerator
    parallelism = deployment.spec.engine.vllm_settings.parallelism
    if parallelism.data > 1:
        return Unknown(
            "UnknownMemory",
            "with engine.vllm.parallelism.data above 1 it is not computed whether the model fits, so nothing was checked",
        )
    return fits(
        architecture(deployment),
        accelerator.type,
        accelerator.count // parallelism.pipeline,
        parallelism.pipeline,
        max_length=deployment.spec.model.max_length,
    )


def obstacle(deployment: LLMDeployment) -> DoesNotFit | Unknown | None:
    """Return why the model does not fit into some pool, else why that is not known of one. None: it fits."""
    found = [fit(deployment, role) for role in deployment.spec.roles]
    misfit = next((each for each in found if isinstance(each, DoesNotFit)), None)
    return misfit or next((each for each in found if isinstance(each, Unknown)), None)
