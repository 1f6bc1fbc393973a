"""A real Kubernetes control plane on one machine, and a node that runs pods as local processes."""
