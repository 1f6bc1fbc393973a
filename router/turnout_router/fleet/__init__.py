"""The deployments in use: where they are known from, their workers, and what requests claim of them."""
