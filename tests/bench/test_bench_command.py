"""`sigd bench` from its command line to its exit code and files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from hdrh.histogram import HdrHistogram

from sigd.bench import daemon_process, rig, verdict
from sigd.bench.commands.bench import bench, settings_of
from sigd.bench.document import Document
from sigd.bench.errors import BadRequest, MissingDependency
from sigd.bench.floor.floor import ROUNDS
from sigd.bench.load import steps
from sigd.bench.native import build as native
from sigd.bench.rig import Mode
from sigd.daemon.serving import native_lane
from sigd.wire.ring import why_not_here
from sigd.wire.status import Transport

needs_lanes = pytest.mark.skipif(
    bool(why_not_here()) or not native_lane.is_built(),
    reason=why_not_here() or "lanes are not built: python hatch_build.py",
)
StartPeer = Callable[..., Any]


@pytest.fixture(autouse=True)
def short_looks_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "HICCUP_SECONDS", 0.01)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def shared_memory(client: str) -> tuple[str, ...]:
    """Options that measure over shared memory."""
    return ("--client", client, "--transport", "shm")


@pytest.fixture(params=["cpp", "python"])
def client(request: pytest.FixtureRequest) -> str:
    if request.param == "cpp":
        request.getfixturevalue("programs")
    return str(request.param)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(bench, ["--warmup", "0.01", *map(str, arguments)])


def test_help_has_an_example_and_the_exit_codes() -> None:
    result = CliRunner().invoke(bench, ["--help"])
    assert result.exit_code == 0
    assert "sigd bench --p99 --closed-loop --floor" in result.output
    assert "Exit codes" in result.output


@pytest.fixture(autouse=True)
def _no_time_was_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine every run that fails here would be inconclusive."""
    monkeypatch.setattr(verdict, "SHARE_MAX", float("inf"))


def test_a_run_that_passes_writes_what_it_shows(
    client: str, start_peer: StartPeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine misses the rate of so short a run, which is not what is tested here.
    monkeypatch.setattr(verdict, "RATE_TOLERANCE", 0.99)
    json_file, hgrm_file = tmp_path / "p99.json", tmp_path / "p99.hgrm"
    result = run(
        *("--p99", "--budget-us", "1e6", "--socket", start_peer().path, "--client", client),
        *("--rate", "2000", "--requests", "200", "--json", json_file, "--hgrm", hgrm_file),
    )
    assert result.exit_code == 0, result.output
    document = msgspec.json.decode(json_file.read_bytes(), type=Document)
    assert document.valid
    assert document.passed
    assert document.reasons == []
    assert document.accounting.requests == document.accounting.answered == 200
    assert document.accounting.by_status["OK"] == 200
    assert document.load.client == client
    assert (document.load.mode, document.load.arrivals) == ("open loop", "poisson")
    assert 0 < document.load.rate_achieved_hz <= document.load.rate_intended_hz
    assert document.load.in_flight == 64, "what the daemon grants"
    assert document.model.name == "test"
    assert document.memory is None, "process 1 is no sigd"
    assert document.latency.p50_us <= document.latency.p99_us <= document.latency.max_us
    assert document.latency.p50_us >= document.uncorrected.p50_us
    assert [facts.when for facts in document.hiccups].count("during") == 1
    decoded = HdrHistogram.decode(document.hdr)
    assert decoded.get_total_count() == 200
    assert decoded.get_value_at_percentile(99) / 1000 == pytest.approx(document.latency.p99_us, abs=0.001)
    assert hgrm_file.read_text().startswith("       Value     Percentile")
    assert "PASS" in result.output
    assert ("the client is in Python" in result.output) == (client == "python")


def test_a_report_is_written_with_its_figures_beside_it(start_peer: StartPeer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra report draws")
    result = run(
        *("--no-p99", "--socket", start_peer().path, "--client", "python", "--closed-loop"),
        *("--requests", "300", "--html", tmp_path / "run.html"),
    )
    assert result.exit_code == 0, result.output
    document = msgspec.json.decode((tmp_path / "run.json").read_bytes(), type=Document)
    assert (tmp_path / "run.hgrm").read_text().startswith("       Value     Percentile")
    assert len(document.timeline) > 1
    assert max(moment.max_us for moment in document.timeline) == pytest.approx(
        document.latency.max_us, rel=0.01
    )
    text = (tmp_path / "run.html").read_text()
    assert text.count("<svg") == 3
    assert document.model.sha256 in text


def test_over_shared_memory_the_report_says_so(
    shared_memory: tuple[str, ...], start_peer: StartPeer, tmp_path: Path
) -> None:
    result = run(
        *("--no-p99", "--socket", start_peer().path, *shared_memory),
        *("--closed-loop", "--in-flight", "64", "--requests", "500", "--json", tmp_path / "run.json"),
    )
    assert result.exit_code == 0, result.output
    document = msgspec.json.decode((tmp_path / "run.json").read_bytes(), type=Document)
    assert (document.load.transport, document.load.ring_slots) == ("shm", 64)
    assert document.accounting.by_status["OK"] == 500
    half_a_ms_ns = 500_000  # as far as elapsed_s is rounded
    assert document.ns_per_request * 500 == pytest.approx(1e9 * document.load.elapsed_s, abs=half_a_ms_ns)
    assert "over shared memory (64 slots a ring)" in result.output
    assert f"{document.ns_per_request:,.0f} ns a request" in result.output


def test_an_open_loop_over_shared_memory_has_a_ring_in_flight(
    shared_memory: tuple[str, ...], start_peer: StartPeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "RATE_TOLERANCE", 0.99)
    result = run(
        *("--no-p99", "--socket", start_peer().path, *shared_memory),
        *("--rate", "2000", "--requests", "100", "--json", tmp_path / "run.json"),
    )
    assert result.exit_code == 0, result.output
    document = msgspec.json.decode((tmp_path / "run.json").read_bytes(), type=Document)
    assert document.load.in_flight == 64


def test_more_in_flight_than_the_ring_has_slots_is_exit_2(
    shared_memory: tuple[str, ...], start_peer: StartPeer
) -> None:
    result = run("--socket", start_peer().path, *shared_memory, "--closed-loop", "--in-flight", "65")
    assert result.exit_code == 2
    assert "--in-flight 65 is more than the daemon grants a connection (64)" in result.stderr
    assert "its ring has no more slots" in result.stderr


def test_over_the_budget_is_exit_1_and_named_so(client: str, start_peer: StartPeer, tmp_path: Path) -> None:
    json_file, hgrm_file = tmp_path / "p99.json", tmp_path / "p99.hgrm"
    result = run(
        *("--p99", "--budget-us", "0.001", "--socket", start_peer().path, "--client", client),
        *("--closed-loop", "--requests", "100", "--json", json_file, "--hgrm", hgrm_file),
    )
    assert result.exit_code == 1
    assert sorted(path.name for path in tmp_path.glob("p99*")) == ["p99.FAIL.hgrm", "p99.FAIL.json"]
    document = msgspec.json.decode((tmp_path / "p99.FAIL.json").read_bytes(), type=Document)
    assert document.valid
    assert not document.passed
    assert "exceeds the budget" in document.reasons[0]
    assert "FAIL" in result.output


def test_a_peer_that_loses_a_reply_makes_the_run_invalid(
    client: str, start_peer: StartPeer, tmp_path: Path
) -> None:
    result = run(
        *("--no-p99", "--socket", start_peer(fault="lost", at=150).path, "--client", client),
        *("--closed-loop", "--in-flight", "4", "--duration", "2", "--warmup", "0"),
        *("--json", tmp_path / "run.json"),
    )
    assert result.exit_code == 1, result.output
    document = msgspec.json.decode((tmp_path / "run.FAIL.json").read_bytes(), type=Document)
    assert not document.valid
    assert document.accounting.lost > 0
    assert any("protocol violation (sequence)" in reason for reason in document.reasons)
    assert "may not be quoted" in result.output


def test_a_missed_rate_makes_the_run_invalid(client: str, start_peer: StartPeer, tmp_path: Path) -> None:
    peer = start_peer(fault="stall", at=60, stall_s=0.5)
    result = run(
        *("--no-p99", "--socket", peer.path, "--client", client, "--rate", "1000", "--arrivals", "constant"),
        *("--duration", "0.2", "--in-flight", "1", "--warmup", "0", "--json", tmp_path / "run.json"),
    )
    assert result.exit_code == 1
    document = msgspec.json.decode((tmp_path / "run.FAIL.json").read_bytes(), type=Document)
    assert not document.valid
    assert any("the rate was missed" in reason for reason in document.reasons)
    assert document.accounting.lost == 0
    assert document.late_sends.count > 100


def test_json_to_standard_output_is_json_alone(start_peer: StartPeer) -> None:
    result = run(
        *("--budget-us", "1e6", "--socket", start_peer().path, "--client", "python"),
        *("--closed-loop", "--requests", "50", "--json", "-"),
    )
    assert result.exit_code == 0
    assert msgspec.json.decode(result.stdout.encode(), type=Document).accounting.answered == 50
    assert "PASS" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", "10", "--closed-loop"], "exclude each other"),
        (["--closed-loop", "--arrivals", "poisson"], "leave out --arrivals"),
        (["--speed", "2"], "leave out --speed"),
        (["--requests", "5", "--duration", "1"], "leave out --duration"),
        (["--socket", "s", "--model", "m"], "leave out --model"),
        (["--socket", "s", "--idle", "spin"], "leave out --idle"),
        (["--socket", "s", "--lane-cpu", "1", "--transport", "shm"], "leave out --lane-cpu"),
        (["--lane-cpu", "1"], "add --transport shm"),
        (["--lane-cpu", "1", "--history", "--transport", "shm"], "leave out --lane-cpu"),
        (["--lane-cpu", "65000", "--transport", "shm"], "it may use: "),
        (["--floor", "--client", "python", "--closed-loop"], "leave out --client python"),
        (["--json", "/nonexistent/run.json"], "does not exist"),
    ],
)
def test_options_that_contradict_each_other_are_exit_2(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_no_daemon_is_exit_3(tmp_path: Path) -> None:
    result = run("--socket", tmp_path / "absent.sock", "--client", "python")
    assert result.exit_code == 3
    assert "absent.sock" in result.stderr


def test_daemon_that_never_answers_hello_is_exit_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_process, "_OPEN_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        result = run("--socket", tmp_path / "silent.sock", "--client", "python")
    assert result.exit_code == 3
    assert "silent.sock: the daemon did not answer Hello within the time given" in result.stderr


def test_more_in_flight_than_granted_is_exit_2(start_peer: StartPeer) -> None:
    result = run("--socket", start_peer().path, "--client", "python", "--closed-loop", "--in-flight", "65")
    assert result.exit_code == 2
    assert "grants a connection (64)" in result.stderr


def test_the_floor_of_a_running_daemon_is_refused(programs: object, start_peer: StartPeer) -> None:
    result = run("--socket", start_peer().path, "--floor", "--closed-loop")
    assert result.exit_code == 2
    assert "harm the clients" in result.stderr


def test_a_daemon_that_refuses_its_model_is_quoted(tmp_path: Path) -> None:
    model = tmp_path / "no-model.onnx"
    model.write_bytes(b"not onnx")
    result = run("--model", model, "--client", "python")
    assert result.exit_code == 2, result.output
    assert "no-model.onnx" in result.stderr


class TestWithoutACompiler:
    """What changes where nothing native can be built."""

    @pytest.fixture(autouse=True)
    def no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def build() -> native.NativePrograms:
            raise MissingDependency("no C++ compiler: none is on PATH")

        monkeypatch.setattr(native, "build", build)

    def test_the_python_client_measures_and_says_so(self, start_peer: StartPeer) -> None:
        result = run("--budget-us", "1e6", "--socket", start_peer().path, "--closed-loop", "--requests", "50")
        assert result.exit_code == 0
        assert "the client is in Python: there is no native one: no C++ compiler" in result.output

    @pytest.mark.parametrize("asked", [["--client", "cpp"], ["--floor"]])
    def test_what_needs_it_is_exit_3(self, start_peer: StartPeer, asked: list[str]) -> None:
        result = run("--closed-loop", "--requests", "50", *asked)
        assert result.exit_code == 3
        assert "no C++ compiler" in result.stderr


def options(**changes: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {parameter.name: None for parameter in bench.params if parameter.name}
    for name in ("json_file", "hgrm_file", "html_file"):
        del defaults[name]
    given: dict[str, Any] = {
        "p99": True,
        "budget_us": 100.0,
        "closed_loop": False,
        "connections": 1,
        "warmup": 1.0,
    }
    given = given | {"history": False, "lane_cpus": ()}
    return defaults | given | {"transport": "stream", "floor": False, "client": "auto", "seed": 1} | changes


def test_without_a_mode_it_is_an_open_loop_of_ten_thousand_a_second() -> None:
    settings = settings_of(**options())
    assert settings.mode is Mode.RATE
    assert (settings.rate_hz, settings.arrivals) == (10_000.0, "poisson")
    assert settings.budget_ns == 100_000


def test_idle_is_the_lane_s_where_a_lane_answers() -> None:
    lane = {"lane_cpus": (3,), "transport": "shm"}
    spins = settings_of(**options(idle="spin", **lane)).serve.arguments("S")
    assert spins == [
        *("serve", "--socket", "S", "--idle", "block", "--lane-cpu", "3", "--lane-idle", "spin"),
    ]
    assert settings_of(**options(**lane)).serve.lane_idle == "backoff"
    assert settings_of(**options(idle="spin")).serve.arguments("S")[-2:] == ["--idle", "spin"]


def test_uds_is_another_name_for_the_stream() -> None:
    named = {name: settings_of(**options(transport=name)).transport for name in ("stream", "uds", "shm")}
    assert named == {
        "stream": Transport.STREAM,
        "uds": Transport.STREAM,
        "shm": Transport.SHARED_MEMORY,
    }


def test_a_capture_takes_a_speed_and_no_floor(tmp_path: Path) -> None:
    settings = settings_of(**options(capture=tmp_path / "c.gz", speed=50.0, duration=3.0))
    assert (settings.mode, settings.speed, settings.duration_s) == (Mode.CAPTURE, 50.0, 3.0)
    with pytest.raises(BadRequest, match="leave out --capture"):
        settings_of(**options(capture=tmp_path / "c.gz", floor=True))


def test_steps_have_instruments_and_no_floor() -> None:
    assert settings_of(**options()).history_instruments is None
    settings = settings_of(**options(history=True))
    assert settings.history_instruments == settings.serve.history_instruments == 16
    assert settings_of(**options(history=True, instruments=7)).history_instruments == 7
    with pytest.raises(BadRequest, match="leave out --instruments"):
        settings_of(**options(instruments=7))
    with pytest.raises(BadRequest, match="leave out --floor"):
        settings_of(**options(history=True, floor=True))


def run_with_history(model: Path, json_file: Path, *arguments: str) -> tuple[Result, Document]:
    result = run(
        *("--no-p99", "--model", model, "--backend", "onnxruntime", "--history", "--instruments", "3"),
        *("--requests", "400", "--warmup", "0.01", "--json", json_file, *arguments),
    )
    written = json_file if json_file.exists() else json_file.with_suffix(".FAIL.json")
    return result, msgspec.json.decode(written.read_bytes(), type=Document)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["stream", "shm"])
@pytest.mark.parametrize("load", [("--closed-loop", "--in-flight", "4"), ("--rate", "4000")])
def test_steps_are_answered_as_their_windows_from_the_first(
    client: str,
    models: Any,
    tmp_path: Path,
    transport: str,
    load: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verdict, "RATE_TOLERANCE", 0.99)
    result, document = run_with_history(
        models.lstm(steps=5, features=4),
        tmp_path / "run.json",
        *("--client", client, "--transport", transport, "--connections", "2", *load),
    )
    assert result.exit_code == 0, result.output
    assert document.accounting.by_status["OK"] == 400, "windows are full when the run begins"
    assert (document.load.instruments, document.model.features, document.model.history_steps) == (3, 4, 5)
    assert document.load.answers_checked == (client == "cpp")
    assert "one step in each request, 3 instruments a connection, windows of 5 steps" in result.output


@pytest.mark.slow
def test_answer_of_another_window_ends_the_run(
    programs: object, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = steps.expected_answers
    monkeypatch.setattr(steps, "expected_answers", lambda *asked: expected(*asked)[::-1])
    result, document = run_with_history(
        models.lstm(steps=5, features=4), tmp_path / "run.json", "--client", "cpp", "--closed-loop"
    )
    assert result.exit_code == 1
    assert any("protocol violation (wrong)" in reason for reason in document.reasons)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["stream", "shm"])
def test_the_floor_beside_a_daemon_of_our_own(
    programs: object, models: Any, tmp_path: Path, transport: str
) -> None:
    json_file = tmp_path / "floor.json"
    result = CliRunner().invoke(
        bench,
        [
            *("--budget-us", "1e6", "--model", str(models.mlp(features=8)), "--closed-loop", "--floor"),
            *("--duration", "1", "--warmup", "0.1", "--transport", transport, "--json", str(json_file)),
        ],
    )
    assert result.exit_code == 0, result.output
    document = msgspec.json.decode(json_file.read_bytes(), type=Document)
    assert document.memory is not None
    assert document.memory.after_warmup_kib > 10_000
    assert document.load.transport == transport
    assert document.floor is not None
    assert document.floor.rounds == ROUNDS
    for ratio in document.floor.ratios:
        assert ratio.floor_us == pytest.approx(ratio.echo_us + ratio.bare_us, abs=0.002)
        assert ratio.ratio_pooled == pytest.approx(ratio.sigd_us / ratio.floor_us, abs=0.001)
    assert document.floor.signals_per_s > 0
    assert document.floor.bare_rows_per_s > document.floor.signals_per_s
    assert "against the floor" in result.output


@pytest.mark.slow
def test_the_daemon_alone_over_shared_memory(
    shared_memory: tuple[str, ...], models: Any, tmp_path: Path
) -> None:
    options = ("--no-p99", "--backend", "echo", *shared_memory, "--model", models.mlp(features=8))
    json_file = tmp_path / "alone.json"
    result = run(
        *options,
        "--closed-loop",
        "--in-flight",
        "64",
        "--idle",
        "spin",
        "--duration",
        "0.5",
        "--json",
        json_file,
    )
    assert result.exit_code == 0, result.output
    document = msgspec.json.decode(json_file.read_bytes(), type=Document)
    assert document.accounting.by_status["OK"] == document.accounting.answered >= 64
    assert document.model.name == "echo"
    assert document.load.ring_slots >= 64
    assert "the backend echo runs no model: this is the daemon alone" in result.output
    refused = run(*options, "--closed-loop", "--in-flight", "100000")
    assert refused.exit_code == 2
    assert "its ring has no more slots" in refused.stderr


@needs_lanes
def test_lane_of_a_daemon_of_our_own_is_measured(models: Any, tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    json_file = tmp_path / "lane.json"
    lane = ("--no-p99", "--client", "python", "--transport", "shm", "--lane-cpu", core, "--closed-loop")
    requests = ("--requests", "50", "--model", models.mlp(features=8))
    result = run(*lane, *requests, "--backend", "native", "--json", json_file)
    assert result.exit_code == 0, result.output
    document = msgspec.json.decode(json_file.read_bytes(), type=Document)
    assert document.model.lane_cpus == [core]
    assert document.model.idle == "backoff"
    assert f"idle backoff, lane on core {core}, the loop sleeps on" in result.output
    of_the_loop = run(*lane, *requests, "--backend", "onnxruntime")
    assert of_the_loop.exit_code == 2
    assert "the loop answered, and no lane did" in of_the_loop.stderr
    assert "a lane runs native engines alone" in of_the_loop.stderr


def test_no_figure_is_cut_off_in_a_narrow_terminal(
    client: str, start_peer: StartPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    result = run(
        *("--no-p99", "--closed-loop", "--requests", "200"),
        *("--socket", start_peer().path, "--client", client),
    )
    assert "slowest" in result.output
    assert "…" not in result.output
