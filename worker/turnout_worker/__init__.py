"""The worker: what runs in a pool's pod. In this form it serves a simulated engine in vLLM's likeness."""
