"""Full lists: how the store is filled at first, and what mends it where a watch left something out."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from turnout_operator.errors import ApiError, NotFound
from turnout_operator.kube.kinds import SELECTORS, WATCHED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnout_operator.kube.client import KubeClient
    from turnout_operator.observe.store import Key, Store

LOG: Final = logging.getLogger(__name__)

RETRY_SECONDS: Final = 3.0


async def resync(client: KubeClient, store: Store, namespaces: Sequence[str]) -> set[Key]:
    """List every watched kind into *store*; return the resources to look at. Raise ApiError."""
    touched: set[Key] = set()
    for kind in WATCHED:
        for namespace in namespaces or (None,):
            known = [key for key in store.keys(kind) if namespace in {None, key.namespace}]
            listed = await client.list(kind, namespace, SELECTORS.get(kind, ""))
            touched |= store.replace(kind, listed, known)
    return touched


async def first_sync(client: KubeClient, store: Store, namespaces: Sequence[str]) -> None:
    """Fill *store*, trying until it works: without knowing what is there nothing may be done."""
    while True:
        try:
            await resync(client, store, namespaces)
        except NotFound as error:
            LOG.error("are Turnout's CRDs installed? trying again: %s", error)  # noqa: TRY400 - no traceback
        except ApiError as error:
            LOG.error("the cluster cannot be listed, trying again: %s", error)  # noqa: TRY400 - no traceback
        else:
            return
        await asyncio.sleep(RETRY_SECONDS)
