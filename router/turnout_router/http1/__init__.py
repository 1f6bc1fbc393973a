"""HTTP/1.1 towards clients: ports, connections, requests as bytes, and where answers go."""
