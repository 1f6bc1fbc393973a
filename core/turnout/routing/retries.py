"""The retry budget of a deployment: a share of its requests, so that retries never multiply an outage."""

from __future__ import annotations

from dataclasses import dataclass, replace

_ONE = 1.0


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """A bucket of retries: every request pays `ratio` in, every retry takes 1 out, `burst` is the most it holds.

    It starts full, so that a router with little traffic can retry at all. Retries because a worker is full leave
    `reserve` in it for those because a worker has failed: an overload must not use up what repairs a failure.
    """

    ratio: float = 0.2
    burst: float = 20.0
    tokens: float = 20.0
    reserve: float = 10.0


def after_request(budget: RetryBudget) -> RetryBudget:
    """Return the budget after a request has arrived."""
    if budget.tokens >= budget.burst:
        return budget
    return replace(budget, tokens=min(budget.burst, budget.tokens + budget.ratio))


def may_retry(budget: RetryBudget, *, overloaded: bool = False) -> bool:
    """Return whether one more retry is paid for. *overloaded*: the worker tried before has not failed, but is full."""
    return budget.tokens >= _ONE + (budget.reserve if overloaded else 0.0)


def after_retry(budget: RetryBudget) -> RetryBudget:
    """Return the budget after a retry. Raise ValueError unless `may_retry`."""
    if not may_retry(budget):
        raise ValueError("the retry budget is used up: check may_retry first")
    return replace(budget, tokens=budget.tokens - _ONE)
