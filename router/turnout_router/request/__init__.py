"""One request, from its claims to its outcome."""
