"""Node agent of the dev cluster: runs the pods that are bound to its nodes as local processes.

What is decided is pure and lies in quantities, fields, references, environment, volumes, plan,
probes, backoff, decide, status and nodes. What acts lies in processes, shim, attempts, mounts, api,
watch, events, checks, podworker, forward, logs, server and agent.
"""
