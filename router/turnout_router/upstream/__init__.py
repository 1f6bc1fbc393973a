"""HTTP/1.1 towards workers: kept connections, and handlers of answers."""
