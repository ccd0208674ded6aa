"""Another model under a real daemon that goes on answering, and every way in which that can go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.conftest import children_of

from sigd.wire.client import Client
from sigd.wire.errors import SessionClosed
from sigd.wire.recording.reader import Exchanges, open_recordings
from sigd.wire.ring import why_not_here
from sigd.wire.status import GoodbyeCode, Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

ROW = np.array([1, 2, 3, 5], np.float32)


def reload(daemon: Daemon, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "sigd.daemon", "reload", "--socket", daemon.socket, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def factor_of(client: Client) -> tuple[float, int]:
    """What the model that answers now multiplies with, and its generation."""
    answer = client.request(ROW)
    assert answer.status == Status.OK
    return float(answer.outputs[0]), answer.model_generation


class Pump(threading.Thread):
    """Asks without a pause, and looks at every answer: of the n-th generation all are `factors[n - 1]` times
    the row."""

    def __init__(self, client: Client, factors: list[float], in_flight: int) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.factors = np.array(factors, np.float32)
        self.in_flight = in_flight
        self.answers = 0
        self.generations: set[int] = set()
        self.enough = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            last = 0
            while not self.enough.is_set():
                self.client.send_many([ROW] * (self.in_flight - self.client.unanswered))
                last = self._look(self.client.receive_many(), last)
            self._look(self.client.goodbye(), last)
            self.client.close()
        except BaseException as error:
            self.failure = error
            raise

    def _look(self, answers: np.ndarray, last: int) -> int:
        if not len(answers):
            return last
        sequences = answers["sequence"].astype(np.int64)
        assert (sequences == self.answers + np.arange(len(answers))).all(), "one answer each, in order"
        self.answers += len(answers)
        assert (answers["status"] == Status.OK).all()
        generations = answers["model_generation"].astype(np.int64)
        assert generations[0] >= last
        assert (np.diff(generations) >= 0).all(), "never back"
        self.generations.update(generations.tolist())
        expected = self.factors[generations - 1][:, None] * ROW
        assert (answers["outputs"] == expected).all(), "each by the model that it names"
        return int(generations[-1])


@pytest.mark.parametrize("idle", ["spin", "block"])
def test_no_client_notices(start_daemon: StartDaemon, models: ModelMaker, idle: str) -> None:
    files = [models.scaled(float(factor), 4) for factor in (1, 2, 3)]
    daemon = start_daemon("--model", str(files[0]), "--idle", idle, "--batch-rows-max", "8")
    factors = [1.0] + [2.0, 3.0] * 2
    ways = [False] if why_not_here() else [False, True]
    pumps = [
        Pump(daemon.connect(shared_memory=rings), factors, in_flight)
        for in_flight in (1, 60)
        for rings in ways
    ]
    silent = daemon.connect()
    for pump in pumps:
        pump.start()
    for number in range(4):
        done = reload(daemon, "--model", files[1 + number % 2])
        assert done.returncode == 0, done.stderr
        assert f"generation {number + 2} is served" in done.stdout
    for pump in pumps:
        pump.enough.set()
        pump.join()
        assert pump.failure is None
        assert {1, 5} <= pump.generations
    assert factor_of(silent) == (3.0, 5)
    silent.close()
    (model,) = daemon.status().models
    assert (model.generation, model.path) == (5, str(files[2]))
    assert model.answers["OK"] == sum(pump.answers for pump in pumps) + 1


def test_without_arguments_the_file_is_read_again(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    served = tmp_path / "served.onnx"
    shutil.copy(models.scaled(2.0), served)
    daemon = start_daemon("--model", str(served))
    with daemon.connect() as client:
        assert factor_of(client) == (2.0, 1)
        for factor, generation in ((3.0, 2), (4.0, 3)):
            shutil.copy(models.scaled(factor), tmp_path / "new")
            (tmp_path / "new").rename(served)
            assert factor_of(client) == (factor - 1, generation - 1), "not by itself"
            if generation == 2:
                assert reload(daemon).returncode == 0
            else:
                daemon.process.send_signal(signal.SIGHUP)
                daemon.until(lambda status: status.models[0].generation == 3)
            assert factor_of(client) == (factor, generation)
        assert client.welcome.model_name == "served"
    assert "SIGHUP" not in daemon.said()


def test_a_sighup_while_it_starts_is_heard_when_it_serves(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    """By the daemon; what it has started meanwhile lives."""
    model = str(models.scaled(2.0))
    daemon = start_daemon("--model", model, "--shadow", model, ready=False)
    status = Path(f"/proc/{daemon.process.pid}/status")
    hangup = 1 << (signal.SIGHUP - 1)
    until(lambda: bool(int(re.findall(r"^SigBlk:\t(.*)$", status.read_text(), re.MULTILINE)[0], 16) & hangup))
    beside: set[int] = set()
    ready = daemon.process.stdout
    assert ready is not None
    while not select.select([ready], [], [], 0.01)[0]:
        daemon.process.send_signal(signal.SIGHUP)
        for child in set(children_of(daemon.process.pid)) - beside:
            os.kill(child, signal.SIGHUP)
            beside.add(child)
    daemon.wait_until_ready()
    assert len(beside) == 2, "what validates models, and the shadow"
    daemon.until(lambda status: status.models[0].generation == 2)
    assert beside == set(children_of(daemon.process.pid))


def test_a_name_stays_whatever_file_is_served_under_it(start_daemon: StartDaemon, models: ModelMaker) -> None:
    first, second = models.scaled(2.0), models.scaled(3.0)
    daemon = start_daemon("--model", str(first))
    assert reload(daemon, "--model", second).returncode == 0
    with daemon.connect(model_name=first.stem) as client:
        assert client.welcome.model_name == first.stem
        assert client.welcome.model_generation == 2
        assert client.welcome.model_sha256.hex() == daemon.status().models[0].sha256
        assert factor_of(client) == (3.0, 2)


def test_how_it_went_as_json(start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path) -> None:
    file = models.scaled(2.0)
    daemon = start_daemon("--model", str(file))
    (went,) = json.loads(reload(daemon, "--json").stdout)["models"]
    assert (went["name"], went["error"], went["generation"], went["withdrawn"]) == (file.stem, "", 2, 0)
    assert (went["features"], went["outputs"]) == (4, 4)
    assert went["backend"] in ("native", "onnxruntime")
    done = reload(daemon, "--json", "--model", tmp_path / "none.onnx")
    (went,) = json.loads(done.stdout)["models"]
    assert done.returncode == 1
    assert "no such file" in went["error"]
    assert (went["generation"], went["path"]) == (2, str(file))


def test_of_several_models_the_one_that_is_named(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    config = tmp_path / "two.toml"
    tables = [f"[[model]]\nname = '{name}'\npath = '{models.scaled(2.0)}'\n" for name in ("a", "b")]
    config.write_text("".join(tables))
    daemon = start_daemon("--config", str(config))
    assert "b: generation 2" in reload(daemon, "--name", "b", "--model", models.scaled(3.0)).stdout
    with daemon.connect(model_name="a") as first, daemon.connect(model_name="b") as second:
        assert (factor_of(first), factor_of(second)) == ((2.0, 1), (3.0, 2))
        assert reload(daemon, "--model", models.scaled(4.0)).stdout.startswith("a: generation 2")
        done = reload(daemon)
        assert [line[:15] for line in done.stdout.splitlines()] == ["a: generation 3", "b: generation 3"]
        assert (factor_of(first), factor_of(second)) == ((4.0, 3), (3.0, 3))
    done = reload(daemon, "--name", "c")
    assert done.returncode == 1
    assert "no model is called 'c', expected one of 'a', 'b'" in done.stderr


def broken(models: ModelMaker, folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that cannot be served, and what is said of them."""
    whole = models.scaled(3.0).read_bytes()
    files = {
        "missing": ("", "no such file"),
        "empty": (b"", "empty, expected an ONNX model"),
        "garbage": (b"no model at all" * 100, "not an ONNX model"),
        "cut short": (whole[: len(whole) // 2], "ONNX"),
    }
    paths = {}
    for name, (content, said) in files.items():
        path = folder / f"{name.replace(' ', '-')}.onnx"
        if isinstance(content, bytes):
            path.write_bytes(content)
        paths[name] = (path, said)
    (folder / "folder.onnx").mkdir()
    (folder / "loop.onnx").symlink_to("loop.onnx")
    paths["links in a ring"] = (folder / "loop.onnx", "cannot be read: Too many levels of symbolic links")
    paths["a folder"] = (folder / "folder.onnx", "a directory, expected an ONNX file")
    paths["fewer features"] = (models.scaled(3.0, 3), "3 features -> 3 outputs, and clients")
    paths["fewer outputs"] = (models.summed(4), "4 features -> 1 outputs, and clients")
    paths["rows that mix"] = (models.mixing(4), "changes with the other rows")
    anybodys = folder / "anybodys.onnx"
    shutil.copy(models.scaled(3.0), anybodys)
    anybodys.chmod(0o666)
    paths["others could change it"] = (anybodys, "has mode 0666")
    named = folder / "model.weights"
    shutil.copy(models.scaled(3.0), named)
    paths["no ending"] = (named, "does not say which backend serves it")
    return paths


def test_whatever_is_wrong_with_it_the_old_model_serves_on(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    daemon = start_daemon("--model", str(models.scaled(2.0)))
    files = broken(models, tmp_path)
    with daemon.connect() as client:
        for path, said in files.values():
            done = reload(daemon, "--model", path)
            assert done.returncode == 1, path
            assert "is not reloaded, generation 1 serves on: " in done.stderr
            assert said in done.stderr
            assert path.name in done.stderr
            assert factor_of(client) == (2.0, 1)
        assert reload(daemon, "--model", models.scaled(3.0)).returncode == 0, "and a good one is taken"
        assert factor_of(client) == (3.0, 2)
    name = daemon.status().models[0].name
    scrape = daemon.metrics()
    assert f'sigd_model_reloads_total{{model="{name}",outcome="refused"}} {len(files)}\n' in scrape
    assert f'sigd_model_reloads_total{{model="{name}",outcome="served"}} 1\n' in scrape


def test_a_recording_says_which_model_gave_each_answer(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    files = [models.scaled(factor) for factor in (2.0, 3.0)]
    daemon = start_daemon("--model", str(files[0]), "--record", str(tmp_path / "recordings"))
    with daemon.connect() as client:
        answers = [factor_of(client)]
        assert reload(daemon, "--model", files[1]).returncode == 0
        answers += [factor_of(client), factor_of(client)]
    assert daemon.stop() == 0
    (recording,) = open_recordings(tmp_path / "recordings")
    told = []
    for exchanges in recording.read():
        assert isinstance(exchanges, Exchanges)
        facts = exchanges.facts
        told += [
            (float(factor), facts.generation, facts.sha256) for factor in exchanges.responses["outputs"][:, 0]
        ]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert told == [(factor, number, digests[number - 1]) for factor, number in answers]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path) -> None:
    secret = tmp_path / "secret.onnx"
    shutil.copy(models.scaled(3.0), secret)
    secret.chmod(0)
    daemon = start_daemon("--model", str(models.scaled(2.0)))
    done = reload(daemon, "--model", secret)
    assert done.returncode == 1
    assert "Permission denied" in done.stderr


def test_an_engine_that_does_not_do_what_it_did_when_it_was_built(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    engines = [tmp_path / name for name in ("good.engine", "other.engine")]
    for engine, factor in zip(engines, (3.0, 4.0), strict=True):
        build = ["build-engine", models.scaled(factor), "--runtime", "onnxruntime", "-o", engine]
        subprocess.run([sys.executable, "-P", "-m", "sigd.daemon", *map(str, build)], check=True)
    good, other = engines
    daemon = start_daemon("--model", str(models.scaled(2.0)))
    with daemon.connect() as client:
        assert reload(daemon, "--model", good).returncode == 0
        assert factor_of(client) == (3.0, 2)
        manifest = json.loads(Path(f"{good}.json").read_text())
        manifest["plan"]["sha256"] = hashlib.sha256(other.read_bytes()).hexdigest()
        Path(f"{other}.json").write_text(json.dumps(manifest))
        done = reload(daemon, "--model", other)
        assert done.returncode == 1
        assert "answers its golden rows with an error of" in done.stderr
        Path(f"{other}.json").unlink()
        done = reload(daemon, "--model", other)
        assert done.returncode == 1
        assert "other.engine.json: no such file" in done.stderr
        assert factor_of(client) == (3.0, 2)


def children(daemon: Daemon) -> list[int]:
    return children_of(daemon.process.pid)


def test_a_model_that_needs_more_memory_than_there_is(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.scaled(2.0)))
    (validator,) = children(daemon)
    used = int(Path(f"/proc/{validator}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(validator, resource.RLIMIT_AS, (used + (8 << 20), used + (8 << 20)))
    done = reload(daemon, "--model", models.mlp(4, (2048, 1024), 4))
    assert done.returncode == 1
    assert "serves on: " in done.stderr
    with daemon.connect() as client:
        assert factor_of(client) == (2.0, 1)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_file_that_ends_the_process_that_validates_it(
    start_daemon: StartDaemon, models: ModelMaker, how: signal.Signals
) -> None:
    daemon = start_daemon("--model", str(models.scaled(2.0)))
    (validator,) = children(daemon)
    running = threading.Thread(target=kill_child_of, args=(validator, how))
    running.start()
    done = reload(daemon, "--model", models.slow(4, 4, layers=600))
    running.join()
    assert done.returncode == 1
    assert f"the process that validated it was ended by {how.name}" in done.stderr
    assert reload(daemon, "--model", models.scaled(3.0)).returncode == 0, (
        "the next one is validated all the same"
    )
    daemon.errors.write_text(daemon.said().replace("Traceback", ""))


def test_one_process_validates_files_as_long_as_they_pass(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.scaled(2.0)))
    (validator,) = children(daemon)
    seen = []
    for file, passes in (
        (models.scaled(3.0), True),
        (models.scaled(4.0), True),
        (models.mixing(4), False),
        (models.scaled(5.0), True),
    ):
        refused = ask_reload(daemon, file)
        assert (refused == "") is passes, refused
        # The one that did not pass ends after it has answered.
        if refused:
            until(lambda: not children_of(validator))
        seen.append(children_of(validator))
    first, second, none, another = seen
    assert first == second != another
    assert (len(first), none, len(another)) == (1, [], 1)
    os.kill(another[0], signal.SIGKILL)
    until(lambda: "Z" in state_of(another[0]))
    assert ask_reload(daemon, models.scaled(2.0)) == "", "it ended where it validated nothing"
    assert children_of(validator) not in ([], another)


def kill_child_of(parent: int, how: signal.Signals) -> None:
    """As soon as there is one, whatever it has got to by then."""
    while not (found := children_of(parent)):
        time.sleep(0.001)
    os.kill(found[0], how)


def test_the_process_that_validates_is_gone_and_comes_again(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.scaled(2.0)))
    (validator,) = children(daemon)
    os.kill(validator, signal.SIGKILL)
    done = reload(daemon)
    assert done.returncode == 1
    assert "the process that validates models was ended by SIGKILL and is started again" in done.stderr
    assert "sigd_validator_running 0\n" in daemon.metrics()
    until(lambda: "sigd_validator_running 1\n" in daemon.metrics())
    assert "sigd_validator_restarts_total 1\n" in daemon.metrics()
    assert reload(daemon, "--model", models.scaled(3.0)).returncode == 0
    with daemon.connect() as client:
        assert factor_of(client) == (3.0, 2)


def test_it_ends_with_the_daemon_however_that_ends(start_daemon: StartDaemon, models: ModelMaker) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        daemon = start_daemon("--model", str(models.scaled(2.0)))
        (validator,) = children(daemon)
        os.kill(validator, signal.SIGTERM)
        os.kill(validator, signal.SIGHUP)
        assert reload(daemon).returncode == 0, "signals that are for the daemon are none for it"
        (worker,) = children_of(validator)
        daemon.stop(how)
        deadline_s = time.monotonic() + 60
        for pid in (validator, worker):
            while Path(f"/proc/{pid}").exists() and "Z" not in state_of(pid):
                assert time.monotonic() < deadline_s
                time.sleep(0.01)


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def test_one_at_a_time(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.scaled(2.0)))
    (validator,) = children(daemon)
    os.kill(validator, signal.SIGSTOP)
    with begun_reload(daemon) as asked:
        try:
            assert "a reload is under way" in reload(daemon).stderr
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda: "SIGHUP: nothing is reloaded: a reload is under way" in daemon.said())
        finally:
            os.kill(validator, signal.SIGCONT)
        assert answer_to(asked)["models"][0]["generation"] == 2
    assert daemon.status().models[0].generation == 2
    assert reload(daemon).returncode == 0


@contextmanager
def begun_reload(daemon: Daemon) -> Iterator[socket.socket]:
    """A connection on which a reload was asked for before anybody else can ask: the answer is still to
    come."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(60)
        asked.connect(str(daemon.socket.with_name("sigd.sock.admin")))
        asked.sendall(b'{"op": "reload"}\n')
        yield asked


def answer_to(asked: socket.socket) -> dict[str, Any]:
    with asked.makefile("rb") as lines:
        answer: dict[str, Any] = json.loads(lines.readline())
    return answer


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.mark.parametrize("rings", [False, True])
def test_a_new_shape_withdraws_the_old_one(
    start_daemon: StartDaemon, models: ModelMaker, rings: bool
) -> None:
    if rings and (reason := why_not_here()):
        pytest.skip(reason)
    daemon = start_daemon("--model", str(models.scaled(2.0)))
    client, silent = daemon.connect(shared_memory=rings), daemon.connect()
    assert factor_of(client) == (2.0, 1)
    client.send_many([ROW] * 20)
    going = threading.Thread(
        target=reload, args=(daemon, "--model", models.scaled(3.0, 6), "--allow-new-shape")
    )
    going.start()
    answers = client.receive_many(20)
    assert set(answers["status"]) <= {Status.OK, Status.DRAINING}
    assert set(answers["model_generation"]) == {1}
    assert (answers["outputs"][answers["status"] == Status.OK] == 2 * ROW).all()
    for told in (client, silent):
        while told.goodbye_code is None:
            told.heartbeat()
        assert told.goodbye_code == GoodbyeCode.MODEL_WITHDRAWN
    assert client.request(ROW).status == Status.DRAINING, "until it has gone"
    client.goodbye()
    client.close()
    with pytest.raises(SessionClosed):
        silent.receive()
    silent.close()
    going.join()
    with daemon.connect() as back:
        assert (back.welcome.features, back.welcome.model_generation) == (6, 2)
        answer = back.request(np.ones(6))
        assert (answer.outputs.tolist(), answer.model_generation) == ([3.0] * 6, 2)
    (model,) = daemon.status().models
    assert (model.features, model.generation, model.pending_rows) == (6, 2, 0)
    assert model.answers["OK"] >= 22, "what was counted before counts on"


def test_a_stop_in_the_middle_of_a_reload(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.scaled(2.0)))
    (validator,) = children(daemon)
    os.kill(validator, signal.SIGSTOP)
    with begun_reload(daemon) as asked:
        assert "a reload is under way" in reload(daemon).stderr
        assert daemon.stop() == 0
        assert answer_to(asked) == {"error": "the daemon is stopping"}
    assert state_of(validator) == "Z", "a process that does not end by itself is ended"


def test_no_daemon_to_ask(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "sigd.daemon", "reload", "--socket", str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "no daemon answers there" in done.stderr


@pytest.mark.slow
def test_memory_after_forty_reloads_is_what_it_was_after_a_few(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    """2 MB of weights each: were every second model kept, there would be 20 MB more."""
    files = [models.mlp(4, (512, 1024), 4, seed=seed) for seed in (1, 2)]
    daemon = start_daemon("--model", str(files[0]), "--batch-rows-max", "1")
    with daemon.connect() as client, daemon.connect():
        resident, of_worker = [], []
        (validator,) = children(daemon)
        for number in range(40):
            assert ask_reload(daemon, files[(number + 1) % 2]) == ""
            client.request(ROW)
            resident.append(daemon.status().resident_bytes)
            (worker,) = children_of(validator)
            pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
            of_worker.append(pages * os.sysconf("SC_PAGE_SIZE"))
    assert max(of_worker[-10:]) - max(of_worker[10:20]) < 4 << 20, [value >> 10 for value in of_worker]
    assert len(os.listdir(f"/proc/{worker}/fd")) < 10
    assert daemon.status().models[0].generation == 41
    assert max(resident[-10:]) - max(resident[10:20]) < 4 << 20, [value >> 10 for value in resident]
    assert daemon.descriptors() < 30


def ask_reload(daemon: Daemon, file: Path) -> str:
    from sigd.daemon.admin.client import AdminClient
    from sigd.daemon.admin.messages import AdminRequest, ReloadAnswer

    with AdminClient(daemon.socket.with_name("sigd.sock.admin")) as asker:
        (went,) = asker.ask(AdminRequest("reload", model=str(file)), ReloadAnswer, bound_s=60.0).models
    return went.error


def test_crash_does_not_bring_the_old_model_back(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    old, new = tmp_path / "lob.onnx", tmp_path / "next.onnx"
    shutil.copy(models.scaled(1.0), old)
    shutil.copy(models.scaled(2.0), new)
    daemon = start_daemon("--model", str(old))
    done = reload(daemon, "--model", new)
    assert done.returncode == 0, done.stderr
    assert f"remembered in {daemon.socket}.served: a restart serves it too" in done.stdout
    daemon.process.kill()
    daemon.process.wait()

    again = start_daemon("--model", str(old), folder=daemon.folder)
    with again.connect() as client:
        assert factor_of(client)[0] == 2
    assert f"model lob: {new} is served, as `sigd reload` said" in again.said()
    assert 'sigd_model_as_configured{model="lob"} 0' in again.metrics()
    again.process.kill()
    again.process.wait()

    new.unlink()
    last = start_daemon("--model", str(old), folder=daemon.folder)
    with last.connect() as client:
        assert factor_of(client)[0] == 1
    assert "THE OLD MODEL IS SERVED AGAIN" in last.said()
    assert 'sigd_model_reverted{model="lob"} 1' in last.metrics()
