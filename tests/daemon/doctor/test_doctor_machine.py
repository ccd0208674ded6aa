"""`sigd doctor --machine`: a recorded pair of RTX 3090 against the plan's description of the machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from sigd.bench.plan.expectations import expectations, expectations_json
from sigd.bench.plan.machine import read
from sigd.daemon.commands.doctor import doctor
from sigd.daemon.doctor import bandwidth, machine_cards, machine_host
from sigd.daemon.doctor.bandwidth import Measured
from sigd.daemon.doctor.commands import run
from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.host import Host
from sigd.daemon.doctor.machine import Machine, examine_machine
from sigd.daemon.doctor.nvml import NoCards
from sigd.daemon.errors import UsageError

MakeHost = Callable[..., Host]
RECOMMENDED = Path(__file__).resolve().parents[3] / "docs" / "workstation" / "recommended.toml"
TOPOLOGY = (
    "\t\x1b[4mGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tPHB\t0-15\t0\t\tN/A\n"
    "GPU1\tPHB\t X \t0-15\t0\t\tN/A\n"
    "\n"
    "Legend:\n\n"
    "  X    = Self\n"
    "  NV#  = Connection traversing a bonded set of # NVLinks\n"
)
IPERF = json.dumps({"end": {"sum_received": {"bits_per_second": 9.89e9}}})
WORKSTATION = {
    "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda2 iommu=pt",
    "sys/class/iommu/ivhd0/amd-iommu/version": "0x40",
    "sys/bus/pci/devices/0000:01:00.0/iommu_group/type": "identity",
    "sys/class/nvme/nvme0/model": "Samsung SSD 990 PRO 2TB",
    "sys/class/nvme/nvme0/device/current_link_width": "4",
    "sys/class/nvme/nvme0/device/max_link_width": "4",
    "sys/class/nvme/nvme0/device/current_link_speed": "16.0 GT/s PCIe",
    "sys/class/net/enp5s0/speed": "10000",
    "sys/class/net/enp5s0/mtu": "9000",
    "sys/class/net/enp5s0/device/vendor": "0x8086",
    "sys/class/net/lo/mtu": "65536",
    "usr/bin/iperf3": "#!/bin/sh\n",
}


def recommended() -> Machine:
    return msgspec.json.decode(expectations_json(RECOMMENDED), type=Machine)


def answers(command: Sequence[str], _timeout_s: float) -> str | None:
    """The recorded machine's programs."""
    if command[0] == "nvidia-smi":
        return TOPOLOGY
    return IPERF if command[0] == "iperf3" else "2\n"


def copies(_index: int) -> Measured | str:
    return Measured(812.0)


def by_check(findings: Sequence[Finding]) -> dict[tuple[str, str], Finding]:
    return {(finding.subject, finding.check): finding for finding in findings}


def prepared(library: Any) -> Any:
    """The recorded cards as the plan wants them: 240 W each, and memory that sigd and vLLM hold."""
    for card in library.cards:
        card["nvmlDeviceGetPowerManagementLimit"] = 240_000
    library.cards[0]["nvmlDeviceGetMemoryInfo"] = SimpleNamespace(total=24576 << 20, free=23_000 << 20)
    return library


def test_the_machine_as_planned_has_nothing_wrong(library: Any, make_host: MakeHost) -> None:
    prepared(library)
    found = examine_machine(
        make_host(WORKSTATION),
        recommended(),
        load=lambda _: library,
        command=answers,
        copy=copies,
        far_end="mac.local",
    )
    wrong = [finding for finding in found if finding.level != "ok" and finding.check != "PyTorch"]
    assert wrong == []
    assert len(found) == 1 + 2 * 4 + 1 + 5
    # Each line has what was expected.
    assert all("expected" in finding.what or finding.check == "cards expected" for finding in found)


def test_every_check_skips_and_says_why_without_a_card(make_host: MakeHost) -> None:
    def load(_host: Host) -> Any:
        raise NoCards(Finding("NVML", "skip", "the package nvidia-ml-py is not installed"))

    bare = make_host({"sys/bus/pci/devices/0000:01:00.0/class": None})
    found = examine_machine(bare, recommended(), load=load, command=lambda *_: None, copy=copies)
    of_cards = [finding for finding in found if "nvidia-ml-py" in finding.what]
    assert {finding.check for finding in of_cards} == {
        "cards expected",
        "power limit",
        "lanes",
        "room",
        "bandwidth",
        "topology",
    }
    assert {finding.level for finding in found} <= {"skip", "ok"}
    skipped = {finding.check: finding.what for finding in found if finding.level == "skip"}
    assert "240 W" in skipped["power limit"]
    assert "no NVMe" in skipped["NVMe"]
    assert "no port" in skipped["10GbE"]
    assert "iperf3 is not installed" in skipped["payload"]


@pytest.mark.parametrize(
    ("changes", "check", "level", "said"),
    [
        (
            {"nvmlDeviceGetPowerManagementLimit": 350_000},
            "planned power limit",
            "fail",
            "350 W, expected 240",
        ),
        (
            {"nvmlDeviceGetPowerManagementLimit": 200_000},
            "planned power limit",
            "warn",
            "200 W, expected 240",
        ),
        ({"nvmlDeviceGetCurrPcieLinkWidth": 4}, "planned lanes", "fail", "x4 of generation 4, expected x8"),
        ({"nvmlDeviceGetCurrPcieLinkGeneration": 3}, "planned lanes", "fail", "generation 3, expected"),
        (
            {"nvmlDeviceGetCurrPcieLinkGeneration": 1, "nvmlDeviceGetCurrentClocksEventReasons": 1},
            "planned lanes",
            "ok",
            "while the card idles",
        ),
        (
            {"nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24576 << 20, free=100 << 20)},
            "planned memory",
            "fail",
            "0.1 GiB free",
        ),
    ],
)
def test_a_card_that_is_not_as_planned(
    library: Any, make_host: MakeHost, changes: dict[str, Any], check: str, level: str, said: str
) -> None:
    prepared(library)
    library.cards[1].update(changes)
    library.cards[1]["nvmlDeviceGetComputeRunningProcesses"] = []
    found = examine_machine(
        make_host(WORKSTATION), recommended(), load=lambda _: library, command=answers, copy=copies
    )
    finding = by_check(found)["GPU 1", check]
    assert (finding.level, said in finding.what) == (level, True), finding
    assert level == "ok" or finding.fix


def test_a_missing_card_fails(library: Any, make_host: MakeHost) -> None:
    prepared(library)
    del library.cards[1]
    found = examine_machine(
        make_host(WORKSTATION), recommended(), load=lambda _: library, command=answers, copy=copies
    )
    assert by_check(found)["machine", "cards expected"].level == "fail"


def test_slow_memory_is_a_warning_and_no_measurement_is_none(library: Any, make_host: MakeHost) -> None:
    prepared(library)
    measured: dict[int, Measured | str] = {0: Measured(600.0), 1: "the driver refused: it is busy"}
    found = by_check(
        examine_machine(
            make_host(WORKSTATION),
            recommended(),
            load=lambda _: library,
            command=answers,
            copy=measured.__getitem__,
        )
    )
    assert found["GPU 0", "memory bandwidth"].level == "warn"
    assert "600 GB/s measured, expected 749" in found["GPU 0", "memory bandwidth"].what
    assert found["GPU 1", "memory bandwidth"].level == "skip"
    assert "it is busy" in found["GPU 1", "memory bandwidth"].what


@pytest.mark.parametrize(
    ("changes", "check", "level"),
    [
        ({"sys/bus/pci/devices/0000:01:00.0/iommu_group/type": "DMA-FQ"}, "IOMMU", "warn"),
        ({"sys/class/iommu/ivhd0/amd-iommu/version": None}, "IOMMU", "ok"),
        ({"sys/class/nvme/nvme0/model": "WD_BLACK SN850X"}, "NVMe", "warn"),
        ({"sys/class/nvme/nvme0/device/current_link_width": "2"}, "NVMe", "warn"),
        ({"sys/class/net/enp5s0/speed": "1000"}, "10GbE", "fail"),
        ({"sys/class/net/enp5s0/speed": "-1"}, "10GbE", "fail"),
        ({"sys/class/net/enp5s0/mtu": "1500"}, "10GbE", "warn"),
    ],
)
def test_a_host_that_is_not_as_planned(
    library: Any, make_host: MakeHost, changes: dict[str, str | None], check: str, level: str
) -> None:
    prepared(library)
    host = make_host({**WORKSTATION, **changes})
    found = examine_machine(host, recommended(), load=lambda _: library, command=answers, copy=copies)
    assert by_check(found)["machine", check].level == level


def test_topology_of_recorded_outputs() -> None:
    assert machine_cards.between_cards(TOPOLOGY) == {(0, 1): "PHB", (1, 0): "PHB"}
    bridged = TOPOLOGY.replace("PHB", "NV4")
    assert machine_cards.topology(lambda *_: bridged, 2, True).level == "ok"
    missing = machine_cards.topology(lambda *_: TOPOLOGY, 2, True)
    assert (missing.level, missing.what) == ("fail", "PHB, expected NV4 between the cards")
    far = machine_cards.topology(lambda *_: TOPOLOGY.replace("PHB", "SYS"), 2, False)
    assert far.level == "warn"
    network = (
        "        GPU0    GPU1    NIC0    CPU Affinity    NUMA Affinity   GPU NUMA ID\n"
        "GPU0     X      NODE    PHB     0-15    0               N/A\n"
        "GPU1    NODE     X      NODE    0-15    0               N/A\n"
        "NIC0    PHB     NODE     X\n"
    )
    assert machine_cards.between_cards(network) == {(0, 1): "NODE", (1, 0): "NODE"}
    assert machine_cards.topology(lambda *_: None, 2, False).level == "skip"
    assert machine_cards.topology(lambda *_: "No devices were found\n", 2, False).level == "skip"


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"end": {}}', '{"end": {"sum_received": null}}', "error - refused"]
)
def test_iperf_without_a_result(text: str) -> None:
    assert machine_host.received_gbit_s(text) is None


def test_iperf_is_judged(make_host: MakeHost) -> None:
    network = recommended().network
    host = make_host(WORKSTATION)
    assert machine_host.received_gbit_s(IPERF) == pytest.approx(9.89)
    assert machine_host.throughput(host, lambda *_: IPERF, network, "mac").level == "ok"
    slow = IPERF.replace("9890000000.0", "4100000000.0")
    assert machine_host.throughput(host, lambda *_: slow, network, "mac").level == "warn"
    assert machine_host.throughput(host, lambda *_: None, network, "mac").level == "skip"
    assert "--far-end" in machine_host.throughput(host, answers, network, None).what


def test_pytorch_only_counts() -> None:
    assert machine_host.torch_devices(lambda *_: "2\n", 2, installed=True).level == "ok"
    assert machine_host.torch_devices(lambda *_: "1\n", 2, installed=True).level == "warn"
    assert machine_host.torch_devices(lambda *_: None, 2, installed=True).level == "skip"
    counted = machine_host.torch_devices(lambda *_: "2\n", 2, installed=True)
    assert "shows no exchange" in counted.what
    assert machine_host.torch_devices(answers, 2, installed=False).level == "skip"


def test_expectations_follow_the_plan() -> None:
    found = expectations(read(RECOMMENDED))
    first, second = recommended().cards
    assert (first.limit_w, first.lanes, first.generation) == (240, 8, 4)
    assert first.needed_bytes < 1 << 30 < 20 << 30 < second.needed_bytes
    assert found["drive"] == "990 Pro"


def test_a_program_that_fails_or_hangs_says_nothing() -> None:
    assert run(("sh", "-c", "echo good"), 10.0) == "good\n"
    assert run(("sh", "-c", "echo bad; exit 3"), 10.0) is None
    assert run(("/no/such/program",), 10.0) is None
    assert run(("sleep", "60"), 0.05) is None


def test_bandwidth_without_the_package() -> None:
    def missing() -> Any:
        raise ImportError

    assert "cuda-bindings is not installed" in str(bandwidth.measure(0, missing))


class RecordedDriver:
    """Stands in for `cuda.bindings.driver`: two cards that CUDA numbers against the bus, 7.17 ms for the
    copies."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.used: list[int] = []
        self.held: set[object] = set()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if name == self.failing:
                return (2,)
            return self._answer(name, arguments)

        return call

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        match name:
            case "cuDeviceGetCount":
                return 0, 2
            case "cuDeviceGet":
                return 0, arguments[0]
            case "cuDeviceGetPCIBusId":
                return 0, (b"0000:02:00.0" if arguments[1] == 0 else b"0000:01:00.0") + b"\0" * 20
            case "cuDevicePrimaryCtxRetain":
                self.used.append(arguments[0])
                return 0, "context"
            case "cuMemAlloc" | "cuEventCreate":
                held = object()
                self.held.add(held)
                return 0, held
            case "cuMemFree" | "cuEventDestroy":
                self.held.remove(arguments[0])
            case "cuEventElapsedTime":
                return 0, 13.22
        return (0,)


def test_bandwidth_counts_reading_and_writing() -> None:
    driver = RecordedDriver()
    measured = bandwidth.measure(0, lambda: driver)
    assert isinstance(measured, Measured)
    assert measured.gb_s == pytest.approx(2 * 256 * 2**20 * 20 / 13.22e-3 / 1e9)
    # The first along the bus is the second of CUDA.
    assert driver.used == [1]
    assert driver.held == set()
    assert "shows 2 cards" in str(bandwidth.measure(2, lambda: driver))


@pytest.mark.parametrize("failing", ["cuInit", "cuMemAlloc", "cuMemcpyDtoDAsync", "cuEventSynchronize"])
def test_bandwidth_that_the_driver_refuses_frees_everything(failing: str) -> None:
    driver = RecordedDriver(failing)
    assert str(bandwidth.measure(0, lambda: driver)).startswith("the driver refused")
    assert driver.held == set()


def test_the_command_refuses_what_is_no_machine(tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text('name = "x"\n')
    with pytest.raises(UsageError, match=r"machine\.toml"):
        CliRunner().invoke(doctor, ["--machine", str(path)], catch_exceptions=False)
    with pytest.raises(UsageError, match="--far-end"):
        CliRunner().invoke(doctor, ["--far-end", "mac"], catch_exceptions=False)


def test_the_command_lists_the_machine() -> None:
    result = CliRunner().invoke(doctor, ["--json", "--machine", str(RECOMMENDED)], catch_exceptions=False)
    checks = {
        finding["check"]
        for finding in json.loads(result.output)["findings"]
        if finding["subject"] == "machine"
    }
    assert {"IOMMU", "NVMe", "10GbE", "payload", "PyTorch"} <= checks
