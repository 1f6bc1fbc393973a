"""Traffic traces, read or generated, and the prompts they stand for."""
