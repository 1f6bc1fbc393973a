"""Scaling decisions: how many replicas each pool needs, how a rollout moves them, which pods leave.

Everything is pure: facts, policy, memory and time come in, frozen values with their reasons go out.

- ``facts``: LoadFacts and PoolFacts, what the operator collected
- ``policy``: ScalingPolicy, what the user wants
- ``decision``: ScalingDecision, ScalingLimit and Memory
- ``decide``: ``decide(facts, policy, memory, now) -> ScalingDecision``
- ``allocate``: ``allocate(desired, policy) -> Allocation``: bounds, prefill to decode ratio, accelerator budget
- ``rollout_facts``, ``rollout``: ``rollout(desired, revisions, target, policy, surge) -> RolloutPlan``
- ``victims``: ``choose_victims(pods, count)``, ``drain_progress(pods, leaving, now, ...) -> DrainPlan``
"""
