"""``turnout explain``: why requests went where they went, as the routers remember it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from turnout_cli.routers import RouterError, decision_path, find_routers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from turnout_cli.routers import Router

app = typer.Typer(no_args_is_help=True, help="Why requests went where they went, as the routers remember it.")

_Admin = Annotated[
    list[str] | None,
    typer.Option(
        "--admin",
        "--router",
        metavar="URL",
        help="A router's admin port, such as http://127.0.0.1:9090; may be repeated. Without it, the routers of "
        "kubectl's cluster are asked.",
    ),
]
_Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Where the routers run.")]
_Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="kubectl's; default: KUBECONFIG.")]
_Context = Annotated[str | None, typer.Option("--context", help="kubectl's context.")]
_TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="TURNOUT_ADMIN_TOKEN_FILE",
        help="Holds the routers' admin token. Without it, the token of the cluster's routers is read from their Secret.",
    ),
]


@app.callback()
def explain() -> None:
    """Why requests went where they went, as the routers remember it."""


@app.command()
def request(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="The answer's x-request-id.")],
    admin: _Admin = None,
    namespace: _Namespace = None,
    kubeconfig: _Kubeconfig = None,
    context: _Context = None,
    *,
    token_file: _TokenFile = None,
) -> None:
    """Print how one request was routed: the workers compared and their figures, failures, and times. Status 1: no router knows it."""
    asked = _routers(admin, namespace, kubeconfig, context, token_file)
    for router, account in _answers(asked, decision_path(request_id)):
        if account is not None:
            print(f"router    {router.name}")
            print("\n".join(account_lines(account)))
            return
    typer.echo(
        f"none of {len(asked)} routers remembers {request_id}: each keeps its last 1000 requests", err=True
    )
    raise typer.Exit(1)


@app.command()
def requests(
    admin: _Admin = None,
    namespace: _Namespace = None,
    kubeconfig: _Kubeconfig = None,
    context: _Context = None,
    *,
    token_file: _TokenFile = None,
    deployment: Annotated[
        str | None, typer.Option(help="Only requests for this one, NAMESPACE/NAME.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of each router.")] = 20,
) -> None:
    """List the last requests, newest first, each with its id and the reason of its way."""
    query = {"limit": str(limit)} | ({} if deployment is None else {"deployment": deployment})
    asked = _routers(admin, namespace, kubeconfig, context, token_file)
    found = [
        entry
        for _, answer in _answers(asked, f"/admin/decisions?{urlencode(query)}")
        for entry in (answer or {}).get("decisions", [])
    ]
    for entry in sorted(found, key=lambda entry: str(entry["at"]), reverse=True):
        print("\n".join(summary_lines(entry)))


def account_lines(account: dict[str, Any]) -> list[str]:
    """Return one request's account, as a router's admin port gives it, in words."""
    estimated, usage = account["estimated"], account["usage"]
    used = "not reported" if usage is None else f"{usage['promptTokens']} in, {usage['outputTokens']} out"
    lines = [
        f"request   {account['id']}  {account['at']}",
        f"asked     {account['path']} of {account['model']}{', streamed' if account['stream'] else ''}",
        f"served by {account['deployment']}",
        f"tokens    estimated {estimated['promptTokens']} in, up to {estimated['outputTokens']} out; used {used}",
        "",
    ]
    events = [(step["afterSeconds"], _step_lines(step)) for step in account["steps"]]
    for key, what in (
        ("prefilledAfterSeconds", "the prompt is computed, its cache is handed over"),
        ("firstTokenAfterSeconds", "first token"),
    ):
        if account[key] is not None:
            events.append((account[key], [what]))
    if account["seconds"] is None:
        events.append((float("inf"), ["still running"]))
    else:
        events.append((account["seconds"], [_ending(account["status"])]))
    for seconds, (first, *rest) in sorted(events, key=lambda entry: entry[0]):
        at = "" if seconds == float("inf") else f"{1000 * seconds:.1f} ms"
        lines.append(f"{at:>12}  {first}")
        lines += [f"{'':>14}{line}" for line in rest]
    return lines


def summary_lines(entry: dict[str, Any]) -> list[str]:
    """Return one entry of the list of requests."""
    seconds = "running" if entry["seconds"] is None else f"{entry['seconds']:.3f} s"
    status = entry["status"] or "-"
    return [
        f"{entry['at']}  {status}  {seconds:>10}  {entry['deployment']}  {entry['path']}  {entry['id']}",
        f"    {entry['sentence']}",
    ]


def _step_lines(step: dict[str, Any]) -> list[str]:
    if step["kind"] == "failed":
        return [f"{step['role']} on {step['backend']} failed ({step['fault']}): {step['message']}"]
    pair = f"decode on {step['decode']}"
    if step["prefill"] is not None:
        pair += f", prefill on {step['prefill']}"
    return [f"chosen: {pair}", *([step["sentence"]] if step["sentence"] else []), *_table(step["candidates"])]


def _table(candidates: Sequence[dict[str, Any]]) -> list[str]:
    """Return the candidates in columns, the chosen ones marked, with whatever figures they have."""
    if not candidates:
        return []
    figures = list(dict.fromkeys(name for candidate in candidates for name in candidate["figures"]))
    rows = [["", "role", "backend", *figures]]
    for candidate in candidates:
        values = [_figure(candidate["figures"].get(name)) for name in figures]
        rows.append(["*" if candidate["chosen"] else "", candidate["role"], candidate["backend"], *values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _figure(value: object) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ending(status: int | None) -> str:
    if status == 499:  # noqa: PLR2004 - nginx's number for it, and the router's metrics'
        return "the client left"
    return f"ended with {status}"


def _routers(
    admin: list[str] | None,
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
    token_file: Path | None,
) -> list[Router]:
    arguments = [
        *(["--kubeconfig", kubeconfig] if kubeconfig is not None else []),
        *(["--context", context] if context is not None else []),
    ]
    try:
        return find_routers(admin or [], namespace, arguments, token_file)
    except RouterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _answers(routers: Sequence[Router], path: str) -> Iterable[tuple[Router, dict[str, Any] | None]]:
    """Ask one after the other. A router that cannot be asked is reported; where none can, the command fails."""
    failures = 0
    for router in routers:
        try:
            yield router, router.get(path)
        except RouterError as error:
            failures += 1
            typer.echo(f"error: {error}", err=True)
    if failures == len(routers):
        raise typer.Exit(2)
