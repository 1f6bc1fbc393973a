"""What the attempts to serve one request have taught: which workers it still may use, its retries, and whom to blame.

A 5xx, or an answer that breaks off before anything of it was sent, is not held against its worker before it is known how the
request fares elsewhere: where another worker does the same and none serves it, the request is at fault, and no worker is
blamed. (vLLM breaks a stream of the Responses API off where it should refuse the request.)
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
"""Failures that may follow from the request: a worker that is gone, or does not answer, is blamed at once."""


class _Suspicion:
    """A worker's 5xx, or broken answer, that may be the request's own fault."""

    __slots__ = ("backend", "error")

    def __init__(self, backend: Backend, error: UpstreamError) -> None:
        self.backend: Final = backend
        self.error: Final = error

    def is_confirmed_by(self, other: _Suspicion) -> bool:
        """Say whether *other* is the same failure of another worker that does the same work."""
        mine, its = self.backend, other.backend
        return mine.id != its.id and mine.role == its.role and self.error.status == other.error.status


@mypyc_attr(free_list_len=1)
class Attempts:
    """The attempts of one request on a deployment. `failure` is the last failure, `retries` counts repeated attempts.

    *is_trial*: how it fares changes nothing of what is known of its worker; the trial itself is judged.
    """

    __slots__ = (
        "_constraints",
        "_deployment",
        "_is_trial",
        "_most_retries",
        "_suspicions",
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
        self._suspicions: list[_Suspicion] = []
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
        """Take a retry out of this request's bound and the deployment's budget, or say that there is none left."""
        if self.retries >= self._most_retries or not self._deployment.take_retry(overloaded=overloaded):
            return False
        self.retries += 1
        if self.failure is not None:
            self._deployment.metrics.retried(self.failure.fault)
        return True

    def succeed(self, backend: Backend) -> None:
        """Note an answer of *backend*, which takes back what this request has held against it."""
        if self._is_trial:
            return
        health = self._deployment.health
        if self._suspicions:
            for one in [one for one in self._suspicions if one.backend.id == backend.id]:
                health.cleared(backend)
                self._suspicions.remove(one)
        health.succeeded(backend)

    def blame(self, backend: Backend, error: UpstreamError) -> None:
        """Hold *error* against *backend*: at once, or, where it is doubtful, once it is known how the request fares elsewhere."""
        if self._is_trial:
            return
        if error.fault in _DOUBTFUL and self._deployment.health.suspect(backend):
            self._suspicions.append(_Suspicion(backend, error))
        else:
            self._deployment.health.failed(backend, error)

    def blame_at_once(self, backend: Backend, error: UpstreamError) -> None:
        """Hold *error* against *backend*: the request cannot be at fault."""
        if not self._is_trial:
            self._deployment.health.failed(backend, error)

    @property
    def suspects(self) -> bool:
        """Whether a failure waits for its verdict."""
        return bool(self._suspicions)

    def weigh(self, *, served: bool) -> None:
        """Hold failures against workers, but for those that follow the request where it was *served* nowhere."""
        if not self._suspicions:
            return
        health = self._deployment.health
        suspicions, self._suspicions = self._suspicions, []
        for one in suspicions:
            health.cleared(one.backend)
            if served or not any(one.is_confirmed_by(other) for other in suspicions):
                health.failed(one.backend, one.error)
