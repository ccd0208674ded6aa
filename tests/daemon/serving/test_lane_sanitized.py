"""A lane in C under the thread, address and undefined-behaviour sanitizers, with clients, recalls, swaps and
sessions that come and go: see lane_stress.c. Each answer is checked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.sanitizers import empty_program

from sigd.wire.ring import why_not_here

ROOT = Path(__file__).resolve().parents[3]
SECONDS = "1.5"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not_here()), reason=why_not_here()),
]


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def stress(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stress")
    flags = (
        f"-fsanitize={request.param}",
        "-fno-sanitize-recover=all",
        "-std=gnu11",
        "-g",
        "-O1",
        "-pthread",
    )
    if subprocess.run([empty_program(folder, flags)], capture_output=True, check=False).returncode:
        pytest.skip(f"gcc's -fsanitize={request.param} does not work here")
    program = folder / "lane_stress"
    sources = [Path(__file__).with_name("lane_stress.c"), ROOT / "daemon" / "serving" / "lane.c"]
    include = [f"-I{ROOT / folder}" for folder in ("models/native", "daemon/serving")]
    # A fence of one thread is for another process, which the thread sanitizer does not see.
    quiet = ["-Wno-tsan"] if request.param == "thread" else []
    subprocess.run(["gcc", *flags, *quiet, *include, "-o", str(program), *map(str, sources)], check=True)
    return program


@pytest.mark.parametrize("spin_ns", ["-1", "2000"], ids=["spin", "backoff"])
def test_lane_has_nothing_to_report_and_every_answer_is_right(stress: Path, spin_ns: str) -> None:
    done = subprocess.run(
        [stress, SECONDS, spin_ns], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert " answers, " in done.stdout
