"""How the router finds the API server and logs in: kubeconfigs, tokens that rotate, programs, nonsense."""

from __future__ import annotations

import json
import ssl
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from turnout_kube.follow import Unavailable
from turnout_router.errors import ConfigError
from turnout_router.fleet import kube
from turnout_router.fleet.kube import load_access

if TYPE_CHECKING:
    from pathlib import Path

SERVER = "https://127.0.0.1:6443"
TOKEN = {"token": "secret"}


def kubeconfig(folder: Path, user: dict[str, Any], **cluster: Any) -> dict[str, str]:
    """Write a kubeconfig and return the environment that names it."""
    path = folder / "config"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": SERVER, **cluster}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config))
    return {"KUBECONFIG": str(path)}


def program(folder: Path, script: str) -> dict[str, Any]:
    """Return a user who logs in through a program that runs *script*, with the file `runs` to count in."""
    path = folder / "program.py"
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "N"},
    }
    path.write_text(
        f"#!{sys.executable}\nimport pathlib, sys, time\np = pathlib.Path({str(folder / 'runs')!r})\n"
        "n = int(p.read_text()) + 1 if p.exists() else 1\np.write_text(str(n))\n"
        f"{script}\nprint({json.dumps(answer)!r}.replace('\"N\"', f'\"token-{{n}}\"'))\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path)}}


async def test_a_token_is_sent(tmp_path: Path) -> None:
    """And the server is asked with the system's own authorities, unless the kubeconfig says otherwise."""
    access = load_access(kubeconfig(tmp_path, TOKEN))
    assert access.server == SERVER
    assert access.tls is not None
    assert access.tls.verify_mode == ssl.CERT_REQUIRED
    assert await access.headers() == {"authorization": "Bearer secret"}
    trusting = load_access(kubeconfig(tmp_path, TOKEN, **{"insecure-skip-tls-verify": True}))
    assert trusting.tls is not None
    assert trusting.tls.verify_mode == ssl.CERT_NONE


async def test_a_token_file_is_read_each_time(tmp_path: Path) -> None:
    """A kubelet replaces the token in its file; the next request sends the new one."""
    token = tmp_path / "token"
    token.write_text("first")
    access = load_access(kubeconfig(tmp_path, {"tokenFile": "token"}))
    for text in ("first", "second"):
        token.write_text(text)
        assert await access.headers() == {"authorization": f"Bearer {text}"}


async def test_a_program_hands_out_tokens(tmp_path: Path) -> None:
    """As cloud providers' kubeconfigs have it."""
    access = load_access(kubeconfig(tmp_path, program(tmp_path, "")))
    first, second = [await access.headers() for _ in range(2)]
    assert first["authorization"].startswith("Bearer token-")
    assert second != first


async def test_a_program_that_hangs_holds_no_one_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the event loop nor the end of the process waits for it; and no second one is started beside it."""
    go = tmp_path / "go"
    go.touch()
    script = f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.02)"
    access = load_access(kubeconfig(tmp_path, program(tmp_path, script)))
    monkeypatch.setattr(kube, "_LOGIN_SECONDS", 0.5)
    before = int((tmp_path / "runs").read_text())
    go.unlink()
    for _ in range(2):
        with pytest.raises(Unavailable):
            await access.headers()
    assert int((tmp_path / "runs").read_text()) == before + 1
    go.touch()
    monkeypatch.setattr(kube, "_LOGIN_SECONDS", 10.0)
    assert "authorization" in await access.headers()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cannot be used"),
        ("{", "cannot be used"),
        ("[]", "cannot be used"),
        ("clusters: []", "cannot be used"),
        ("current-context: gone\nclusters: []\nusers: []\ncontexts: []\n", "gone"),
    ],
)
def test_a_broken_kubeconfig_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    """The message says which file, and what is wrong with it."""
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_access({"KUBECONFIG": str(path)})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("user", "cluster", "expected"),
    [
        ({}, {}, "no credentials"),
        (TOKEN, {"tls-server-name": "other"}, "tls-server-name"),
        ({"tokenFile": "/nowhere/token"}, {}, "cannot be used"),
        ({"client-certificate": "/nowhere/crt", "client-key": "/nowhere/key"}, {}, "cannot be used"),
        (TOKEN, {"certificate-authority-data": "bm9uZQ=="}, "certificates"),
    ],
)
def test_a_kubeconfig_that_cannot_work_is_refused(
    tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any], expected: str
) -> None:
    """At the start, not by a 403 later on."""
    with pytest.raises(ConfigError, match=expected):
        load_access(kubeconfig(tmp_path, user, **cluster))


def test_without_any_access_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is guessed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="set KUBECONFIG"):
        load_access({})
    with pytest.raises(ConfigError, match="cannot be used"):
        load_access({"KUBECONFIG": str(tmp_path / "gone")})


def test_a_router_in_a_pod_does_without_the_library() -> None:
    """It is imported for kubeconfigs only: a service account needs none of its 8 MB."""
    script = "import sys, turnout_router.main; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
