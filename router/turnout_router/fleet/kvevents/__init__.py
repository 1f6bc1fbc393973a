"""Exact mode: what workers' prefix caches hold, from their own KV events. Imported only where a worker publishes them."""

from turnout_router.fleet.kvevents.exact import ExactMode

__all__ = ["ExactMode"]
