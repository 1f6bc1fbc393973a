"""Following collections of Kubernetes' API server: see `follow`."""
