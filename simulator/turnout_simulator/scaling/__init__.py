"""Scaling policies in closed loop with a model of prefill and decode pools, in virtual time."""
