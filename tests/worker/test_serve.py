"""`turnout-worker serve`: a real engine's process from its start to its end, and each way in which it can fail."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.serve_process import HOST, SECONDS, alive, scripted, serve_command, serving, simulated
from support.worker_process import NAME, free_port
from turnout_worker.supervise.guard import _left

LOGS = Path(__file__).parent / "engine_logs"


def test_a_simulated_engine_is_served_and_ended(tmp_path: Path) -> None:
    """From the first phase to the last: ready only after a completion, 404 for what is not there, status 0 for SIGTERM."""
    with serving(tmp_path, simulated, served_name=NAME) as worker:
        worker.until_ready()
        assert (worker.check("/startup"), worker.check("/live"), worker.check("/else")) == (200, 200, 404)
        state = worker.status()
        assert state["phase"] == "Serving"
        assert state["model"] == {"path": str(tmp_path / "model"), "architectures": ["LlamaForCausalLM"]}
        assert state["accelerators"] == []
        assert alive(state["engine"]["pid"])
        page = httpx.get(f"{worker.engine_url}/metrics").text
        assert 'vllm:generation_tokens_total{model_name="llama",engine="0"} 1' in page.replace(".0\n", "\n")
        url = f"http://{HOST}:{worker.status_port}"
        assert httpx.head(f"{url}/status").status_code == 200
        assert httpx.head(f"{url}/status").content == b""
        assert httpx.post(f"{url}/status").status_code == 405
        worker.process.terminate()
        assert worker.wait() == 0
        assert not alive(state["engine"]["pid"])
        assert not (tmp_path / "termination").exists()


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_worker_of_a_pair_warms_up_by_itself(tmp_path: Path, role: str) -> None:
    """A prefill worker's own completion keeps no blocks for a decode worker that never comes."""
    flags = {"role": role, "served_name": NAME, "side_channel_port": free_port(HOST)}
    with serving(tmp_path, simulated, flags={"role": role}, **flags) as worker:
        worker.until_ready()
        page = httpx.get(f"{worker.engine_url}/metrics").text
        usage = next(line for line in page.splitlines() if line.startswith("vllm:kv_cache_usage_perc{"))
        assert float(usage.rpartition(" ")[2]) == 0


def test_the_completion_asks_for_one_token_of_the_first_name(tmp_path: Path) -> None:
    """And, for a prefill worker, with parameters that leave the request to it alone."""
    with serving(tmp_path, flags={"role": "prefill"}) as worker:
        worker.until_ready()
        body = worker.environment()["body"]
    assert (body["model"], body["max_tokens"]) == ("first", 1)
    assert body["kv_transfer_params"] == {"do_remote_decode": False, "do_remote_prefill": False}


def test_an_engine_that_is_never_healthy_is_given_up(tmp_path: Path) -> None:
    """After --startup-timeout the engine is ended and the worker says so; it was never ready, but alive."""
    with serving(tmp_path, health=503, repeat=["loading\n", 1], flags={"startup_timeout": 3}) as worker:
        worker.until_phase("Starting")
        pid = worker.status()["engine"]["pid"]
        assert (worker.check("/ready"), worker.check("/startup"), worker.check("/live")) == (503, 503, 200)
        assert worker.wait() == 1
        assert not alive(pid)
        assert worker.last_words == (
            "Startup: the engine was not healthy after 3 s (--startup-timeout): /health answered 503; its last line: loading"
        )


def test_an_engine_that_opens_no_port_is_given_up(tmp_path: Path) -> None:
    """Likewise where nothing answers."""
    with serving(tmp_path, listen=False, flags={"startup_timeout": 1}) as worker:
        assert worker.wait() == 1
        assert "not healthy after 1 s (--startup-timeout): no answer to GET /health" in worker.last_words


@pytest.mark.parametrize(
    ("orders", "said"),
    [
        ({"completion": 500}, "/v1/completions answered 500"),
        ({"completion": 400}, "/v1/completions answered 400"),
        ({"finish_reason": "abort"}, "/v1/completions answered without a completion"),
        ({"key": "s3cret"}, "/v1/models answered 401 (--api-key-file)"),
    ],
)
def test_an_engine_without_a_completion_is_not_ready(
    tmp_path: Path, orders: dict[str, Any], said: str
) -> None:
    """An engine whose /health answers, but that computes nothing, never becomes ready: the worker gives up."""
    with serving(tmp_path, **orders) as worker:
        ready = []
        while worker.process.poll() is None:
            ready.append(worker.check("/ready"))
        assert worker.wait() == 1
        assert set(ready) <= {0, 503}
        assert worker.last_words.startswith(
            f"Startup: the engine is healthy, but its first completion failed: {said}"
        )


def test_an_engine_that_answers_no_completion_in_time_is_given_up(tmp_path: Path) -> None:
    """--warm-up-timeout bounds the first completion."""
    flags = {"warm_up_timeout": 1}
    with serving(tmp_path, simulated, time_scale=0.001, served_name=NAME, flags=flags) as worker:
        assert worker.wait() == 1
        assert "first completion failed: no answer" in worker.last_words


@pytest.mark.parametrize("name", sorted(path.stem for path in LOGS.iterdir()))
def test_a_crash_while_loading_says_why(tmp_path: Path, name: str) -> None:
    """What the engine printed is passed on as it is; the last line on stderr and the termination log name the cause."""
    with serving(tmp_path, say=str(LOGS / f"{name}.txt"), exit=3) as worker:
        assert worker.wait() == 3
        assert worker.out == (LOGS / f"{name}.txt").read_bytes()
        assert not worker.last_words.startswith(("Unknown", "Startup"))
        assert worker.log.splitlines()[-1] == f"turnout-worker: {worker.last_words}"


def test_a_crash_while_serving_ends_the_worker_with_its_status(tmp_path: Path) -> None:
    """The worker does not start the engine again: Kubernetes does, with its back-off."""
    with serving(tmp_path) as worker:
        worker.until_ready()
        worker.order("/die", say="torch.OutOfMemoryError: CUDA out of memory.", status=7)
        assert worker.wait() == 7
        assert worker.last_words.startswith("AcceleratorMemory: ")


def test_an_engine_that_is_killed_gives_128_and_the_signal(tmp_path: Path) -> None:
    """As shells and Kubernetes count."""
    with serving(tmp_path, grandchild=str(tmp_path / "grandchild")) as worker:
        worker.until_ready()
        grandchild = int((tmp_path / "grandchild").read_text())
        assert alive(grandchild)
        subprocess.run(["kill", "-9", str(worker.status()["engine"]["pid"])], check=True)
        assert worker.wait() == 137
        assert worker.last_words.startswith("Unknown: the engine was ended by SIGKILL")
        assert not alive(grandchild)


def test_an_engine_that_ends_by_itself_with_0_is_reported(tmp_path: Path) -> None:
    """It was not asked to."""
    with serving(tmp_path, exit=0) as worker:
        assert worker.wait() == 0
        assert worker.last_words == "Unknown: the engine ended with status 0, without a word"


def test_a_hanging_engine_is_not_ready_and_then_not_alive(tmp_path: Path) -> None:
    """/ready fails at once, /live after --stuck-timeout; SIGTERM then ends it, with a status that is not 0."""
    with serving(tmp_path, flags={"stuck_timeout": 20}) as worker:
        worker.until_ready()
        worker.order("/hang")
        worker.until(lambda: (worker.check("/ready"), worker.check("/live")) == (503, 200))
        worker.until(lambda: worker.status()["message"] == "no answer to GET /health within 5 s")
        worker.until(lambda: worker.check("/live") == 503)
        assert worker.check("/startup") == 200
        worker.process.terminate()
        assert worker.wait() not in {0, None}
        assert "the engine's /health has not answered well for" in worker.last_words


def test_sigterm_lets_a_stream_finish(tmp_path: Path) -> None:
    """The engine has --shutdown-timeout for what runs; meanwhile the worker is alive and not ready."""
    with serving(tmp_path, simulated, served_name=NAME, shutdown_timeout=30) as worker:
        worker.until_ready()
        body = {"model": NAME, "prompt": "x", "max_tokens": 150, "stream": True, "ignore_eos": True}
        received = b""
        with httpx.stream(
            "POST", f"{worker.engine_url}/v1/completions", json=body, timeout=SECONDS
        ) as answer:
            pieces = answer.iter_bytes()
            received += next(pieces)
            worker.process.terminate()
            worker.until_phase("Draining")
            assert (worker.check("/ready"), worker.check("/live")) == (503, 200)
            assert worker.status()["message"] == "the engine has 120 s to finish its requests"
            for piece in pieces:
                received += piece
        assert received.count(b'"finish_reason":"length"') == 1
        assert received.endswith(b"data: [DONE]\n\n")
        assert worker.wait() == 0


def test_an_engine_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """After --shutdown-timeout, with all that it has started."""
    flags = {"shutdown_timeout": 1}
    with serving(tmp_path, deaf=True, grandchild=str(tmp_path / "grandchild"), flags=flags) as worker:
        worker.until_ready()
        pid, grandchild = worker.status()["engine"]["pid"], int((tmp_path / "grandchild").read_text())
        worker.process.terminate()
        assert worker.wait() == 137
        assert worker.last_words == (
            "Unknown: the engine was killed: it had not ended 1 s after SIGTERM (--shutdown-timeout)"
        )
        assert not alive(pid)
        assert not alive(grandchild)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_hastens(tmp_path: Path, number: signal.Signals) -> None:
    """A client that signals twice does not wait for --shutdown-timeout."""
    with serving(tmp_path, deaf=True, flags={"shutdown_timeout": 10_000}) as worker:
        worker.until_ready()
        worker.process.send_signal(number)
        worker.until_phase("Draining")
        worker.process.send_signal(number)
        assert worker.wait() == 137
        assert "a second SIGTERM came before it had ended" in worker.last_words


def test_sigterm_while_the_engine_loads_ends_both(tmp_path: Path) -> None:
    """Nothing is served yet: status 0, no last words."""
    with serving(tmp_path, listen=False) as worker:
        worker.until_phase("Starting")
        worker.process.terminate()
        assert worker.wait() == 0
        assert not (tmp_path / "termination").exists()


@pytest.mark.parametrize("own_session", [False, True])
def test_a_killed_worker_takes_everything_with_it(tmp_path: Path, *, own_session: bool) -> None:
    """SIGKILL of the worker, outside a container: the engine and what it started are gone, in whatever session."""
    with serving(tmp_path, grandchild=str(tmp_path / "grandchild"), own_session=own_session) as worker:
        worker.until_ready()
        pid, grandchild = worker.status()["engine"]["pid"], int((tmp_path / "grandchild").read_text())
        assert alive(pid)
        assert alive(grandchild)
        worker.process.kill()
        worker.wait()
        worker.until(lambda: not alive(pid) and not alive(grandchild))


def test_a_guard_without_an_engine_finds_nothing_to_kill() -> None:
    """A worker that dies before its engine has started has no session to end: neither 0, which strangers have, nor 1."""
    assert [_left(session, b"TURNOUT_WORKER_ID=none") for session in (0, 1)] == [[], []]
    with subprocess.Popen(
        ["sleep", "600"], env={"TURNOUT_WORKER_ID": "mine"}, start_new_session=True
    ) as marked:
        try:
            assert _left(0, b"TURNOUT_WORKER_ID=mine") == [marked.pid]
            assert marked.pid in _left(marked.pid, b"TURNOUT_WORKER_ID=none")
        finally:
            marked.kill()


def test_what_the_engine_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    """Also a process that has left its session and outlives it by far."""
    with serving(tmp_path, grandchild=str(tmp_path / "grandchild"), own_session=True) as worker:
        worker.until_ready()
        grandchild = int((tmp_path / "grandchild").read_text())
        worker.process.terminate()
        assert worker.wait() == 0
        assert not alive(grandchild)


def test_the_progress_of_loading_is_shown(tmp_path: Path) -> None:
    """As vLLM's progress bar has it, which ends no line."""
    bar = "Loading safetensors checkpoint shards:  25% Completed | 1/4\rLoading safetensors checkpoint shards:  50% Completed | 2/4\r"
    with serving(tmp_path, health=503, repeat=[bar, 1]) as worker:
        worker.until(lambda: worker.status()["progress"] == 0.5)
        worker.process.terminate()
        assert worker.wait() == 0
        assert worker.out.decode() == bar.replace("\r", "\n")


@pytest.mark.parametrize("asked", [True, False])
def test_a_long_download_delays_no_end(tmp_path: Path, *, asked: bool) -> None:
    """SIGTERM, and --prepare-timeout, end the worker while the model is on its way."""
    with socket.create_server((HOST, 0)) as hub:  # takes connections, and answers none
        flags = {
            "model": "hf://acme/tiny",
            "endpoint": f"http://{HOST}:{hub.getsockname()[1]}",
            "cache": tmp_path / "cache",
        } | ({} if asked else {"prepare_timeout": 1})
        with serving(tmp_path, flags=flags) as worker:
            if asked:
                worker.until(lambda: worker.status()["phase"] == "Preparing")
                worker.process.terminate()
            assert worker.wait() == (0 if asked else 1)
    if not asked:
        said = "Startup: the model was not there after 1 s (--prepare-timeout)"
        assert (tmp_path / "termination").read_text() == said


def _phase(port: int) -> str:
    try:
        return str(httpx.get(f"http://{HOST}:{port}/status", timeout=10).json()["phase"])
    except httpx.TransportError:
        return ""


def test_orphans_are_reaped(tmp_path: Path) -> None:
    """The worker is PID 1 of its container: zombies fall to it, and do not stay."""
    with serving(tmp_path, orphans=20) as worker:
        worker.until_ready()
        children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children")
        worker.until(lambda: len(children.read_text().split()) == 2)  # the engine and the guard


def test_output_without_an_end_of_line_is_bounded(tmp_path: Path) -> None:
    """100 MB in one line: the line is cut, the worker stays small and ready."""
    with serving(tmp_path, repeat=["x" * 100_000, 1000]) as worker:
        worker.until_ready()
        assert worker.out == b"x" * 16384 + b" [cut]\n"
        assert _memory(worker.process.pid) < 60


def test_much_output_is_passed_on_whole(tmp_path: Path) -> None:
    """100 MB in lines reach the log, to the last byte, also where the engine ends right behind them."""
    line = "y" * 99 + "\n"
    with serving(tmp_path, repeat=[line, 1_000_000], exit=5) as worker:
        peak = 0.0
        while worker.process.poll() is None:
            peak = max(peak, _memory(worker.process.pid))
            time.sleep(0.05)
        assert worker.wait() == 5
        assert len(worker.out) == 100_000_000
        assert peak < 60


def test_a_log_that_is_not_read_stops_the_engine_and_not_the_worker(tmp_path: Path) -> None:
    """Where nothing reads its stdout, the engine waits as it would by itself; the worker's port answers."""
    port, status_port = free_port(HOST), free_port(HOST)
    command = serve_command(tmp_path, port, status_port, scripted(port, repeat=["z" * 99 + "\n", 100_000]))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(100).startswith(b"z")
            answer = httpx.get(f"http://{HOST}:{status_port}/status", timeout=10)
            assert answer.json()["phase"] == "Starting"
            process.terminate()
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def _memory(pid: int) -> float:
    """Return the resident memory of *pid* in MiB; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in text.splitlines() if line.startswith("VmRSS")), "VmRSS: 0 kB")
    return int(line.split()[1]) / 1024


def test_a_taken_port_is_found_before_the_engine_starts(tmp_path: Path) -> None:
    """Another server's /health is not taken for the engine's."""
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with serving(tmp_path, flags={"port": port}) as worker:
            assert worker.wait() == 1
            assert worker.last_words == f"PortTaken: port {port} is taken by another process"


def test_a_taken_status_port_is_a_wrong_flag(tmp_path: Path) -> None:
    """The worker cannot be watched: it does not start."""
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with serving(tmp_path, flags={"status_port": port}) as worker:
            assert worker.wait() == 2
            assert f"turnout-worker: cannot listen on {HOST}:{port} (--status-port)" in worker.log


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "is no model: it has no config.json at its top"),
        ("{", "config.json is not JSON"),
        ("[" * 100_000, "config.json is not JSON"),
        ("[]", "config.json is no model's configuration: it holds no JSON object"),
    ],
)
def test_a_model_without_a_configuration_is_refused(tmp_path: Path, config: str | None, said: str) -> None:
    """Before the engine is started."""
    model = tmp_path / "other"
    model.mkdir()
    if config is not None:
        (model / "config.json").write_text(config)
    with serving(tmp_path, flags={"model": model.as_uri()}) as worker:
        assert worker.wait() == 1
        assert said in worker.last_words
        assert "engine, process" not in worker.log


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """With the reason and the sentence that fetching gives, which the operator makes a condition of."""
    with serving(tmp_path, flags={"model": "/nonexistent/model"}) as worker:
        assert worker.wait() == 1
        assert worker.last_words.startswith(
            "NotFound: file:///nonexistent/model: there is no folder /nonexistent/model"
        )


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("ftp://host/model", "is not a model source: begin with hf://"),
        ("file://host/model", "is not a folder of the node: write file:///FOLDER"),
    ],
)
def test_a_source_that_cannot_be_is_refused_at_once(tmp_path: Path, model: str, said: str) -> None:
    """As a wrong flag, with the sentence that says what to write."""
    with serving(tmp_path, flags={"model": model}) as worker:
        assert worker.wait() == 2
        assert said in worker.log


def test_the_engine_is_given_the_folders_of_its_adapters(tmp_path: Path) -> None:
    """In place of their names."""
    adapter = tmp_path / "sql"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")

    def engine(port: int) -> list[str]:
        return [*scripted(port), "sql={adapter:sql}", "{model}"]

    with serving(tmp_path, engine, flags={"adapter": f"sql=file://{adapter}"}) as worker:
        worker.until_ready()
        command = Path(f"/proc/{worker.status()['engine']['pid']}/cmdline").read_bytes().split(b"\0")
        assert f"sql={adapter}".encode() in command
        assert str(tmp_path / "model").encode() in command


def test_an_engine_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the statuses of shells: 127 where there is no such program, 126 where it cannot be run."""
    for program, status in (("no-such-engine", 127), (str(tmp_path), 126)):
        with serving(tmp_path, lambda _port, program=program: [program, "serve"]) as worker:
            assert worker.wait() == status
            assert worker.last_words.startswith(
                f"BadArgument: the engine's program {program!r} cannot be started"
            )


def test_the_folder_and_the_address_stand_in_the_engine_s_command(tmp_path: Path) -> None:
    """{model} and {host} are replaced, braces of JSON are left alone."""

    def printing(_port: int) -> list[str]:
        return [
            sys.executable,
            "-c",
            "import sys; print(sys.argv[1:])",
            "{model}",
            "--host={host}",
            '{"a":{}}',
        ]

    with serving(tmp_path, printing) as worker:
        assert worker.wait() == 0
        words = [str(tmp_path / "model"), f"--host={HOST}", '{"a":{}}']
        assert worker.out.decode() == f"{words}\n"


def test_the_key_goes_to_the_engine_and_nowhere_else(tmp_path: Path) -> None:
    """The engine demands the key of --api-key-file, the worker's completion has it, and neither log nor /status shows it."""
    (tmp_path / "key").write_text("s3cret-value\n")
    with serving(tmp_path, key="s3cret-value", flags={"api_key_file": tmp_path / "key"}) as worker:
        worker.until_ready()
        assert worker.environment()["environment"]["VLLM_API_KEY"] == "s3cret-value"
        state = worker.status()
        shown = " ".join(state["engine"].pop("command")[:-1])
        assert "s3cret" not in f"{shown}{state}"
        assert "s3cret" not in worker.log.replace('"key": "s3cret-value"', "")


def test_secrets_of_the_command_are_not_shown(tmp_path: Path) -> None:
    """A token that the engine's command names stands neither in /status nor in the log."""

    def command(port: int) -> list[str]:
        return [*scripted(port), "--hf-token", "hf_abc", "--hf-token=hf_def"]

    with serving(tmp_path, command) as worker:
        worker.until_ready()
        assert worker.status()["engine"]["command"][-3:] == ["--hf-token", "***", "--hf-token=***"]
        assert "hf_" not in worker.log


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: --model"),
        (["--model", "/m"], "say behind -- how the engine is started: -- vllm serve {model} --port 8000"),
        (["--model", "/m", "--"], "say behind -- how the engine is started"),
        (["--model", "/m", "--engine", "other", "--", "x"], "argument --engine: invalid choice: 'other'"),
        (["--model", "/m", "--role", "x", "--", "x"], "argument --role: invalid choice: 'x'"),
        (["--model", "/m", "--port", "0", "--", "x"], "--port 0 says not where the engine listens"),
        (
            ["--model", "/m", "--port", "9", "--status-port", "9", "--", "x"],
            "--port and --status-port are both 9",
        ),
        (["--model", "/m", "--port", "70000", "--", "x"], "70000 is no port"),
        (
            ["--model", "/m", "--startup-timeout", "0", "--", "x"],
            "0 would end everything before it has begun",
        ),
        (["--model", "/m", "--shutdown-timeout", "-1", "--", "x"], "-1 is no sensible number of seconds"),
        (["--model", "/m", "--", "vllm", "serve", "--api-key", "s3cret"], "use --api-key-file"),
        (["--model", "/m", "--", "vllm", "serve", "--api-key=s3cret"], "use --api-key-file"),
        (
            ["--model", "/m", "--api-key-file", "/nonexistent", "--", "x"],
            "--api-key-file /nonexistent cannot be read",
        ),
        (
            ["--model", "/m", "--api-key-file", "/dev/null", "--", "x"],
            "--api-key-file /dev/null holds no key",
        ),
        (
            ["--model", "/m", "--api-key-file", "/dev/zero", "--", "x"],
            "--api-key-file /dev/zero holds no key",
        ),
        (["--model", "/m", "--termination-log", "/nonexistent/log", "--", "x"], "there is no such folder"),
        (["--model", "/m", "--nonsense", "--", "x"], "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_flags_end_with_status_2_and_a_sentence(words: list[str], said: str) -> None:
    """And without a traceback, and without the secret that they held."""
    done = _run(["serve", *words])
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr


def test_only_serve_takes_a_command() -> None:
    """What stands behind -- is not dropped silently."""
    done = _run(["drain", "--", "vllm"])
    assert done.returncode == 2
    assert "only serve takes a command behind --" in done.stderr


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "turnout_worker.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_the_status_port_is_bounded(tmp_path: Path) -> None:
    """Bodies above 64 KiB and connections above 64 are refused: the engine's memory limit is the worker's too."""
    with serving(tmp_path) as worker:
        worker.until_ready()
        url = f"http://{HOST}:{worker.status_port}/status"
        assert httpx.post(url, content=b"x" * 60_000).status_code == 405
        assert _refuses_large_bodies(worker.status_port)
        connections = [socket.create_connection((HOST, worker.status_port)) for _ in range(64)]
        try:
            worker.until(lambda: _is_refused(worker.status_port))
        finally:
            for connection in connections:
                connection.close()
        worker.until(lambda: worker.check("/ready") == 200)


def _refuses_large_bodies(port: int) -> bool:
    with socket.create_connection((HOST, port)) as connection:
        connection.sendall(b"POST /status HTTP/1.1\r\ncontent-length: 10000000\r\n\r\n")
        try:
            for _ in range(1000):
                connection.sendall(b"x" * 10_000)
        except (ConnectionResetError, BrokenPipeError):
            return True  # it was cut while the body came
        return connection.recv(1000).startswith(b"HTTP/1.1 413")


def _is_refused(port: int) -> bool:
    with socket.create_connection((HOST, port)) as connection:
        connection.settimeout(0.5)
        try:
            return connection.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True


NVML = """
#include <string.h>
#include <unistd.h>
int nvmlInit_v2(void) { %s }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) { strncpy(s, (long)d == 1 ? "NVIDIA L4" : "NVIDIA B200", n); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, unsigned long long *m) { m[0] = 24000000000ULL; m[1] = 23000000000ULL; m[2] = 1; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) { *a = (long)d == 1 ? 8 : 10; *b = (long)d == 1 ? 9 : 0; return 0; }
"""
"""NVIDIA's management library, as far as the worker calls it."""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize(
    ("init", "found", "said"),
    [
        (
            "return 0;",
            [("NVIDIA L4", "8.9", True, False), ("NVIDIA B200", "10.0", True, True)],
            "accelerator: NVIDIA L4, 21.4 of",
        ),
        ("return 9;", [], "accelerators are unknown: nvmlInit_v2 returned 9"),
        ("sleep(600); return 0;", [], "accelerators are unknown: NVML did not answer within 10 s"),
        (
            "char *nowhere = 0; return *nowhere;",
            [],
            "accelerators are unknown: the process that asks ended with status 139",
        ),
    ],
    ids=["two", "error", "hangs", "crashes"],
)
def test_the_driver_describes_the_accelerators(
    tmp_path: Path, init: str, found: list[Any], said: str
) -> None:
    """Facts in /status; a driver that fails, hangs or crashes keeps no engine from its own start."""
    (tmp_path / "nvml.c").write_text(NVML % init)
    command = ["cc", "-shared", "-fPIC", "-o", "libnvidia-ml.so.1", "nvml.c"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=SECONDS)
    with serving(tmp_path, environment={"LD_LIBRARY_PATH": str(tmp_path)}) as worker:
        worker.until_ready()
        shown = worker.status()["accelerators"]
        assert [
            (one["name"], one["computeCapability"], one["nativeFp8"], one["nativeFp4"]) for one in shown
        ] == found
        assert all(
            (one["memoryBytes"], one["freeBytes"]) == (24_000_000_000, 23_000_000_000) for one in shown
        )
        assert said in worker.log


def test_drain_waits_for_an_engine_behind_serve(tmp_path: Path) -> None:
    """The preStop hook reads the engine's metrics: it returns when nothing runs."""
    with serving(tmp_path, simulated, served_name=NAME) as worker:
        worker.until_ready()
        body = {"model": NAME, "prompt": "x", "max_tokens": 100, "ignore_eos": True}
        answers: list[int] = []

        def ask() -> None:
            answers.append(
                httpx.post(f"{worker.engine_url}/v1/completions", json=body, timeout=SECONDS).status_code
            )

        asking = threading.Thread(target=ask)
        asking.start()
        worker.until(lambda: "vllm:num_requests_running" in httpx.get(f"{worker.engine_url}/metrics").text)
        done = _run(
            ["drain", "--host", HOST, "--port", str(worker.port), "--idle-seconds", "0.5", "--deadline", "50"]
        )
        assert done.returncode == 0
        assert "still busy" not in done.stderr
        asking.join(SECONDS)
        assert answers == [200]
