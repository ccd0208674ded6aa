"""Whatever is killed, full or changed meanwhile costs time or a named piece, never a wrong file."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.bench.backfill.captures import START_NS, synthetic_events, write_capture, write_plan
from tests.bench.backfill.test_backfill import files_left, piece, run
from tests.conftest import children_of

from sigd.bench.backfill.commit import NotTheSame, commit_bytes
from sigd.bench.backfill.engines.dask import Tls, check_address
from sigd.bench.backfill.store import Store
from sigd.bench.errors import BadRequest

arrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'sigd[backfill]'")
parquet = pytest.importorskip("pyarrow.parquet")

BACKFILL = [sys.executable, "-P", "-m", "sigd.daemon", "backfill"]


def many_pieces(folder: Path, symbols: int, dates: int) -> Path:
    """A plan of symbols times dates; the files of one date are the same market."""
    names = [f"s{number:02}" for number in range(symbols)]
    days = [f"d{number:02}" for number in range(dates)]
    for day, date in enumerate(days):
        made = write_capture(folder / f"{names[0]}_{date}.gz", synthetic_events(day, 4_000, START_NS), "s")
        for name in names[1:]:
            os.link(made, folder / f"{name}_{date}.gz")
    return write_plan(folder / "plan.toml", names, days)


@pytest.mark.slow
def test_killed_workers_and_drivers_leave_every_piece_written_once(tmp_path: Path) -> None:
    """Three workers, forty pieces; a worker killed every half second, the driver twice."""
    plan = many_pieces(tmp_path, 8, 5)
    undisturbed = run(plan, tmp_path / "undisturbed").summary
    assert undisturbed["done"] == 40
    out = tmp_path / "out"
    draw = random.Random(1)
    kills = 0
    for pieces_max in (8, 20, 41):  # The driver is killed when so many are written.
        process = subprocess.Popen(
            [*BACKFILL, str(plan), "--out", str(out), "--workers", "3"], stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 600
        while (
            process.poll() is None
            and time.monotonic() < until
            and len(list(out.rglob("*.parquet"))) < pieces_max
        ):
            time.sleep(0.5)
            if kills < 20 and (workers := children_of(process.pid)):
                try:
                    os.kill(draw.choice(workers), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                kills += 1
        left = children_of(process.pid)
        process.kill()
        code = process.wait(60)
        for worker in left:  # They end with their driver.
            while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
                time.sleep(0.02)
            assert not Path(f"/proc/{worker}").exists()
    assert code == 0
    assert kills > 3
    result = run(plan, out)
    assert (result.summary["found"], result.summary["sha256"]) == (40, undisturbed["sha256"])
    assert files_left(out) == files_left(tmp_path / "undisturbed")
    assert not list(out.rglob(".*"))


def test_disk_that_refuses_a_file_fails_its_piece_and_leaves_nothing(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", *BACKFILL]
    result = subprocess.run(
        [*limited, str(plan), "--out", str(out), "--workers", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("failed: ") == 4
    assert "File too large" in result.stderr
    assert files_left(out) == ["_manifest.json"]
    assert run(plan, out).summary["done"] == 4


def test_second_file_with_other_bytes_is_told_and_never_taken(tmp_path: Path) -> None:
    final = tmp_path / "out" / "file"
    with Store(tmp_path / "out") as store:
        first = commit_bytes(b"one", store.out, final)
        assert commit_bytes(b"one", store.out, final) == first
        with pytest.raises(NotTheSame, match="one of the two is wrong"):
            commit_bytes(b"other", store.out, final)
    assert final.read_bytes() == b"one"


def test_verification_finds_a_changed_output(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(plan, out, "--verify", "100%")
    assert result.exit_code == 0
    assert result.summary["verified"]["rows"] == result.summary["rows"]
    changed = piece(out, "bbb", "day1")
    table = parquet.read_table(changed, partitioning=None)
    outputs = table["output_1"].to_pylist()
    outputs[7] += 1e-6
    at = table.schema.get_field_index("output_1")
    changed.unlink()
    parquet.write_table(table.set_column(at, "output_1", arrow.array(outputs, arrow.float32())), changed)
    result = run(plan, out, "--verify", "100%")
    assert result.exit_code == 1
    assert list(result.summary["verified"]["different"]) == ["bbb-day1"]
    assert result.summary["verified"]["different"]["bbb-day1"].startswith("row 7: the file has")


def test_parsed_events_are_read_in_the_place_of_the_source(plan: Path, tmp_path: Path) -> None:
    plain = run(plan, tmp_path / "plain").summary
    plan.write_text(plan.read_text() + 'parsed = "parsed/{symbol}_{date}.parquet"\n')
    assert run(plan, tmp_path / "first").summary["sha256"] == plain["sha256"]
    parsed = tmp_path / "parsed"
    before = {path.name: path.stat().st_mtime_ns for path in parsed.iterdir()}
    assert sorted(before) == [
        f"{symbol}_{day}.parquet" for symbol in ("aaa", "bbb") for day in ("day1", "day2")
    ]
    assert run(plan, tmp_path / "second").summary["sha256"] == plain["sha256"]
    assert {path.name: path.stat().st_mtime_ns for path in parsed.iterdir()} == before
    # Of a source that has changed they are made anew.
    write_capture(tmp_path / "aaa_day1.gz", synthetic_events(99, 5_000, START_NS), "aaa")
    assert run(plan, tmp_path / "third").summary["sha256"] != plain["sha256"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://10.0.0.1:8786", "not on this machine and not encrypted"),
        ("tcp://example.org:8786", "not on this machine and not encrypted"),
        ("tls://10.0.0.1:8786", "needs --tls-ca"),
        ("10.0.0.1", "expected tcp://127.0.0.1:PORT"),
        ("ucx://127.0.0.1:1", "expected tcp://127.0.0.1:PORT"),
    ],
)
def test_scheduler_off_this_machine_must_be_encrypted(address: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        check_address(address, None)


def test_scheduler_on_the_loopback_or_over_tls_is_taken(tmp_path: Path) -> None:
    for address in ("tcp://127.0.0.1:8786", "tcp://localhost:8786", "tcp://[::1]:8786"):
        check_address(address, None)
    check_address("tls://10.0.0.1:8786", Tls(tmp_path, tmp_path, tmp_path))


def _certificates(folder: Path) -> dict[str, Path]:
    """An authority and a certificate that it signed, as a cluster's owner makes them with OpenSSL."""
    made = {"ca-file": folder / "ca.pem", "cert": folder / "node.pem", "key": folder / "node.key"}
    authority_key, request = folder / "ca.key", folder / "node.csr"
    serial = ("-CAcreateserial", "-out", made["cert"])
    fresh = ("-newkey", "rsa:2048", "-nodes", "-subj")
    for arguments in (
        ("req", "-x509", *fresh, "/CN=authority", "-keyout", authority_key, "-out", made["ca-file"]),
        ("req", *fresh, "/CN=node", "-keyout", made["key"], "-out", request),
        ("x509", "-req", "-in", request, "-CA", made["ca-file"], "-CAkey", authority_key, *serial),
    ):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_dask_cluster_writes_the_same_files(plan: Path, tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("distributed", reason="needs Dask: pip install 'sigd[backfill]'")
    if scheme == "tls" and shutil.which("openssl") is None:
        pytest.skip("needs openssl, which makes the certificates")
    files = _certificates(tmp_path) if scheme == "tls" else {}
    local = run(plan, tmp_path / "local").summary
    address_file = tmp_path / "scheduler.json"
    options = ["--host", f"{scheme}://127.0.0.1", "--scheduler-file", str(address_file)]
    options += [word for name, path in files.items() for word in (f"--tls-{name}", str(path))]
    dask = [sys.executable, "-P", "-m"]
    scheduler = subprocess.Popen(
        [*dask, "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", *options],
        stderr=subprocess.DEVNULL,
    )
    worker = subprocess.Popen(
        [*dask, "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard", *options],
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while not address_file.exists() and time.monotonic() < until:
            time.sleep(0.1)
        address = json.loads(address_file.read_text())["address"]
        assert address.startswith(f"{scheme}://127.0.0.1:")
        command = [*BACKFILL, str(plan), "--out", str(tmp_path / "out"), "--scheduler", address, "--json"]
        trust = [w for n, path in files.items() for w in (f"--tls-{n.removesuffix('-file')}", str(path))]
        result = subprocess.run([*command, *trust], capture_output=True, text=True, timeout=120, check=False)
        if scheme == "tls":  # Without its own certificate a driver is refused before it connects.
            refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert (refused.returncode, "needs --tls-ca" in refused.stderr) == (2, True)
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait(30)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["sha256"] == local["sha256"]
