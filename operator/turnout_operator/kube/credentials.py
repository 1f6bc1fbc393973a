"""Where the API server is and how to log in: KUBECONFIG, or the pod's service account."""

from __future__ import annotations

import os

import kopf

from turnout_operator.errors import ConfigurationError


def connection() -> kopf.ConnectionInfo:
    """Read the credentials afresh: tokens rotate, so nobody keeps them longer than they are accepted.

    KUBECONFIG comes first, for in a dev cluster it is what leads to the pod's own token. Raise
    ConfigurationError where there is neither.
    """
    settings = kopf.OperatorSettings()
    try:
        if os.environ.get("KUBECONFIG"):
            found = kopf.login_with_kubeconfig(settings=settings)
        else:
            found = kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(
                settings=settings
            )
    except (OSError, ValueError, KeyError, TypeError, kopf.LoginError) as error:
        raise ConfigurationError(
            f"the kubeconfig {os.environ.get('KUBECONFIG')!r} cannot be used: {error}"
        ) from error
    if found is None:
        raise ConfigurationError(
            "no way to the API server: set KUBECONFIG, or run in a pod with a service account"
        )
    return found
