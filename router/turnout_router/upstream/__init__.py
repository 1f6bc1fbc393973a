"""HTTP/1.1 towards workers: kept connections, and what takes an answer."""
