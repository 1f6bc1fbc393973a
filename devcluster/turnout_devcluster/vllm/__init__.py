"""A real vLLM on this machine's CPU: its environment, small models for it, and servers."""
