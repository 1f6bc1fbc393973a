"""The catalog of Turnout's metrics: what each is called, what it counts, in which unit, by which labels.

Services take names, labels and help from here when they make their metrics, and ``docs/reference/metrics.md`` is
written from it, so a metric is described once. Workers also expose vLLM's metrics under vLLM's own names; those are
the engine's and are not listed here.

Times are seconds. Those that the router measures on requests are the deployment's own: real seconds times the time
scale of its simulated engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
Service = Literal["router", "operator", "worker", "node agent"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, described as its service exposes it."""

    name: str
    """As Prometheus stores it: a counter's ends in ``_total``; a histogram's series add ``_bucket``, ``_sum``, ``_count``."""
    kind: Kind
    service: Service
    unit: str
    """What a value counts, such as ``requests`` or ``seconds``; ``0 or 1`` for a flag."""
    help: str
    labels: tuple[str, ...] = ()
    values: str = ""
    """The values of labels that `LABELS` does not explain, in Markdown."""


LABELS: Final = {
    "deployment": "An LLMDeployment, as `NAMESPACE/NAME`. Empty: the request named none.",
    "role": "`prefill` or `decode`; of the operator's pools also `aggregated`.",
    "namespace": "A namespace. Empty: all that are watched.",
    "resource": "A kind of object by its plural, such as `tokenbudgets`.",
    "task": "A part of the process that runs as long as the process does.",
    "model_name": "The worker's first served name.",
    "engine": "The engine's index within the worker, `0`.",
}
"""What a label means wherever it stands."""

_UPSTREAM_FAULTS: Final = (
    "`connect` (no connection), `reset`, `cut` (the answer ended early), `timeout`, `status` (a 5xx), `protocol` (no valid "
    "HTTP), `overloaded` (503 or 429), `stale` (an idle connection that the worker had closed), `refused` (a 4xx), "
    "`too_large`, `internal` (a failure of the router itself)"
)

ROUTER_FLEET_STALE: Final = Metric(
    "turnout_router_fleet_stale",
    "gauge",
    "router",
    "0 or 1",
    "1 while the fleet cannot be read and the last known one is used.",
)
ROUTER_NAMESPACE_UNREADABLE: Final = Metric(
    "turnout_router_namespace_unreadable",
    "gauge",
    "router",
    "0 or 1",
    "1 while the API server refuses this resource in this namespace (empty: in all of them).",
    ("namespace", "resource"),
)
ROUTER_FLEET_UPDATES: Final = Metric(
    "turnout_router_fleet_updates_total",
    "counter",
    "router",
    "changes",
    "Changes of the fleet that took effect.",
)
ROUTER_FLEET_REJECTED: Final = Metric(
    "turnout_router_fleet_rejected_total",
    "counter",
    "router",
    "objects",
    "Configurations and resources that were ignored because they are invalid.",
)
ROUTER_TASK_FAILURES: Final = Metric(
    "turnout_router_task_failures_total",
    "counter",
    "router",
    "failures",
    "Exceptions that the router survived, by the task that raised them; the log has each with its cause.",
    ("task",),
)
ROUTER_LOOP_STALL: Final = Metric(
    "turnout_router_loop_stall_seconds",
    "histogram",
    "router",
    "seconds",
    "How much later than planned the event loop called a timer that is due every 0.05 s.",
)
ROUTER_ARRIVALS: Final = Metric(
    "turnout_router_arrivals_total",
    "counter",
    "router",
    "requests",
    "Requests that arrived for a deployment.",
    ("deployment",),
)
ROUTER_FINISHED: Final = Metric(
    "turnout_router_finished_total",
    "counter",
    "router",
    "requests",
    "Requests that ran to their end, or failed because capacity or a worker was missing.",
    ("deployment",),
)
ROUTER_GOOD: Final = Metric(
    "turnout_router_good_total",
    "counter",
    "router",
    "requests",
    "Finished requests that met both objectives.",
    ("deployment",),
)
ROUTER_REQUESTS: Final = Metric(
    "turnout_router_requests_total",
    "counter",
    "router",
    "requests",
    "Answered requests by HTTP status; 502 also a stream that broke, 499 a client that left.",
    ("deployment", "code"),
    "`code`: the HTTP status.",
)
ROUTER_PROMPT_TOKENS: Final = Metric(
    "turnout_router_prompt_tokens_total",
    "counter",
    "router",
    "tokens",
    "Prompt tokens of finished requests, from usage; counted by the router where the engine reports none.",
    ("deployment",),
)
ROUTER_OUTPUT_TOKENS: Final = Metric(
    "turnout_router_output_tokens_total",
    "counter",
    "router",
    "tokens",
    "Output tokens of finished requests, from usage; counted by the router where the engine reports none.",
    ("deployment",),
)
ROUTER_IN_FLIGHT: Final = Metric(
    "turnout_router_in_flight",
    "gauge",
    "router",
    "requests",
    "Requests in flight, including those that wait.",
    ("deployment",),
)
ROUTER_WAITING: Final = Metric(
    "turnout_router_waiting",
    "gauge",
    "router",
    "requests",
    "Requests that wait for admission or for a worker.",
    ("deployment",),
)
ROUTER_HELD: Final = Metric(
    "turnout_router_held",
    "gauge",
    "router",
    "requests",
    "Requests in the dispatch queue: no worker of this role can start them yet.",
    ("deployment", "role"),
)
ROUTER_HELD_SECONDS: Final = Metric(
    "turnout_router_held_seconds_total",
    "counter",
    "router",
    "seconds",
    "Time that requests spent in the dispatch queue, summed.",
    ("deployment", "role"),
)
ROUTER_TIME_TO_FIRST_TOKEN: Final = Metric(
    "turnout_router_time_to_first_token_seconds",
    "histogram",
    "router",
    "seconds",
    "From the request to the first token of a stream.",
    ("deployment",),
)
ROUTER_INTER_TOKEN_LATENCY: Final = Metric(
    "turnout_router_inter_token_latency_seconds",
    "histogram",
    "router",
    "seconds",
    "Mean time between the tokens of a stream: (last - first) / (tokens - 1).",
    ("deployment",),
)
ROUTER_REQUEST_DURATION: Final = Metric(
    "turnout_router_request_duration_seconds",
    "histogram",
    "router",
    "seconds",
    "From the request to the end of its answer, of requests that ran to their end.",
    ("deployment",),
)
ROUTER_SHED: Final = Metric(
    "turnout_router_shed_total",
    "counter",
    "router",
    "requests",
    "Requests refused because there was no room, by reason.",
    ("deployment", "reason"),
    (
        "`reason`: `queue_full`, `queue_timeout`, `displaced` (by requests of a higher priority), "
        "`deadline` (the client's own)."
    ),
)
ROUTER_RETRIES: Final = Metric(
    "turnout_router_retries_total",
    "counter",
    "router",
    "requests",
    "Requests sent to another worker, by how the previous one failed.",
    ("deployment", "reason"),
    f"`reason`: {_UPSTREAM_FAULTS}.",
)
ROUTER_LOCAL_PREFILLS: Final = Metric(
    "turnout_router_local_prefills_total",
    "counter",
    "router",
    "requests",
    "Prompts that the decode worker computes itself, by reason.",
    ("deployment", "reason"),
    (
        "`reason`: `aggregated` (the pool does both), `short_prompt`, `no_prefill` (no prefill "
        "worker of that revision), `prefill_failed`, `request_form` (several choices, log "
        "probabilities of the prompt), `no_generation` (embeddings and the like), "
        "`cheaper_locally`, `handed_over` (an earlier attempt had the prompt "
        "computed, and that cache is still to be used)."
    ),
)
ROUTER_SCRAPES: Final = Metric(
    "turnout_router_scrapes_total",
    "counter",
    "router",
    "pages",
    "Metrics pages requested from workers, by outcome.",
    ("deployment", "outcome"),
    "`outcome`: `read`, `unreadable`, `failed` or a reason of `turnout_router_retries_total`.",
)
ROUTER_KV_EVENTS: Final = Metric(
    "turnout_router_kv_events_total",
    "counter",
    "router",
    "events",
    "Batches of KV events that arrived, and what was wrong with them.",
    ("deployment", "what"),
    (
        "`what`: `batch`, `gap` (numbers missing), `restart` (of a worker), `lost` (batches that "
        "no replay had), `unreadable`, `dropped_block` (beyond the bound of memory), "
        "`unplaced_block` (its predecessor is unknown)."
    ),
)
ROUTER_KV_EVENTS_WORKERS: Final = Metric(
    "turnout_router_kv_events_workers",
    "gauge",
    "router",
    "workers",
    "Workers by what is known of their prefix caches.",
    ("deployment", "state"),
    "`state`: `complete`, `partial`, `away` (no events arrive).",
)
ROUTER_KV_EVENTS_BLOCKS: Final = Metric(
    "turnout_router_kv_events_blocks",
    "gauge",
    "router",
    "blocks",
    "Blocks that workers report as cached.",
    ("deployment",),
)
ROUTER_KV_EVENTS_LAG: Final = Metric(
    "turnout_router_kv_events_lag_seconds",
    "gauge",
    "router",
    "seconds",
    "Age of the last batch of KV events at its arrival, by the two machines' clocks; the oldest of all workers.",
    ("deployment",),
)
ROUTER_TOKENIZED: Final = Metric(
    "turnout_router_tokenized_total",
    "counter",
    "router",
    "prompts",
    "Prompts whose tokens were requested, by outcome.",
    ("deployment", "outcome"),
    "`outcome`: `known`, `asked` (of a worker), `failed` and `unfit` (routed by estimate).",
)
ROUTER_PEERS: Final = Metric(
    "turnout_router_peers",
    "gauge",
    "router",
    "routers",
    "Connections with other routers, by direction.",
    ("direction",),
    ("`direction`: `outgoing` (this router reports its requests), `incoming` (it receives reports)."),
)
ROUTER_PEER_REQUESTS: Final = Metric(
    "turnout_router_peer_requests",
    "gauge",
    "router",
    "requests",
    "Requests that other routers have in flight, counted once for each worker of a pair.",
)
ROUTER_PEER_MESSAGES: Final = Metric(
    "turnout_router_peer_messages_total",
    "counter",
    "router",
    "messages",
    "Messages about requests; one sent to several routers counts once.",
    ("direction",),
    "`direction`: `sent`, `received`.",
)
ROUTER_PEER_MESSAGES_IGNORED: Final = Metric(
    "turnout_router_peer_messages_ignored_total",
    "counter",
    "router",
    "messages",
    "Messages without effect here, because the deployment, the worker or the request is unknown.",
    ("reason",),
    "`reason`: `unknown_deployment`, `unknown_request` (worker or request).",
)
ROUTER_PEER_CONVERSATIONS_ENDED: Final = Metric(
    "turnout_router_peer_conversations_ended_total",
    "counter",
    "router",
    "connections",
    "Connections with other routers that ended or did not begin, by reason.",
    ("reason",),
    (
        "`reason`: `closed`, `silent`, `slow`, `garbage`, `refused`, `secret`, `version`, "
        "`blocks`, `self`, `twice`, `too_many`."
    ),
)
OPERATOR_LEADER: Final = Metric(
    "turnout_operator_leader",
    "gauge",
    "operator",
    "0 or 1",
    "1 while this operator holds the lease and acts.",
)
OPERATOR_NAMESPACES: Final = Metric(
    "turnout_operator_namespaces",
    "gauge",
    "operator",
    "namespaces",
    "Namespaces by the release that acts there: this one (own), or another, for which this one waits (other; the whole cluster counts as one).",
    ("release",),
    "`release`: `own`, `other`.",
)
OPERATOR_RECONCILE_SECONDS: Final = Metric(
    "turnout_operator_reconcile_seconds",
    "histogram",
    "operator",
    "seconds",
    "Time that one pass over one resource took.",
    ("kind",),
    "`kind`: the kind of resource.",
)
OPERATOR_RECONCILE_ERRORS: Final = Metric(
    "turnout_operator_reconcile_errors_total",
    "counter",
    "operator",
    "passes",
    "Passes that failed and will be repeated.",
    ("kind",),
    "`kind`: the kind of resource.",
)
OPERATOR_API_REQUESTS: Final = Metric(
    "turnout_operator_api_requests_total",
    "counter",
    "operator",
    "requests",
    "Requests to the API server, without watches; code 0 where there was no answer.",
    ("verb", "resource", "code"),
    "`verb`: the HTTP method; `code`: the HTTP status.",
)
OPERATOR_QUEUE_LENGTH: Final = Metric(
    "turnout_operator_queue_length", "gauge", "operator", "resources", "Resources that wait for a pass."
)
OPERATOR_NAMESPACE_UNREADABLE: Final = Metric(
    "turnout_operator_namespace_unreadable",
    "gauge",
    "operator",
    "0 or 1",
    "1 while the API server refuses this resource in this namespace (empty: in all of them).",
    ("namespace", "resource"),
)
OPERATOR_DESIRED_REPLICAS: Final = Metric(
    "turnout_operator_desired_replicas",
    "gauge",
    "operator",
    "replicas",
    "Replicas that scaling asks for.",
    ("deployment", "role"),
)
OPERATOR_READY_REPLICAS: Final = Metric(
    "turnout_operator_ready_replicas",
    "gauge",
    "operator",
    "replicas",
    "Workers that serve.",
    ("deployment", "role"),
)
OPERATOR_GOODPUT: Final = Metric(
    "turnout_operator_goodput_percent",
    "gauge",
    "operator",
    "percent",
    "Share of recent requests that met both objectives; absent without traffic.",
    ("deployment",),
)
OPERATOR_SCALING_DECISIONS: Final = Metric(
    "turnout_operator_scaling_decisions_total",
    "counter",
    "operator",
    "decisions",
    "Scaling decisions by what they did (up, down, rebalance, keep) and what limited them (empty: nothing).",
    ("deployment", "action", "limit"),
    (
        "`action`: `up`, `down`, `rebalance`, `keep`; `limit`: a reason of the condition "
        "`ScalingLimited`, or empty."
    ),
)
OPERATOR_SCRAPE_FAILURES: Final = Metric(
    "turnout_operator_scrape_failures_total",
    "counter",
    "operator",
    "pages",
    "Metrics pages of workers or routers that could not be read.",
    ("target",),
    "`target`: `worker`, `router`.",
)
OPERATOR_TASK_FAILURES: Final = Metric(
    "turnout_operator_task_failures_total",
    "counter",
    "operator",
    "failures",
    "Exceptions that the operator survived, by the task that raised them; the log has each with its cause.",
    ("task",),
)
SIMULATED_PINNED_REQUESTS: Final = Metric(
    "turnout_simulated_pinned_requests",
    "gauge",
    "worker",
    "requests",
    "Prefilled prompts whose KV cache waits to be fetched.",
    ("model_name", "engine"),
)
SIMULATED_STALE_KV_READS: Final = Metric(
    "turnout_simulated_stale_kv_reads_total",
    "counter",
    "worker",
    "fetches",
    "Fetches of a KV cache that was no longer there: answered from freed blocks.",
    ("model_name", "engine"),
)
SIMULATED_ITERATIONS: Final = Metric(
    "turnout_simulated_iterations_total",
    "counter",
    "worker",
    "iterations",
    "Iterations of the simulated engine.",
    ("model_name", "engine"),
)
WORKER_TASK_FAILURES: Final = Metric(
    "turnout_worker_task_failures_total",
    "counter",
    "worker",
    "failures",
    "Exceptions that the worker survived, by the task that raised them.",
    ("task",),
)
NODE_TASK_FAILURES: Final = Metric(
    "turnout_node_task_failures_total",
    "counter",
    "node agent",
    "failures",
    "Exceptions that the dev cluster's node agent survived, by the task that raised them.",
    ("task",),
)

CATALOG: Final = (
    ROUTER_FLEET_STALE,
    ROUTER_NAMESPACE_UNREADABLE,
    ROUTER_FLEET_UPDATES,
    ROUTER_FLEET_REJECTED,
    ROUTER_TASK_FAILURES,
    ROUTER_LOOP_STALL,
    ROUTER_ARRIVALS,
    ROUTER_FINISHED,
    ROUTER_GOOD,
    ROUTER_REQUESTS,
    ROUTER_PROMPT_TOKENS,
    ROUTER_OUTPUT_TOKENS,
    ROUTER_IN_FLIGHT,
    ROUTER_WAITING,
    ROUTER_HELD,
    ROUTER_HELD_SECONDS,
    ROUTER_TIME_TO_FIRST_TOKEN,
    ROUTER_INTER_TOKEN_LATENCY,
    ROUTER_REQUEST_DURATION,
    ROUTER_SHED,
    ROUTER_RETRIES,
    ROUTER_LOCAL_PREFILLS,
    ROUTER_SCRAPES,
    ROUTER_KV_EVENTS,
    ROUTER_KV_EVENTS_WORKERS,
    ROUTER_KV_EVENTS_BLOCKS,
    ROUTER_KV_EVENTS_LAG,
    ROUTER_TOKENIZED,
    ROUTER_PEERS,
    ROUTER_PEER_REQUESTS,
    ROUTER_PEER_MESSAGES,
    ROUTER_PEER_MESSAGES_IGNORED,
    ROUTER_PEER_CONVERSATIONS_ENDED,
    OPERATOR_LEADER,
    OPERATOR_NAMESPACES,
    OPERATOR_RECONCILE_SECONDS,
    OPERATOR_RECONCILE_ERRORS,
    OPERATOR_API_REQUESTS,
    OPERATOR_QUEUE_LENGTH,
    OPERATOR_NAMESPACE_UNREADABLE,
    OPERATOR_DESIRED_REPLICAS,
    OPERATOR_READY_REPLICAS,
    OPERATOR_GOODPUT,
    OPERATOR_SCALING_DECISIONS,
    OPERATOR_SCRAPE_FAILURES,
    OPERATOR_TASK_FAILURES,
    SIMULATED_PINNED_REQUESTS,
    SIMULATED_STALE_KV_READS,
    SIMULATED_ITERATIONS,
    WORKER_TASK_FAILURES,
    NODE_TASK_FAILURES,
)
"""All metrics of Turnout, in the order of the reference."""
