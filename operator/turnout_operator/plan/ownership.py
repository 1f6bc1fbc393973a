"""Whose an object is that has a child's name or labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnout import terms

if TYPE_CHECKING:
    from collections.abc import Mapping

_KIND = "LLMDeployment"


def owns(owner: Mapping[str, Any], child: Mapping[str, Any]) -> bool:
    """Return whether *child* belongs to the LLMDeployment that has *owner* as its metadata.

    What names its uid as owner is its own, whatever became of the labels. What another controller holds is not.
    What no controller holds, or one of this name that was deleted, is taken back when its labels say that an
    operator made it for a deployment of this name: deleting with ``--cascade=orphan`` leaves such objects.
    """
    references = child["metadata"].get("ownerReferences") or []
    if any(reference.get("uid") == owner["uid"] for reference in references):
        return True
    for reference in references:
        if reference.get("controller") and (reference.get("kind"), reference.get("name")) != (
            _KIND,
            owner["name"],
        ):
            return False
    labels = child["metadata"].get("labels") or {}
    return bool(
        labels.get(terms.LABEL_MANAGED_BY) == terms.FIELD_MANAGER
        and labels.get(terms.LABEL_DEPLOYMENT) == owner["name"]
    )
