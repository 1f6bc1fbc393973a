"""Replay of a trace against an OpenAI API: requests at their times, streams read, latencies counted."""
