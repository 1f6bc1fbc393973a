"""LoRA adapters in the plan: the workers' flags, which names are claimed, and what is another model."""

from __future__ import annotations

from typing import Any

from support.operator_values import CONFIG, Fleet, raw_deployment
from turnout_operator.plan.claims import assign_names, claim_of
from turnout_operator.plan.revision import model_revision

ADAPTERS = [{"name": "sql", "source": "hf://acme/sql"}, {"name": "law", "source": "hf://acme/law"}]


def revision(**spec: Any) -> str:
    return model_revision(Fleet(raw_deployment(**spec)).deployment, CONFIG.worker_image)


def test_workers_of_both_roles_get_the_flags() -> None:
    """Prefill and decode workers serve them alike: a cache computed under an adapter is read under it."""
    made = Fleet(raw_deployment(lora={"adapters": ADAPTERS, "maxLoaded": 2})).plan()
    for manifest in made.apply:
        if manifest["kind"] == "Deployment":
            args = manifest["spec"]["template"]["spec"]["containers"][0]["args"]
            modules = [args[at + 1] for at, flag in enumerate(args) if flag == "--lora-modules"]
            assert modules == ["sql=hf://acme/sql", "law=hf://acme/law"]
            assert args[args.index("--max-loras") + 1] == "2"


def test_other_adapters_are_another_revision_and_none_are_none() -> None:
    """Workers without the adapter answer 404 for its name, so a change rolls out."""
    assert revision() == revision(lora={}) == revision(lora={"adapters": []})
    assert (
        len({revision(), revision(lora={"adapters": ADAPTERS}), revision(lora={"adapters": ADAPTERS[:1]})})
        == 3
    )


def test_adapters_claim_their_names() -> None:
    """Beside the model's own; the oldest claim keeps a name, and nonsense in a spec claims nothing."""
    first = claim_of(raw_deployment("first", lora={"adapters": ADAPTERS}))
    second = claim_of(raw_deployment("second", model={"source": "hf://a/b", "servedNames": ["law", "other"]}))
    assigned = assign_names([first, second])
    assert assigned[first.owner].served == ("first", "sql", "law")
    assert assigned[second.owner].served == ("other",)
    assert assigned[second.owner].refused == (("law", "served by first"),)
    for nonsense in (None, [], "x", {"adapters": {}}, {"adapters": [None, 7, {"name": 7}, {}]}):
        assert claim_of(raw_deployment("odd", lora=nonsense)).names == ("odd",)
