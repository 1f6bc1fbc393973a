"""What one client holds leaves room for the others: bodies, connections, and nothing at all without a key."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.router_hostile_inputs import MODELS
from support.router_mock_backend import mock_worker
from support.router_running import chat, config, eventually, running_router
from turnout_router.http1.accounts import Account, Accounts, Crowd, client_at
from turnout_router.settings import ClientLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.router_running import Running

KIB = 1024
LIMITS = ClientLimits(body_bytes=256 * KIB, bodies_bytes=4096 * KIB, small_body_bytes=16 * KIB)
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def budgets(*names: str) -> list[dict[str, Any]]:
    return [
        {
            "name": f"default/{name}",
            "keys": [{"name": "k", "sha256": hashlib.sha256(name.encode()).hexdigest()}],
        }
        for name in names
    ]


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


def large(key: str | None, size: int) -> bytes:
    """Return a request with a body of *size* bytes, all but its last one."""
    payload = b"" if key is None else b"authorization: Bearer %b\r\n" % key.encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n" % (payload, size)
    return head + b" " * (size - 1)


@asynccontextmanager
async def sending(
    port: int, number: int, data: bytes, address: str = "127.0.0.1"
) -> AsyncIterator[list[Connection]]:
    """Have *number* connections from *address* send *data*, and keep them."""
    held = [await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)) for _ in range(number)]
    for _, writer in held:
        writer.write(data)
    try:
        yield held
    finally:
        for _, writer in held:
            writer.transport.abort()


async def status_of(connection: Connection) -> int:
    """Return the status of the next answer."""
    head = await asyncio.wait_for(connection[0].readuntil(b"\r\n\r\n"), 10)
    return int(head.split(b" ")[1])


async def statuses(r: Running, number: int, key: str, size: int) -> Counter[int]:
    asked = [
        r.client.post("/v1/chat/completions", json=chat("x" * size), headers=bearer(key))
        for _ in range(number)
    ]
    return Counter([answer.status_code for answer in await asyncio.gather(*asked)])


async def test_who_has_no_key_holds_nothing(tmp_path: Path) -> None:
    """Refused at the head: 32 bodies without a key, all but their ends, take no room from those who have one."""
    async with mock_worker() as worker:
        fleet = config([("aggregated", worker.url)]) | {"budgets": budgets("good")}
        async with (
            running_router(tmp_path, fleet, auth="required", client=LIMITS) as r,
            sending(r.router.port, 32, large(None, 256 * KIB)) as others,
        ):
            assert {await status_of(one) for one in others} == {401}
            assert r.router._listener.held_bytes == 0
            assert await statuses(r, 40, "good", 100) == {200: 40}
            assert await statuses(r, 8, "good", 200 * KIB) == {200: 8}
            assert await statuses(r, 2, "bad", 200 * KIB) == {401: 2}
        assert len(worker.received) == 48


async def test_one_tenant_leaves_room_for_another(tmp_path: Path) -> None:
    """Who holds most gets no more: its own requests are refused, never the ones of a tenant that comes new."""
    async with mock_worker() as worker:
        fleet = config([("aggregated", worker.url)]) | {"budgets": budgets("greedy", "good")}
        async with (
            running_router(tmp_path, fleet, auth="required", client=LIMITS) as r,
            sending(r.router.port, 32, large("greedy", 256 * KIB)) as greedy,
        ):
            listener = r.router._listener
            await eventually(lambda: listener.held_bytes > 2048 * KIB)
            for _ in range(5):
                assert await statuses(r, 20, "good", 100) == {200: 20}
                assert await statuses(r, 3, "good", 150 * KIB) == {200: 3}
            # Room among the small ones is there even for who has taken all that it may of the rest.
            assert await statuses(r, 20, "greedy", 100) == {200: 20}
            assert await statuses(r, 1, "greedy", 255 * KIB) == {503: 1}
            refused = [one for one in greedy if one[0]._buffer]  # type: ignore[attr-defined]
            assert refused
            assert {await status_of(one) for one in refused} == {503}
        assert listener.held_bytes == 0
        assert len(listener.accounts) == 0


async def test_without_keys_addresses_share_the_room(tmp_path: Path) -> None:
    """What comes from one address leaves room for what comes from another."""
    async with (
        mock_worker() as worker,
        running_router(tmp_path, config([("aggregated", worker.url)]), client=LIMITS) as r,
        sending(r.router.port, 32, large(None, 256 * KIB), "127.0.0.2"),
    ):
        await eventually(lambda: r.router._listener.held_bytes > 2048 * KIB)
        for _ in range(5):
            assert await statuses(r, 20, "any", 100) == {200: 20}
            assert await statuses(r, 3, "any", 150 * KIB) == {200: 3}


async def test_a_body_that_has_no_room_is_refused_at_its_head(tmp_path: Path) -> None:
    """Before it is sent, where it says how long it will be; one that waits for leave is not given it."""
    waiting = large("greedy", 256 * KIB).replace(b"host: x", b"host: x\r\nexpect: 100-continue").strip()
    fleet = config([]) | {"budgets": budgets("greedy")}
    async with (
        running_router(tmp_path, fleet, auth="required", client=LIMITS) as r,
        sending(r.router.port, 32, large("greedy", 256 * KIB)),
    ):
        await eventually(lambda: r.router._listener.held_bytes > 2048 * KIB)
        async with sending(r.router.port, 1, waiting + b"\r\n\r\n") as (late,):
            assert await status_of(late) == 503


async def test_who_only_sits_there_keeps_no_one_out(tmp_path: Path) -> None:
    """At the bound on connections the longest idle one of the client that has most makes way, whatever it has begun to say."""
    limits = ClientLimits(connections=20, head_seconds=60)
    async with (
        running_router(tmp_path, config([]), client=limits) as r,
        sending(r.router.port, 12, b""),
        sending(r.router.port, 12, b"GET /v1/models HTTP/1.1\r\nhost", "127.0.0.2"),
    ):
        listener = r.router._listener
        for _ in range(30):
            async with sending(r.router.port, 1, MODELS, "127.0.0.3") as (honest,):
                assert await status_of(honest) == 200
        assert len(listener) <= 20


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n",
        b"POST /v1/none HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n",
        b"POST /v1/none HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n",
        b"no HTTP\r\n\r\n",
    ],
    ids=["half of a body", "refused and lingering", "refused, its body to come", "no HTTP"],
)
async def test_who_keeps_a_connection_busy_with_nothing_keeps_no_one_out(tmp_path: Path, sent: bytes) -> None:
    """What has been refused is as good as idle; arriving bodies of who has most connections make way for who has fewer."""
    limits = ClientLimits(connections=20, body_seconds=60, body_grace_seconds=60)
    async with (
        running_router(tmp_path, config([]), client=limits) as r,
        sending(r.router.port, 24, sent, "127.0.0.2"),
    ):
        for _ in range(30):
            async with sending(r.router.port, 1, MODELS, "127.0.0.3") as (honest,):
                assert await status_of(honest) == 200


async def test_where_all_are_busy_a_connection_more_is_refused(tmp_path: Path) -> None:
    """No request is given up for a new connection; that gets 503."""
    async with (
        mock_worker(behavior="gated") as worker,
        running_router(
            tmp_path, config([("aggregated", worker.url)]), client=ClientLimits(connections=3)
        ) as r,
    ):
        asking = [asyncio.create_task(r.chat()) for _ in range(3)]
        await eventually(lambda: len(worker.received) == 3)
        async with sending(r.router.port, 1, b"", "127.0.0.2") as (more,):
            assert await status_of(more) == 503
        worker.gate.set()
        assert {(await one).status_code for one in asking} == {200}


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.integers(0, 300), st.booleans(), st.booleans()), max_size=200
    )
)
def test_bodies_never_take_more_than_the_room(steps: list[tuple[str, int, bool, bool]]) -> None:
    """In whatever order clients take and give back: the sum keeps its bound, a client its share, and all of it can be given back."""
    accounts = Accounts(2000, 100)
    held: list[tuple[Any, int, bool]] = []
    for name, size, is_large, give_back in steps:
        if give_back and held:
            account, taken, was_large = held.pop()
            accounts.release(account, taken, large=was_large)
            accounts.leave(account)
            continue
        account = accounts.join(name)
        if accounts.take(account, size, large=is_large):
            held.append((account, size, is_large))
        else:
            accounts.leave(account)
        assert 0 <= accounts.held_bytes <= 2000
    for account, taken, was_large in held:
        accounts.release(account, taken, large=was_large)
        accounts.leave(account)
    assert (accounts.held_bytes, len(accounts)) == (0, 0)


class Body:
    """A large body that arrives in pieces of 100 bytes until it is refused."""

    def __init__(self, accounts: Accounts, account: Account) -> None:
        self.accounts = accounts
        self.account = account
        self.held = 0
        accounts.begin(account, self)

    def grow(self, to: int) -> int:
        while self.held < to and self.accounts.take(self.account, 100, large=True):
            self.held += 100
        return self.held

    def end(self) -> None:
        self.accounts.end(self.account, self)

    def make_way(self) -> None:
        self.accounts.release(self.account, self.held, large=True)
        self.held = 0


@pytest.mark.parametrize("clients", [1, 2, 10, 30])
def test_one_that_comes_new_gets_an_equal_part(clients: int) -> None:
    """However many have taken all that they could, in bodies that are still arriving."""
    accounts = Accounts(1_000_000, 0)
    for number in range(clients):
        account = accounts.join(f"c{number}")
        for _ in range(200):
            Body(accounts, account).grow(10_000)
    part = 1_000_000 // (clients + 1)
    new = accounts.join("new")
    assert sum(Body(accounts, new).grow(10_000) for _ in range(200)) > 0.6 * part
    assert accounts.held_bytes <= 1_000_000


def test_what_has_come_to_its_end_does_not_make_way() -> None:
    """A request under way is not given up; who holds a lot of them leaves a quarter of the room to others."""
    accounts = Accounts(1_000_000, 0)
    greedy = accounts.join("greedy")
    bodies = [Body(accounts, greedy) for _ in range(200)]
    for body in bodies:
        body.grow(10_000)
        body.end()
    assert sum(body.held for body in bodies) == greedy.large > 740_000
    assert Body(accounts, accounts.join("new")).grow(10**6) > 180_000
    assert greedy.large > 740_000


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans()), max_size=100))
def test_the_largest_of_a_crowd_is_found(steps: list[tuple[str, int, bool]]) -> None:
    """Against counting all of them; oldest first."""
    crowd: Crowd[tuple[str, int]] = Crowd()
    groups: dict[str, list[tuple[str, int]]] = {"a": [], "b": [], "c": []}
    for name, number, leaves in steps:
        member = name, number
        if leaves:
            crowd.remove(name, member)
            if member in groups[name]:
                groups[name].remove(member)
        elif member not in groups[name]:
            crowd.add(name, member)
            groups[name].append(member)
        largest, oldest = crowd.of_largest(3)
        most = max(map(len, groups.values()))
        assert len(crowd) == sum(map(len, groups.values()))
        if most:
            assert len(groups[largest]) == most == crowd.size(largest)
            assert oldest == groups[largest][:3]
        else:
            assert oldest == []


@pytest.mark.parametrize(
    ("peername", "client"),
    [
        (("127.0.0.1", 5), "127.0.0.1"),
        (("::ffff:10.0.0.1", 5, 0, 0), "10.0.0.1"),
        (("2001:db8::1", 5, 0, 0), "2001:db8::/64"),
        (("2001:db8::ffff:1", 5, 0, 0), "2001:db8::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        ("", ""),
        (None, ""),
    ],
)
def test_who_a_client_is(peername: object, client: str) -> None:
    """Its address; one network of IPv6 is one client, for a host there has as many addresses as it likes."""
    assert client_at(peername) == client
