"""Several routers in front of the same workers: each one sends the others messages about its requests in flight."""
