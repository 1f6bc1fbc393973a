"""Where the fleet comes from: a file, or Kubernetes' API server."""

from turnout_router.fleet.discovery.port import FleetObserver, FleetSource

__all__ = ["FleetObserver", "FleetSource"]
