"""Node agent of the dev cluster: runs the pods that are bound to its nodes as local processes.

Pure decisions: model, quantities, fields, references, environment, volumes, plan, probes, backoff, decide, status,
nodes. What acts on them: processes and shim (one small parent for each container), attempts (the disk),
pod_files and mounts, checks and prober, container, pod, agent; and towards the API server and clients api, watch,
config_source, events, forward and splice, logs and server.
"""
