"""The service that `sigd plan --vllm` writes: memory in bytes, no core of sigd's, nothing that systemd
refuses."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from sigd.bench.plan import machine, placement, serving, vllm
from sigd.bench.plan.errors import BadMachine
from sigd.bench.plan.machine import Machine
from sigd.bench.plan.memory import MIB

WORKSTATION = Path(__file__).resolve().parents[3] / "docs" / "workstation"


def recommended() -> Machine:
    return machine.read(WORKSTATION / "recommended.toml")


def with_first_work(**changes: object) -> Machine:
    base = recommended()
    work = msgspec.structs.replace(base.work[0], **changes)
    return msgspec.structs.replace(base, work=(work,))


def test_the_recommendation_follows_from_the_numbers() -> None:
    """The largest model on the card that sigd leaves free is the one that the recommended file serves."""
    planned = machine.read(WORKSTATION / "machine.toml")
    place = placement.recommended(planned)
    assert place is not None
    served = recommended().work[0]
    assert served.served
    assert (place.work.model, place.work.weights, place.work.cards) == (
        served.model,
        served.weights,
        served.cards,
    )
    assert placement.capped(planned).limit_w(0) == recommended().limit_w(0)


def test_the_model_has_the_cards_that_sigd_leaves_free() -> None:
    service = vllm.service(recommended())
    assert "CUDA_VISIBLE_DEVICES=1\n" in service.environment
    assert "--disable-custom-all-reduce" in service.unit
    assert "NCCL_P2P_DISABLE=1" in service.environment


def test_the_cache_is_what_is_left_where_everything_else_takes_its_most() -> None:
    base = recommended()
    fit = serving.fit(base, base.work[0])
    others = sum(need.high for name, need in fit.items if name != "cache")
    service = vllm.service(base)
    assert service.cache_bytes % MIB == 0
    assert 0 <= fit.limit.low - others - service.cache_bytes < MIB
    assert f"--kv-cache-memory-bytes {service.cache_bytes} " in service.unit


def test_no_core_of_sigd() -> None:
    found = re.search(r"CPUAffinity=(.*)", vllm.service(recommended()).unit)
    assert found is not None
    cpus: set[int] = set()
    for part in found[1].split():
        first, _, last = part.partition("-")
        cpus |= set(range(int(first), int(last or first) + 1))
    assert cpus == set(range(24)) - {11, 23}


def test_over_both_cards_with_a_bridge() -> None:
    both = with_first_work(cards=(0, 1), model="llama-3.1-70b", sharing="stopped", checkpoint="")
    service = vllm.service(msgspec.structs.replace(both, nvlink=True))
    assert "--tensor-parallel-size 2" in service.unit
    assert "--disable-custom-all-reduce" not in service.unit
    assert "NCCL_P2P_DISABLE" not in service.environment
    assert "CUDA_VISIBLE_DEVICES=0,1\n" in service.environment


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "llama-3.1-70b"}, "does not fit for certain"),
        ({"weights": "int8", "model": "llama-3.1-8b", "checkpoint": ""}, "vLLM does not quantise"),
    ],
)
def test_a_service_that_would_not_start_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadMachine, match=said):
        vllm.service(with_first_work(**changes))


def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze: apt-get install systemd")
    unit = tmp_path / "vllm.service"
    unit.write_text(vllm.service(recommended(), binary="/bin/true").unit)
    done = subprocess.run(
        [program, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in done.stderr.splitlines() if "vllm" in line]
    assert (done.returncode, said) == (0, [])
