"""The configuration file and the flags over it: what is taken, and what is refused in which words."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from sigd.daemon.config import config as config_module
from sigd.daemon.config.choices import IdleStrategy
from sigd.daemon.config.config import (
    Config,
    LaneRealtime,
    admin_path_of,
    default_socket_path,
    load_config,
    running_socket_path,
)
from sigd.daemon.config.limits import DEFAULTS
from sigd.daemon.errors import UsageError


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "sigd.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_without_a_file_everything_has_a_default() -> None:
    assert load_config(None, {}) == Config()
    limits = Config().limits()
    assert limits.daemon_pid == os.getpid()
    for name in (
        "in_flight_max",
        "rows_pending_max",
        "unsent_bytes_max",
        "connections_max",
        "hello_timeout_s",
    ):
        assert getattr(limits, name) == getattr(DEFAULTS, name)


def test_every_bound_reaches_the_daemon(tmp_path: Path) -> None:
    bounds = {
        "in_flight_max": 7,
        "rows_pending_max": 8,
        "unsent_bytes_max": 5000,
        "connections_max": 9,
        "connections_per_user_max": 6,
        "hello_timeout_s": 0.5,
        "drain_timeout_s": 1.5,
    }
    text = "".join(f"{name} = {value}\n" for name, value in bounds.items())
    limits = load_config(written(tmp_path, text), {}).limits()
    assert {name: getattr(limits, name) for name in bounds} == bounds


def test_a_flag_overrules_the_file_and_none_is_no_flag(tmp_path: Path) -> None:
    file = written(tmp_path, 'idle = "spin"\nlinger_us = 5\nbatch_rows_max = 32\n')
    config = load_config(file, {"idle": "block", "linger_us": None, "cpu": 0, "model": None})
    assert (config.idle, config.linger_us, config.batch_rows_max, config.cpu) == (
        IdleStrategy.BLOCK,
        5,
        32,
        0,
    )


def test_paths_of_a_file_are_relative_to_it_and_flags_to_the_caller(tmp_path: Path) -> None:
    file = written(tmp_path, 'model = "m.onnx"\nsocket = "run/s"\nadmin_socket = "/abs/a"\n')
    config = load_config(file, {"socket": "here/s"})
    assert config.model == str(tmp_path / "m.onnx")
    assert config.socket == "here/s"
    assert config.admin_socket == "/abs/a"
    assert load_config(file, {}).socket_path == tmp_path / "run/s"


def test_the_flag_for_recordings_overrules_their_directory_alone(tmp_path: Path) -> None:
    file = written(tmp_path, "[recorder]\ndirectory = 'here'\nring_mib = 5\n")
    assert load_config(file, {}).recorder.directory == str(tmp_path / "here")
    recorder = load_config(file, {"recorder": {"directory": "there"}}).recorder
    assert (recorder.directory, recorder.ring_mib) == ("there", 5)
    assert load_config(None, {"recorder": {"directory": "there"}}).recorder.directory == "there"
    assert load_config(None, {}).recorder.directory == ""


def test_one_model_is_a_list_of_one(tmp_path: Path) -> None:
    file = written(tmp_path, 'model = "m.onnx"\nbackend = "oracle"\nlinger_us = 3\ngpu = 1\n')
    (model,) = load_config(file, {"batch_rows_max": 5}).models()
    assert (model.name, model.path, model.backend) == (None, tmp_path / "m.onnx", "oracle")
    assert (model.batch_rows_max, model.linger_us, model.gpu.gpu) == (5, 3, 1)
    (shipped,) = Config().models()
    assert shipped.path is None


def test_a_table_says_what_differs_from_the_top_of_the_file(tmp_path: Path) -> None:
    text = """
in_flight_max = 9
batch_rows_max = 32
device_timeout_ms = 7
[[model]]
name = "main"
path = "a.onnx"
in_flight_max = 4
rows_pending_max = 5
gpu = 2
[[model]]
path = "/abs/b.onnx"
backend = "oracle"
batch_rows_max = 1
intra_op_threads = 2
linger_us = 6
"""
    first, second = load_config(written(tmp_path, text), {"gpu": 3}).models()
    assert (first.name, first.path, first.backend) == ("main", tmp_path / "a.onnx", "auto")
    assert (first.in_flight_max, first.rows_pending_max, first.batch_rows_max) == (4, 5, 32)
    assert (first.gpu.gpu, first.gpu.device_timeout_ms) == (2, 7)
    assert (second.name, second.path, second.backend) == (None, Path("/abs/b.onnx"), "oracle")
    assert (second.in_flight_max, second.batch_rows_max, second.intra_op_threads) == (9, 1, 2)
    assert (second.linger_us, second.gpu.gpu) == (6, 3)


def test_the_flag_for_a_model_serves_that_one_alone(tmp_path: Path) -> None:
    file = written(tmp_path, '[[model]]\npath = "a.onnx"\n[[model]]\npath = "b.onnx"\n')
    (model,) = load_config(file, {"model": "c.onnx"}).models()
    assert model.path == Path("c.onnx")


def test_the_admin_socket_stands_beside_the_socket() -> None:
    config = Config(socket="/run/x/s.sock")
    assert config.admin_socket_path == admin_path_of(Path("/run/x/s.sock")) == Path("/run/x/s.sock.admin")
    assert Config(socket="/a", admin_socket="/b").admin_socket_path == Path("/b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle = 'm.onnx'", ["unknown field `modle`", "known names are", "model"]),
        ("idle = 'sleepy'", ["sleepy", "idle"]),
        ("batch_rows_max = 0", [">= 1", "batch_rows_max"]),
        ("batch_rows_max = 5000", ["<= 4096"]),
        ("batch_rows_max = '64'", ["int", "str"]),
        ("batch_rows_max = true", ["int", "bool"]),
        ("in_flight_max = 70000", ["<= 65536"]),
        ("linger_us = -1", [">= 0"]),
        ("linger_us = 1000000000000000000000000000", ["<= 1000000"]),
        ("unsent_bytes_max = 1", [">= 4096"]),
        ("hello_timeout_s = 0", ["> 0"]),
        ("hello_timeout_s = inf", ["<= 3600"]),
        ("drain_timeout_s = nan", ["> 0"]),
        ("socket_mode = '0999'", ["socket_mode"]),
        ("socket_mode = 660", ["str", "int"]),
        ("admin_socket_mode = '1600'", ["admin_socket_mode"]),
        ("cpu = -1", [">= 0"]),
        ("cpu = 100000000000", ["<= 65535"]),
        ("lock_memory = 1", ["bool"]),
        ("[daemon]\nidle = 'spin'", ["unknown field `daemon`"]),
        ("idle = ", ["no TOML"]),
        (b"\xff\xfe", ["no TOML"]),
        ('socket = "a\\u0000b"', ["zero byte", "socket"]),
        ('model = "a\\u0000b"', ["zero byte", "model"]),
        ("[[model]]\npath = 'a\\u0000b'".replace("'", '"'), ["zero byte", "model"]),
        ("[recorder]\ndir = '/x'", ["unknown field `dir`", "known names are: directory, segment_mib"]),
        ("[recorder]\nring_mib = 0", ["$.recorder.ring_mib"]),
        ("[recorder]\nsegment_mib = 64\ntotal_mib = 127", ["total_mib is 127", "two segments"]),
        ('[recorder]\ndirectory = "a\\u0000b"', ["recorder.directory holds a zero byte"]),
        ("recorder = 'here'", ["$.recorder"]),
        ("[[model]]\npth = 'm.onnx'", ["unknown field `pth`", "known names are: name, path, backend"]),
        ("[model]\npath = 'm.onnx'", ["begins with [[model]]"]),
        ("[[model]]\nbatch_rows_max = 0", [">= 1", "model", "batch_rows_max"]),
        ("model = []", ["empty list", "[[model]]"]),
        ("model = 3", ["str", "int", "model"]),
        ("[[model]]\npath = 'a/m.onnx'\n[[model]]\npath = 'b/m.onnx'", ["two models are called 'm'"]),
        ("[[model]]\nname = 'm'\n[[model]]\npath = 'm.onnx'", ["two models are called 'm'"]),
        ("socket = '/a/s'\nadmin_socket = '/a/s'", ["both /a/s", "two paths"]),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(
    tmp_path: Path, text: str | bytes, said: list[str]
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_config(file, {})
    for part in (str(file), *said):
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("flag", [{"batch_rows_max": 0}, {"idle": "x"}, {"nonsense": 1}])
def test_flags_are_checked_as_the_file_is(flag: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        load_config(None, flag)


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_file_that_cannot_be_read(tmp_path: Path, what: str) -> None:
    file = tmp_path if what == "folder" else tmp_path / "none.toml"
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(file, {})


def test_a_socket_path_that_is_too_long_is_refused_before_the_kernel_does() -> None:
    fits = "/" + "s" * 100
    assert load_config(None, {"socket": fits}).socket == fits
    for path in ("/" + "s" * 107, "/" + "ö" * 54):
        with pytest.raises(UsageError, match="107 bytes"):
            load_config(None, {"socket": path})
    with pytest.raises(UsageError, match=r"s\.admin"):
        load_config(None, {"socket": "/" + "s" * 105})


def test_the_default_socket_is_where_it_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_socket_path() == tmp_path / "sigd.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket_path() == Path(f"/tmp/sigd-{os.getuid()}/sigd.sock")
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert default_socket_path() == Path("/run/sigd/sigd.sock")


def test_commands_find_the_daemon_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, mine = tmp_path / "run", tmp_path / "mine"
    for directory in (system, mine):
        directory.mkdir()
    monkeypatch.setattr(config_module, "socket_directories", lambda: (system, mine, tmp_path))
    assert running_socket_path() == default_socket_path(), "where one would be started"
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(mine / "sigd.sock"))
        (system / "sigd.sock").write_text("no socket")
        assert running_socket_path() == mine / "sigd.sock"
        (system / "sigd.sock").unlink()
        with socket.socket(socket.AF_UNIX) as the_systems:
            the_systems.bind(str(system / "sigd.sock"))
            assert running_socket_path() == system / "sigd.sock"


def test_where_one_may_not_look_one_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(config_module, "socket_directories", lambda: (Path("/closed"), Path("/tmp")))
    monkeypatch.setattr(os, "stat", forbidden)
    assert running_socket_path() == Path("/closed/sigd.sock")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"lane_cpu": [3, 4, 3]}, r"lane_cpu names a core twice \(3, 4, 3\)"),
        ({"lane_cpu": [3], "shared_memory": False}, "which shared_memory = false does not offer"),
        ({"lane_cpu": [3], "cpu": 3, "idle": "spin"}, "lane_cpu 3 is cpu too"),
        ({"lane_cpu": [3], "cpu": 3, "idle": "block", "lane_idle": "spin"}, "lane_cpu 3 is cpu too"),
        ({"lane_priority": 1}, "lane_priority is for lanes, and lane_cpu names none"),
        ({"lane_cpu": [3], "idle": "spin", "lane_priority": 1}, "lane_priority is for lanes that sleep"),
        ({"lane_cpu": [3], "lane_priority": 50}, "<= 49"),
        (
            {"lane_cpu": [3], "lane_priority": 1, "backoff_spin_us": 2000, "lane_busy_ms_max": 2},
            "backoff_spin_us = 2000 is no less than lane_busy_ms_max = 2 ms",
        ),
    ],
)
def test_lanes_that_cannot_be_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_config(None, flags)


def test_lanes_idle_as_the_loop_does_unless_they_are_told() -> None:
    spins = {
        idle: load_config(
            None, {"lane_cpu": [3], "cpu": 2, "idle": idle, "backoff_spin_us": 7}
        ).lane_spin_ns()
        for idle in ("spin", "backoff", "block")
    }
    assert spins == {"spin": None, "backoff": 7000, "block": 0}
    assert load_config(None, {"idle": "block", "lane_idle": "spin"}).lane_spin_ns() is None


def test_lanes_are_ordinary_unless_they_are_given_a_priority() -> None:
    assert load_config(None, {"lane_cpu": [3]}).lane_realtime() is None
    given = {"lane_cpu": [3], "lane_priority": 7, "lane_busy_ms_max": 4}
    assert load_config(None, given).lane_realtime() == LaneRealtime(7, 4_000_000)
