"""`turnout dev`: a Kubernetes cluster on this machine, with pods as local processes and pretend accelerators."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from turnout.sizing.accelerators import DEVICES
from turnout_devcluster.cluster import DEFAULT_ACCELERATORS, DEFAULT_NAME, DEFAULT_NODES, Cluster
from turnout_devcluster.errors import DevClusterError
from turnout_devcluster.existing import KUBECONFIG_VARIABLE, ExistingCluster, given_kubeconfig
from turnout_devcluster.inspection import inspect
from turnout_devcluster.layout import existing_clusters
from turnout_devcluster.podlogs import find_log, read_log
from turnout_devcluster.progress import Progress

if TYPE_CHECKING:
    from turnout_devcluster.client import ClusterClient
    from turnout_devcluster.inspection import ClusterState


class _Group(TyperGroup):
    """Prints the package's own errors as one plain message and ends with status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DevClusterError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    help="A Kubernetes cluster on this machine: a real control plane, pods as local processes, pretend accelerators.",
)

_Name = Annotated[
    str, typer.Option("--name", help="Which dev cluster; each has its own addresses and files.")
]
_Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        envvar=KUBECONFIG_VARIABLE,
        help="Use this existing cluster; nothing is started or stopped.",
    ),
]
_Arguments = Annotated[list[str] | None, typer.Argument(help="Passed on as they are.")]
_PASS_THROUGH = {
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": ["--dev-help"],
}


def parse_accelerators(text: str) -> dict[str, int]:
    """Read ``TYPE=COUNT,...``.

    :raises typer.BadParameter: when it is something else, or names an accelerator that Turnout does not know.
    """
    counts: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, separator, count = part.partition("=")
        if kind not in DEVICES:
            raise typer.BadParameter(f"{kind!r} is not one of {', '.join(DEVICES)}.")
        if not separator or not count.isdigit() or int(count) == 0:
            raise typer.BadParameter(f"{part!r}: write it as {kind}=8, with a whole number above 0.")
        counts[kind] = int(count)
    return counts


@app.command()
def up(
    name: _Name = DEFAULT_NAME,
    nodes: Annotated[
        int, typer.Option(min=0, max=50, help="Nodes per type of accelerator; 0: control plane only.")
    ] = DEFAULT_NODES,
    accelerators: Annotated[
        str, typer.Option(help="Accelerators that each node pretends to have: TYPE=COUNT,...")
    ] = ",".join(f"{kind}={count}" for kind, count in DEFAULT_ACCELERATORS.items()),
    kubeconfig: _Kubeconfig = None,
    *,
    with_parent: Annotated[
        bool,
        typer.Option("--with-parent", help="End the cluster when the process that called this command ends."),
    ] = False,
) -> None:
    """Start a cluster, or find it running, and print its kubeconfig's path as the last line of stdout.

    The first time, the control plane is built from its Go modules: some minutes, once. KUBEBUILDER_ASSETS may
    name a folder with etcd, kube-apiserver and kubectl to use instead.
    """
    counts = parse_accelerators(accelerators)
    progress = Progress()
    given = given_kubeconfig(kubeconfig)
    if given is not None:
        existing = ExistingCluster.of(given, progress)
        progress.line(
            "an existing cluster was given: using it, starting nothing (no control plane, no nodes)"
        )
        print(existing.kubeconfig)
        return
    owner = os.getppid() if with_parent else None
    cluster = Cluster.up(name, nodes=nodes, accelerators=counts, owner_pid=owner, progress=progress)
    progress.line(
        f"try: turnout dev kubectl --name {name} get nodes   or: export KUBECONFIG={cluster.kubeconfig}"
    )
    print(cluster.kubeconfig)


@app.command()
def down(
    name: _Name = DEFAULT_NAME,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every dev cluster.")] = False,
) -> None:
    """End a cluster: no process and no file of it is left."""
    names = existing_clusters() if everything else [name]
    for each in names:
        Cluster.attach(each).down()
        typer.echo(f"the cluster {each} is down", err=True)
    if not names:
        typer.echo("there is no dev cluster", err=True)


@app.command()
def status(
    name: Annotated[str | None, typer.Option("--name", help="Only this cluster.")] = None,
) -> None:
    """Show what runs: components, nodes, pods. Ends with status 1 when something of it is not well."""
    names = existing_clusters() if name is None else [name]
    if not names:
        typer.echo("There is no dev cluster. Start one with 'turnout dev up'.", err=True)
        raise typer.Exit(1)
    console = Console(width=None if sys.stdout.isatty() else 160)
    healthy = True
    for each in names:
        cluster = Cluster.attach(each)
        state = inspect(cluster)
        healthy = healthy and state.healthy
        _show(console, cluster, state)
    if not healthy:
        raise typer.Exit(1)


@app.command()
def logs(
    pod: Annotated[str, typer.Argument(help="Name of the pod.")],
    name: _Name = DEFAULT_NAME,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Needed only when the name is in several.")
    ] = None,
    container: Annotated[
        str | None, typer.Option("--container", "-c", help="Needed only when the pod has several.")
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the pod is gone.")] = False,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="The run before the last restart.")
    ] = False,
) -> None:
    """Print a pod's log from the node's files: this works while the API server is dead, too."""
    path = find_log(
        Cluster.attach(name).files, pod, namespace=namespace, container=container, previous=previous
    )
    for chunk in read_log(path, follow=follow and not previous):
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()


@app.command(context_settings=_PASS_THROUGH)
def kubectl(arguments: _Arguments = None, name: _Name = DEFAULT_NAME, kubeconfig: _Kubeconfig = None) -> None:
    """Run kubectl against the cluster. --name comes first: turnout dev kubectl --name N get pods."""
    _exec("kubectl", arguments, name, kubeconfig)


@app.command(context_settings=_PASS_THROUGH)
def helm(arguments: _Arguments = None, name: _Name = DEFAULT_NAME, kubeconfig: _Kubeconfig = None) -> None:
    """Run Helm against the cluster. --name comes first: turnout dev helm --name N list."""
    _exec("helm", arguments, name, kubeconfig)


def _exec(tool: str, arguments: list[str] | None, name: str, kubeconfig: Path | None) -> NoReturn:
    given = given_kubeconfig(kubeconfig)
    cluster: ClusterClient = Cluster.attach(name) if given is None else ExistingCluster.of(given, Progress())
    os.execve(cluster.binary(tool), [tool, *(arguments or [])], cluster.env())  # noqa: S606 - no shell is wanted


def _show(console: Console, cluster: Cluster, state: ClusterState) -> None:
    console.print(f"[bold]{cluster.name}[/bold]  {cluster.config.server}  {cluster.config.addresses.subnet}")
    console.print(f"KUBECONFIG={cluster.kubeconfig}", soft_wrap=True)
    components = _table("component", "pid", "uptime", "rss", "cpu", "restarts", "last exit")
    for part in state.components:
        running = part.pid is not None
        components.add_row(
            part.name,
            str(part.pid) if running else "[red]down[/red]",
            _duration(part.uptime_seconds) if running else "",
            f"{part.rss_bytes / (1 << 20):.0f} MiB" if running else "",
            f"{part.cpu_seconds:.1f} s" if running else "",
            str(part.restarts),
            part.last_exit or "",
        )
    console.print(components)
    if state.nodes is None or state.pods is None:
        console.print("[red]The API server does not answer.[/red]")
        return
    nodes = _table("node", "ready", "address", "accelerators")
    for node in state.nodes:
        nodes.add_row(node.name, "yes" if node.ready else "[red]no[/red]", node.address, node.accelerators)
    console.print(nodes)
    pods = _table("namespace", "pod", "phase", "ready", "address", "node")
    for pod in state.pods:
        pods.add_row(pod.namespace, pod.name, pod.phase, pod.ready, pod.address, pod.node)
    console.print(pods)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
