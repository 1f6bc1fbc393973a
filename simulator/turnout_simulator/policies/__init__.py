"""Routing policies to compare: the peers' rules, from published facts, and Turnout's own."""
