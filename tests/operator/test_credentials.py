"""How the operator finds the API server and logs in: kubeconfigs, tokens that rotate, exec plugins, nonsense."""

from __future__ import annotations

import json
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from turnout_operator.errors import ConfigurationError
from turnout_operator.kube import credentials
from turnout_operator.kube.credentials import Credentials

if TYPE_CHECKING:
    from pathlib import Path

SERVER = "https://127.0.0.1:6443"


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


def plugin(folder: Path, script: str) -> dict[str, Any]:
    """Return a user who logs in through an exec plugin that runs *script*."""
    path = folder / "plugin.py"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path)}}


async def test_a_token_file_is_read_each_time(tmp_path: Path) -> None:
    """A kubelet replaces the token in its file; the next call returns the new one."""
    token = tmp_path / "token"
    environment = kubeconfig(tmp_path, {"tokenFile": str(token)})
    for text in ("first", "second"):
        token.write_text(text)
        assert (await Credentials(environment).configuration()).api_key == {"BearerToken": f"Bearer {text}"}


def counting(folder: Path, first: str = "") -> str:
    """Return a plugin's script that does *first*, then hands out ``token-N`` at its Nth run; the file ``runs`` counts."""
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "TOKEN"},
    }
    return (
        f"import pathlib, time\np = pathlib.Path({str(folder / 'runs')!r})\n"
        "n = int(p.read_text()) + 1 if p.exists() else 1\np.write_text(str(n))\n"
        f"{first}\nprint({json.dumps(answer)!r}.replace('TOKEN', f'token-{{n}}'))\n"
    )


async def test_a_plugin_is_asked_each_time(tmp_path: Path) -> None:
    """An exec plugin's token is used, and a new one is fetched when the old one was refused."""
    environment = kubeconfig(tmp_path, plugin(tmp_path, counting(tmp_path)))
    for number in (1, 2):
        found = await Credentials(environment).configuration()
        assert found.api_key == {"BearerToken": f"Bearer token-{number}"}


async def test_the_watches_log_in_likewise(tmp_path: Path) -> None:
    """What kopf is given is the same server and the same token."""
    environment = kubeconfig(tmp_path, {"token": "secret"}, **{"insecure-skip-tls-verify": True})
    found = await Credentials(environment).connection()
    assert (found.server, found.scheme, found.token, found.insecure) == (SERVER, "Bearer", "secret", True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cannot be used"),
        ("{", "cannot be used"),
        ("[]", "cannot be used"),
        ("current-context: gone\nclusters: []\nusers: []\ncontexts: []\n", "gone"),
    ],
    ids=["empty", "no YAML", "a list", "no such context"],
)
async def test_a_broken_kubeconfig_is_named(tmp_path: Path, text: str, expected: str) -> None:
    """The message says which file, what is wrong with it, and what to do."""
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=expected) as caught:
        await Credentials({"KUBECONFIG": str(path)}).configuration()
    assert str(path) in str(caught.value)
    assert "set KUBECONFIG" in str(caught.value)


async def test_a_missing_kubeconfig_is_named(tmp_path: Path) -> None:
    """Nothing is guessed where the file that was named is not there."""
    with pytest.raises(ConfigurationError, match="there is no file"):
        await Credentials({"KUBECONFIG": str(tmp_path / "gone")}).configuration()


@pytest.mark.parametrize(
    ("user", "cluster", "expected"),
    [
        ({}, {}, "no credentials"),
        ({"token": "t"}, {"tls-server-name": "other"}, "tls-server-name"),
        ({"tokenFile": "/nowhere/token"}, {}, "cannot be used"),
        ({"client-certificate": "/nowhere/crt"}, {}, "cannot be used"),
    ],
    ids=["no credentials", "another name", "no token file", "no certificate"],
)
async def test_a_kubeconfig_that_cannot_work_is_refused(
    tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any], expected: str
) -> None:
    """It is refused at the start, not by a 403 later on."""
    with pytest.raises(ConfigurationError, match=expected):
        await Credentials(kubeconfig(tmp_path, user, **cluster)).configuration()


async def test_a_plugin_that_fails_is_reported(tmp_path: Path) -> None:
    """No token, no guess: the message names the file."""
    with pytest.raises(ConfigurationError, match="no credentials"):
        await Credentials(
            kubeconfig(tmp_path, plugin(tmp_path, "raise SystemExit('not today')"))
        ).configuration()


async def test_a_plugin_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging in has a deadline; no second plugin is started beside one that hangs; when it answers, all is well."""
    monkeypatch.setattr(credentials, "LOAD_SECONDS", 1.0)
    go = tmp_path / "go"
    script = counting(tmp_path, f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.02)")
    asked = Credentials(kubeconfig(tmp_path, plugin(tmp_path, script)))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="hang"):
            await asked.configuration()
    go.touch()
    assert (await asked.configuration()).api_key == {"BearerToken": "Bearer token-1"}
    assert (tmp_path / "runs").read_text() == "1"
