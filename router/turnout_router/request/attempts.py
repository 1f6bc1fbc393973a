"""The attempts of one request: which workers it may still use, its retries, and which failures count against a worker.

A 5xx, or an answer that breaks off before anything of it was sent, is a provisional failure until the outcome on other workers is
known: if another worker fails in the same way and none serves the request, the request is at fault, and no worker is
blamed. (vLLM breaks off a stream of the Responses API where it should refuse the request.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from turnout.routing.candidates import UNCONSTRAINED, Constraints

if TYPE_CHECKING:
    from turnout.routing import Backend, WorkerPair
    from turnout.routing.candidates import LocalReason
    from turnout.routing.load_tracker import Prompt
    from turnout_router.errors import UpstreamError
    from turnout_router.fleet.deployment import DeploymentRuntime

_DOUBTFUL: Final = frozenset({"status", "cut"})
"""Failures that the request may have caused: a worker that is gone, or does not answer, is blamed at once."""


class _ProvisionalFailure:
    """A worker's 5xx or broken answer, which the request itself may have caused."""

    __slots__ = ("backend", "error")

    def __init__(self, backend: Backend, error: UpstreamError) -> None:
        self.backend: Final = backend
        self.error: Final = error

    def is_confirmed_by(self, other: _ProvisionalFailure) -> bool:
        """Return whether *other* is the same failure of another worker of the same role."""
        mine, its = self.backend, other.backend
        return mine.id != its.id and mine.role == its.role and self.error.status == other.error.status


@mypyc_attr(free_list_len=1)
class Attempts:
    """The attempts of one request on a deployment. `failure` is the last failure, `retries` counts repeated attempts.

    *is_trial*: its attempts do not change the worker's health; only the outcome of the trial does.
    """

    __slots__ = (
        "_constraints",
        "_deployment",
        "_is_trial",
        "_most_retries",
        "_provisional",
        "failure",
        "retries",
    )

    def __init__(
        self,
        deployment: DeploymentRuntime,
        most_retries: int,
        local: LocalReason | None = None,
        *,
        is_trial: bool = False,
    ) -> None:
        self._deployment: Final = deployment
        self._is_trial: Final = is_trial
        self._most_retries: Final = most_retries
        self._constraints = UNCONSTRAINED if local is None else Constraints(local=local)
        self._provisional: list[_ProvisionalFailure] = []
        self.failure: UpstreamError | None = None
        self.retries = 0

    def choose(self, prompt: Prompt, local: LocalReason | None = None) -> WorkerPair | None:
        """Return the workers that would serve *prompt* now, None where none can. *local*: without a prefill worker."""
        constraints = self._constraints
        return self._deployment.choose(prompt, constraints if local is None else constraints.locally(local))

    def exclude(self, backend: Backend) -> None:
        """Never use *backend* again for this request."""
        self._constraints = self._constraints.excluding(backend.id)

    def avoid(self, backend: Backend) -> None:
        """Use *backend* again only where no other worker can decode."""
        self._constraints = self._constraints.avoiding(backend.id)

    def compute_locally(self, reason: LocalReason) -> None:
        """Use no prefill worker from now on."""
        self._constraints = self._constraints.locally(reason)

    def take_retry(self, *, overloaded: bool = False) -> bool:
        """Take a retry out of this request's bound and the deployment's budget; return False if there is none left."""
        if self.retries >= self._most_retries or not self._deployment.take_retry(overloaded=overloaded):
            return False
        self.retries += 1
        if self.failure is not None:
            self._deployment.metrics.retried(self.failure.fault)
        return True

    def succeed(self, backend: Backend) -> None:
        """Note an answer of *backend*, which clears its provisional failures in this request."""
        if self._is_trial:
            return
        health = self._deployment.health
        if self._provisional:
            for one in [one for one in self._provisional if one.backend.id == backend.id]:
                health.clear_provisional(backend)
                self._provisional.remove(one)
        health.succeeded(backend)

    def blame(self, backend: Backend, error: UpstreamError) -> None:
        """Count *error* as a failure of *backend*: at once, or, if the request may have caused it, provisionally."""
        if self._is_trial:
            return
        if error.fault in _DOUBTFUL and self._deployment.health.note_provisional(backend):
            self._provisional.append(_ProvisionalFailure(backend, error))
        else:
            self._deployment.health.failed(backend, error)

    def blame_at_once(self, backend: Backend, error: UpstreamError) -> None:
        """Count *error* as a failure of *backend* at once: the request cannot have caused it."""
        if not self._is_trial:
            self._deployment.health.failed(backend, error)

    @property
    def has_provisional_failures(self) -> bool:
        """Whether a provisional failure is still to be judged."""
        return bool(self._provisional)

    def judge_failures(self, *, served: bool) -> None:
        """Count provisional failures against their workers, unless no worker has *served* the request and several failed alike."""
        if not self._provisional:
            return
        health = self._deployment.health
        provisional, self._provisional = self._provisional, []
        for one in provisional:
            health.clear_provisional(one.backend)
            if served or not any(one.is_confirmed_by(other) for other in provisional):
                health.failed(one.backend, one.error)
