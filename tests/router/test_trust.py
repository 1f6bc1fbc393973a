"""What any process that reaches a port can do: the claims of docs/security.md that no other test makes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import httpx
import pytest

from support.router_mock_backend import mock_worker
from support.router_peers import connect, hears, routers
from support.router_running import DEPLOYMENT, LONG, config
from support.worker_process import running_worker
from turnout_router.fleet.peers.handshake import PeerIdentity, open_handshake
from turnout_router.fleet.peers.messages import PeerError, Sent, framed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("guarded", [False, True], ids=["without a secret", "with a secret"])
async def test_a_stranger_at_the_peers_port_turns_requests_away_from_a_worker(
    tmp_path: Path, *, guarded: bool
) -> None:
    """Without a secret it makes an idle worker look busy, and that is all; with one it is refused."""
    (tmp_path / "secret").write_text("only routers know")
    async with mock_worker() as idle, mock_worker() as other:
        fleet = config([("aggregated", idle.url), ("aggregated", other.url)])
        secret = tmp_path / "secret" if guarded else None
        async with routers(tmp_path, fleet, (secret,)) as (r,):
            reader, writer = await connect(r.router.peers_port)
            try:
                if guarded:
                    with pytest.raises(PeerError, match="wrong secret"):
                        await open_handshake(PeerIdentity(b"a guess"), reader, writer, lambda _: None)
                else:
                    await open_handshake(PeerIdentity(), reader, writer, lambda _: None)
                    lie = Sent(1, DEPLOYMENT, idle.id, 1_000_000, (), 100_000, 0, 900.0)
                    writer.write(framed([lie]))
                    await hears(r, 1)
                answers = [await r.chat(f"{LONG}{number}") for number in range(6)]
            finally:
                writer.close()
            assert [answer.status_code for answer in answers] == [200] * 6, "no request fails by it"
            assert bool(idle.received) is guarded
            await hears(r, 0)


async def test_with_queueing_a_stranger_at_the_peers_port_holds_everything_back(tmp_path: Path) -> None:
    """Where requests wait for a worker that could begin, lies about all workers make them wait in vain, while it lies."""
    async with mock_worker() as one, mock_worker() as other:
        workers = [("aggregated", one.url), ("aggregated", other.url)]
        fleet = config(workers, queueing="Router", admission={"maxWait": "500ms"})
        async with routers(tmp_path, fleet, (None,)) as (r,):
            reader, writer = await connect(r.router.peers_port)
            try:
                await open_handshake(PeerIdentity(), reader, writer, lambda _: None)
                lies = [
                    Sent(number, DEPLOYMENT, worker.id, 1_000_000, (), 100_000, 0, 900.0)
                    for number, worker in enumerate((one, other))
                ]
                writer.write(framed(lies))
                await hears(r, 2)
                held = await r.chat(LONG)
            finally:
                writer.close()
            await hears(r, 0)
            assert (held.status_code, (await r.chat(LONG)).status_code) == (503, 200)


async def test_who_reaches_the_side_channel_can_take_a_cache_away() -> None:
    """The decode worker then finds nothing: reaching workers' ports is for workers and routers alone."""
    with running_worker(role="prefill", time_scale=100) as prefill:
        asks = {"do_remote_decode": True, "do_remote_prefill": False}
        body = {"model": prefill.name, "prompt": LONG, "max_tokens": 1, "kv_transfer_params": asks}
        async with httpx.AsyncClient(base_url=prefill.url, timeout=20) as client:
            handed = (await client.post("/v1/completions", json=body)).json()["kv_transfer_params"]
        reader, writer = await asyncio.open_connection(prefill.host, prefill.side_channel_port)
        held = []
        for _ in range(2):
            writer.write(json.dumps({"fetch": handed["remote_request_id"]}).encode() + b"\n")
        for _ in range(3):
            line = json.loads(await asyncio.wait_for(reader.readline(), 10))
            held += [line["held"]] if "held" in line else []
        writer.close()
    assert held == [True, False]
