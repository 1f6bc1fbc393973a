"""Turnout's decisions and its shared vocabulary.

Everything below this package is pure: no input or output, no clock, no randomness of its own,
no global state. Time, random numbers and configuration come in as arguments; frozen values
with their reasons go out. That is why the same decision runs in the operator, in the router
and in a simulation, and why it can be replayed and explained.
"""
