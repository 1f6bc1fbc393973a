"""Who may read what on the admin port: health and metrics are open, requests and workers are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.router_mock_backend import mock_worker
from support.router_running import Running, config, running_router
from turnout_router.admin_access import OPEN_PATHS, AdminAccess
from turnout_router.errors import ConfigError
from turnout_router.settings import PeerSettings

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "a-token-of-enough-bytes"
GUARDED = (
    *("/admin/fleet", "/admin/peers", "/admin/decisions", "/admin/decisions?limit=x", "/admin/decisions/r1"),
    *("/admin/", "/admin/new", "/%61dmin/fleet", "/", "//metrics", "/metrics/", "/docs"),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return tmp_path / "token"


def denied(access: AdminAccess, peer: str | None, *authorization: str, host: str | None = "x") -> int | None:
    answer = access.denied("/admin/fleet", peer, authorization, host)
    return None if answer is None else answer.status


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ((), 401),
        ((f"Bearer {TOKEN}",), None),
        ((f"bearer  {TOKEN} ",), None),
        ((TOKEN,), 401),
        (("Bearer",), 401),
        (("Bearer ",), 401),
        ((f"Bearer {TOKEN}x",), 401),
        ((f"Bearer {TOKEN[:-1]}",), 401),
        ((f"Basic {TOKEN}",), 401),
        ((f"Bearer {TOKEN}", f"Bearer {TOKEN}"), 401),
        (("Bearer \udcff",), 401),
    ],
)
@pytest.mark.parametrize("peer", ["127.0.0.1", "10.0.0.7"])
def test_a_token_is_asked_for_wherever_one_comes_from(
    file: Path, peer: str, authorization: tuple[str, ...], status: int | None
) -> None:
    """Loopback is no excuse where there is a token: every process of the pod's node may come from there."""
    assert denied(AdminAccess(file), peer, *authorization) == status


@pytest.mark.parametrize(
    ("peer", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:9090", None),
        ("127.8.9.1", "127.8.9.1:9090", None),
        ("::1", "[::1]:9090", None),
        ("::ffff:127.0.0.1", "localhost:9090", None),
        ("127.0.0.1", None, None),
        ("127.0.0.1", "localhost", None),
        ("127.0.0.1", "rebound.example:9090", 403),
        ("127.0.0.1", "localhost.rebound.example", 403),
        ("127.0.0.1", "[::1", 403),
        ("127.0.0.1", "", 403),
        ("10.0.0.7", "10.0.0.7:9090", 403),
        ("192.168.1.1", "127.0.0.1", 403),
        ("169.254.1.1", "127.0.0.1", 403),
        ("::ffff:10.0.0.7", "127.0.0.1", 403),
        ("fd00::1", "127.0.0.1", 403),
        ("8.8.8.8", "127.0.0.1", 403),
        ("", "127.0.0.1", 403),
        (None, "127.0.0.1", 403),
    ],
)
def test_without_a_token_only_loopback_may_read(
    peer: str | None, host: str | None, status: int | None
) -> None:
    """A pod's private address is not enough, and neither is a web page that has its name lead to loopback."""
    assert denied(AdminAccess(None), peer, f"Bearer {TOKEN}", host=host) == status


def test_a_token_may_have_any_bytes(tmp_path: Path) -> None:
    """A field's value is read as latin-1, which keeps them as they were sent."""
    token = "schlüssel-aus-münchen".encode()
    (tmp_path / "token").write_bytes(token)
    assert denied(AdminAccess(tmp_path / "token"), None, f"Bearer {token.decode('latin-1')}") is None


def test_health_and_metrics_are_open(file: Path) -> None:
    """To probes and to Prometheus, with and without a token."""
    for access in (AdminAccess(file), AdminAccess(None)):
        assert [access.denied(path, "10.0.0.7", (), "x") for path in OPEN_PATHS] == [None, None, None]


def test_a_changed_token_is_taken_over_and_a_broken_one_is_not(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a Secret changes under a pod: by a rename. What is no token leaves the last one in force, and says so."""

    def write(text: str) -> None:
        file.with_name("next").write_text(text)
        file.with_name("next").rename(file)

    access = AdminAccess(file)
    write("another-token-of-enough-bytes")
    assert denied(access, None, f"Bearer {TOKEN}") == 401
    assert denied(access, None, "Bearer another-token-of-enough-bytes") is None
    for broken in ("", "short"):
        write(broken)
        assert denied(access, None, f"Bearer {broken}") == 401
        assert denied(access, None, "Bearer another-token-of-enough-bytes") is None
    file.unlink()
    assert denied(access, None, "Bearer another-token-of-enough-bytes") is None
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 3


@pytest.mark.parametrize("text", ["", " \n", "short", "x" * 4097, None])
def test_a_file_without_a_token_is_refused_at_the_start(tmp_path: Path, text: str | None) -> None:
    """The sentence says what it must have, or why it cannot be read."""
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"must have 16 to 4096 bytes|cannot be read"):
        AdminAccess(file)


async def statuses(r: Running, headers: dict[str, str]) -> set[int]:
    return {(await r.admin.get(path, headers=headers)).status_code for path in GUARDED}


async def test_the_admin_port_shows_nothing_without_the_token(file: Path, tmp_path: Path) -> None:
    """No spelling of a path, no method and no forwarding field gets around it; probes and Prometheus need none."""
    async with mock_worker() as worker:
        fleet = config([("aggregated", worker.url)])
        async with running_router(tmp_path, fleet, admin_token_file=file) as r:
            assert await statuses(r, {}) == {401}
            assert await statuses(r, {"x-forwarded-for": "127.0.0.1"}) == {401}
            refused = await r.admin.get("/admin/fleet")
            assert refused.headers["www-authenticate"] == "Bearer"
            assert "--admin-token-file" in refused.text
            assert worker.id not in refused.text
            assert (await r.admin.request("POST", "/admin/fleet")).status_code == 401
            assert (await r.admin.head("/admin/fleet")).status_code == 401
            for path in OPEN_PATHS:
                assert (await r.admin.get(path)).status_code == 200
            shown = await r.admin.get("/admin/fleet", headers={"authorization": f"Bearer {TOKEN}"})
            assert worker.id in shown.text


async def test_who_asks_is_who_is_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token loopback may read, and no field or variable changes where a peer comes from."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    async with mock_worker() as worker, running_router(tmp_path, config([("aggregated", worker.url)])) as r:
        for headers in ({}, {"x-forwarded-for": "8.8.8.8"}):
            assert (await r.admin.get("/admin/fleet", headers=headers)).status_code == 200
        rebound = await r.admin.get("/admin/fleet", headers={"host": "rebound.example"})
        assert rebound.status_code == 403
        assert "port-forward" in rebound.text


async def test_routers_without_a_secret_say_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every peer is accepted then: the log says it, and is silent where there is a secret."""
    (tmp_path / "secret").write_text("only routers know")
    async with mock_worker() as worker:
        fleet = config([("aggregated", worker.url)])
        for secret, warnings in ((tmp_path / "secret", 0), (None, 1)):
            caplog.clear()
            async with running_router(tmp_path, fleet, peers=PeerSettings(port=0, secret_file=secret)):
                payload = [r for r in caplog.records if "--peers-secret-file" in r.getMessage()]
                assert len(payload) == warnings
