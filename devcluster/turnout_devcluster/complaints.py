"""What kubectl's complaints mean: one sentence for each, that says what to do."""

from __future__ import annotations

import re
from typing import Final

_KLOG: Final = re.compile(r"[EWIF]\d{4} \d\d:\d\d:\d\d")
"""How kubectl's own log begins, five lines of which stand before many of its complaints."""
_MOST: Final = 400
_NO_CLUSTER: Final = (
    "kubectl knows no cluster: set KUBECONFIG, give --kubeconfig FILE, or start one with 'turnout dev up'"
)
_UNREACHABLE: Final = "the cluster's API server cannot be reached: check that it runs, and that --kubeconfig and --context name the right one"
_UNAUTHENTICATED: Final = (
    "the API server does not know who you are: log in again, or give another --kubeconfig or --context"
)
_MEANINGS: Final = (
    ("localhost:8080", _NO_CLUSTER),
    ("no configuration has been provided", _NO_CLUSTER),
    ("(Forbidden)", "you may not ask for that in this cluster: give --namespace of one where you may, or have it granted"),
    ("(Unauthorized)", _UNAUTHENTICATED),
    ("You must be logged in", _UNAUTHENTICATED),
    ("Please enter Username", _UNAUTHENTICATED),
    ("context was not found", "the kubeconfig has no such context: 'kubectl config get-contexts' lists them"),
    ('context "', "the kubeconfig has no such context: 'kubectl config get-contexts' lists them"),
    ("error loading config file", "the kubeconfig cannot be read: give --kubeconfig FILE, or set KUBECONFIG to another"),
    ("error: stat ", "there is no such kubeconfig: give --kubeconfig of a file that exists"),
    ("x509:", "the API server's certificate is not one that the kubeconfig trusts: give --kubeconfig of this cluster"),
    ("was refused", _UNREACHABLE),
    ("Unable to connect to the server", _UNREACHABLE),
    ("i/o timeout", _UNREACHABLE),
    ("no such host", _UNREACHABLE),
    ("context deadline exceeded", _UNREACHABLE),
)  # fmt: skip
"""What stands in a complaint, and what it means; the first that is found holds."""


def explained(said: str, kubeconfig: str | None = None) -> str:
    """Return one sentence for *said*, what kubectl wrote to stderr: its meaning and what to do, or else its last line.

    *kubeconfig*: the file that kubectl was given by flag or by KUBECONFIG.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    kept = [line for line in lines if not _KLOG.match(line)] or lines or ["it failed and did not say why"]
    last = kept[-1].removeprefix("error: ").removeprefix("Error from server ")[-_MOST:].rstrip(".")
    meaning = next((meaning for found, meaning in _MEANINGS if found in said), None)
    if meaning is None:
        return f"kubectl: {last}"
    if meaning is not _NO_CLUSTER:
        return f"{meaning} (kubectl: {last})"
    if kubeconfig:
        return f"{kubeconfig} names no cluster, it is missing or empty: set KUBECONFIG or --kubeconfig to a file that does"
    return meaning
