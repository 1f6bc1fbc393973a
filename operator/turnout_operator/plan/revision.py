"""The model revision: a short name for everything that makes two workers incompatible."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from turnout.api.model_source import SourceFiles
from turnout.sources import DEFAULT_REVISION
from turnout.terms import revision_of

if TYPE_CHECKING:
    from turnout.api import Engine, LLMDeployment


def model_revision(deployment: LLMDeployment, image: str) -> str:
    """Return the revision that *deployment* asks for, run from *image*.

    It covers what changes a worker's answers or the form of its KV cache. Bounds, objectives, scaling and
    routing are no part of it: to change them makes no other model, and replaces no pod but for
    `routing.cacheKnowledge`, which is a flag of the workers.
    """
    spec = deployment.spec
    canonical = {
        "source": spec.model.source,
        "sourceRevision": spec.model.revision,
        "servedNames": sorted(deployment.served_names),
        "maxLength": spec.model.max_length,
        "engine": _engine(spec.engine),
        "accelerators": {
            role: spec.pool(role).accelerator.model_dump(mode="json", by_alias=True) for role in spec.roles
        },
        "image": image,
    }
    if spec.model.files != SourceFiles():
        canonical["files"] = spec.model.files.model_dump(mode="json", by_alias=True)
    if spec.lora.adapters:
        lora = spec.lora.model_dump(mode="json", by_alias=True)
        for adapter in lora["adapters"]:
            if adapter["revision"] == DEFAULT_REVISION:
                del adapter["revision"]  # as before there was the field: it alone replaces no pod
        canonical["lora"] = lora
    return revision_of(json.dumps(canonical, sort_keys=True, separators=(",", ":")))


def _engine(engine: Engine) -> dict[str, Any]:
    """Return the settings of the engine in use.

    Without those that have their defaults where there are many, so that a release which knows a further one does not
    replace every worker.
    """
    if engine.type == "simulated":
        return {"type": engine.type, "simulated": engine.simulated.model_dump(mode="json", by_alias=True)}
    settings = engine.vllm_settings.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {"type": engine.type, "vllm": settings}
