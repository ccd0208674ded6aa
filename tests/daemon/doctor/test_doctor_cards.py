"""The cards: two RTX 3090 with vLLM on both, read through a recorded NVML, good and with each single thing
wrong."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sigd.daemon.doctor import card_errors, card_speed, cards, nvml
from sigd.daemon.doctor.examination import examine_cards
from sigd.daemon.doctor.expect import Expected, cards_expected, is_model, parse
from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.gpus import Card
from sigd.daemon.doctor.host import Host
from sigd.daemon.doctor.nvml import NoCards
from sigd.daemon.errors import UsageError

MakeHost = Callable[..., Host]
MakeError = Callable[[int, str], Exception]
# The fixture `library` stands in for a module, which has no type.
Library = Any

VLLM = "/opt/vllm/bin/python3\0/opt/vllm/bin/vllm\0serve\0Qwen/Qwen3-14B\0--tensor-parallel-size\0002\0"


def examined(
    library: Library, host: Host, expected: Sequence[Expected] = ()
) -> dict[tuple[str, str], Finding]:
    """The findings by subject and check."""
    findings = examine_cards(host, lambda _: library, expected, runtimes={})
    by_name = {(finding.subject, finding.check): finding for finding in findings}
    assert len(by_name) == len(findings)
    return by_name


def test_two_3090_with_vllm_on_both_are_read_and_only_the_neighbour_is_a_warning(
    library: Library, make_host: MakeHost
) -> None:
    host = make_host({"proc/2101/cmdline": VLLM, "dev/kmsg": "6,1,1,-;NVRM: loading\n"})
    findings = examined(library, host, parse("2x RTX 3090"))
    bad = {name: finding for name, finding in findings.items() if finding.level in ("warn", "fail")}
    assert set(bad) == {("GPU 0", "other tenants"), ("GPU 1", "other tenants")}
    tenants = bad["GPU 0", "other tenants"]
    assert tenants.what == "vLLM pid 2101 (19,660 MiB)"
    assert "CUDA_VISIBLE_DEVICES" in tenants.fix[0]
    # The second has no readable command line: the driver's own name for it says as much.
    assert bad["GPU 1", "other tenants"].what == "vLLM pid 2102 (19,660 MiB)"
    assert findings["host", "cards expected"].what == "2x RTX 3090"
    assert findings["host", "driver"].what == "580.95.05, up to CUDA 13.0"
    assert (
        findings["GPU 0", "card"].what == "NVIDIA GeForce RTX 3090, compute capability 8.6, PCI 0000:01:00.0"
    )
    assert findings["GPU 0", "free memory"].what == "4,300 MiB of 24,576 MiB free"
    assert findings["GPU 0", "PCIe"].what == "generation 4 of 4, x8 of x16"
    assert findings["GPU 0", "NVLink"].what == "all 4 links up"
    assert findings["GPU 0", "power limit"].what == "draws 214 W of 350 W (default 350 W)"
    assert findings["GPU 0", "temperature"].what == "61 C, slows down at 95 C"
    assert findings["GPU 0", "Xid"].what == "none in the kernel's log"
    # GeForce RTX 3090 have no error correction: that is no failure.
    assert findings["GPU 0", "ECC"].level == "skip"


SICK: list[tuple[dict[str, Any], str, str, str, str]] = [
    # what the card answers instead, check, level, a word of what is said, a word of the command
    (
        {"nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24576 << 20, free=400 << 20)},
        "free memory",
        "warn",
        "400 MiB of 24,576 MiB free, expected 1,024 MiB; vLLM pid 2101 holds 19,660 MiB",
        "--gpu-memory-utilization",
    ),
    (
        {"nvmlDeviceGetComputeMode": 3},
        "compute mode",
        "fail",
        "exclusive, and another",
        "--compute-mode=DEFAULT",
    ),
    ({"nvmlDeviceGetComputeMode": 2}, "compute mode", "fail", "prohibited", "--compute-mode=DEFAULT"),
    (
        {"nvmlDeviceGetPersistenceMode": 0},
        "persistence mode",
        "warn",
        "off",
        "nvidia-smi -i 0 --persistence-mode=1",
    ),
    (
        {
            "nvmlDeviceGetClockInfo": 210,
            "nvmlDeviceGetPerformanceState": 8,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x1,
        },
        "clocks",
        "warn",
        "210 of 2100 MHz, performance state P8: not locked",
        "--lock-gpu-clocks=1680,1680",
    ),
    (
        {"nvmlDeviceGetCurrPcieLinkGeneration": 1, "nvmlDeviceGetCurrentClocksEventReasons": 0x1},
        "PCIe",
        "warn",
        "generation 1 of 4, x8 of x16: the link is clocked down",
        "lock them (see clocks of GPU 0)",
    ),
    (
        {"nvmlDeviceGetCurrPcieLinkGeneration": 3},
        "PCIe",
        "warn",
        "generation 3 of 4, x8 of x16, at work",
        "lspci -vv",
    ),
    (
        {"nvmlDeviceGetCurrPcieLinkWidth": 4},
        "PCIe",
        "warn",
        "x4 of x16, expected at least x8",
        "lspci -vv -s 0000:01:00.0",
    ),
    ({"nvmlDeviceGetNvLinkState": [1, 1, 0, 1]}, "NVLink", "warn", "3 of 4 links up", "nvlink --status -i 0"),
    (
        {"nvmlDeviceGetPowerUsage": 349_000},
        "power limit",
        "warn",
        "draws 349 W of 350 W",
        "lock a lower clock",
    ),
    (
        {"nvmlDeviceGetPowerManagementLimit": 220_000},
        "power limit",
        "warn",
        "draws 214 W of 220 W (default 350 W)",
        "nvidia-smi -i 0 --power-limit=350",
    ),
    (
        {"nvmlDeviceGetTemperature": 88},
        "temperature",
        "warn",
        "88 C, slows down at 95 C",
        "--power-limit=280",
    ),
    ({"nvmlDeviceGetTemperature": 96}, "temperature", "fail", "96 C", "--query-gpu=fan.speed"),
    (
        {"nvmlDeviceGetCurrentClocksEventReasons": 0x4},
        "throttling",
        "warn",
        "power cap",
        "--display=PERFORMANCE",
    ),
    (
        {"nvmlDeviceGetCurrentClocksEventReasons": 0x48},
        "throttling",
        "fail",
        "hardware slowdown, thermal slowdown by the hardware",
        "--display=PERFORMANCE",
    ),
    (
        {"nvmlDeviceGetEccMode": [1, 1], "nvmlDeviceGetTotalEccErrors": 2},
        "ECC",
        "fail",
        "2 uncorrected errors",
        "--display=ECC",
    ),
]


@pytest.mark.parametrize(("answers", "check", "level", "said", "command"), SICK)
def test_one_thing_wrong_with_one_card_is_told_of_that_card_alone(
    answers: dict[str, Any],
    check: str,
    level: str,
    said: str,
    command: str,
    library: Library,
    make_host: MakeHost,
) -> None:
    library.cards[0].update(answers)
    findings = examined(library, make_host())
    finding = findings["GPU 0", check]
    assert finding.level == level
    assert said in finding.what
    assert finding.why
    assert command in "\n".join(finding.fix)
    assert findings["GPU 1", check].level in ("ok", "skip")
    for line in finding.fix:
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0


def test_what_the_driver_does_not_tell_is_skipped(
    library: Library, make_host: MakeHost, nvml_error: MakeError
) -> None:
    for name in library.cards[0]:
        library.cards[0][name] = [] if name == "nvmlDeviceGetNvLinkState" else nvml_error(3, "Not Supported")
    findings = examined(library, make_host())
    levels = {check: finding.level for (subject, check), finding in findings.items() if subject == "GPU 0"}
    assert set(levels.values()) == {"ok", "skip"}
    assert [check for check, level in levels.items() if level == "ok"] == [
        "card",
        "other tenants",
        "NVLink",
        "placement",
    ]


def test_a_card_that_fell_off_the_bus_fails_and_the_other_is_examined(
    library: Library, make_host: MakeHost, nvml_error: MakeError
) -> None:
    library.cards[0]["nvmlDeviceGetTemperature"] = nvml_error(15, "GPU is lost")
    findings = examined(library, make_host(), parse("2x RTX 3090"))
    lost = findings["GPU 0", "card"]
    assert (lost.level, lost.what) == ("fail", "does not answer: GPU is lost")
    assert findings["host", "cards expected"].level == "fail"
    assert findings["GPU 1", "clocks"].level == "ok"


def test_a_locked_clock_below_the_boost_clock_is_a_locked_clock(
    library: Library, make_host: MakeHost
) -> None:
    library.cards[0].update(nvmlDeviceGetClockInfo=1395, nvmlDeviceGetCurrentClocksEventReasons=0x1)
    assert examined(library, make_host())["GPU 0", "clocks"].what.endswith("held up while idle")


def test_a_clock_that_is_low_because_the_card_is_slowed_down_is_told_once(
    library: Library, make_host: MakeHost
) -> None:
    library.cards[0].update(nvmlDeviceGetClockInfo=900, nvmlDeviceGetCurrentClocksEventReasons=0x40)
    findings = examined(library, make_host())
    assert findings["GPU 0", "clocks"].level == "ok"
    assert findings["GPU 0", "throttling"].level == "fail"


def test_neighbours_are_told_apart(library: Library, make_host: MakeHost) -> None:
    first = library.cards[0]
    first["nvmlDeviceGetComputeRunningProcesses"] = [SimpleNamespace(pid=9, usedGpuMemory=300 << 20)]
    own = examined(library, make_host({"proc/9/cmdline": "/usr/bin/python3\0/opt/sigd/bin/sigd\0serve\0"}))
    assert own["GPU 0", "other tenants"].level == "ok"

    first["nvmlDeviceGetComputeRunningProcesses"] = []
    first["nvmlDeviceGetGraphicsRunningProcesses"] = [SimpleNamespace(pid=8, usedGpuMemory=None)]
    desktop = examined(library, make_host({"proc/8/cmdline": "/usr/lib/xorg/Xorg\0:0\0"}))[
        "GPU 0", "other tenants"
    ]
    assert desktop.what == "Xorg pid 8 (unknown memory)"
    assert "multi-user.target" in desktop.fix[0]

    first["nvmlDeviceGetComputeRunningProcesses"] = [
        SimpleNamespace(pid=7, usedGpuMemory=30 << 20),
        SimpleNamespace(pid=8, usedGpuMemory=1 << 30),
    ]
    shared = examined(
        library,
        make_host({"proc/7/cmdline": "nvidia-cuda-mps-server", "proc/8/cmdline": "python3\0train.py\0"}),
    )["GPU 0", "other tenants"]
    assert shared.what == "python3 pid 8 (1,024 MiB), under MPS"


def test_mps_is_not_advised_to_who_has_it(library: Library, make_host: MakeHost) -> None:
    vllm = {"proc/2101/cmdline": VLLM}
    apart = examined(library, make_host(vllm))["GPU 0", "other tenants"]
    assert any("nvidia-cuda-mps-control" in line for line in apart.fix)
    library.cards[0]["nvmlDeviceGetComputeRunningProcesses"].append(SimpleNamespace(pid=7, usedGpuMemory=0))
    under_mps = examined(library, make_host({**vllm, "proc/7/cmdline": "nvidia-cuda-mps-server"}))
    assert len(under_mps["GPU 0", "other tenants"].fix) == 1


def test_an_exclusive_card_with_only_a_desktop_on_it_can_be_opened(
    library: Library, make_host: MakeHost
) -> None:
    card = library.cards[0]
    card["nvmlDeviceGetGraphicsRunningProcesses"] = card["nvmlDeviceGetComputeRunningProcesses"]
    card.update(nvmlDeviceGetComputeMode=3, nvmlDeviceGetComputeRunningProcesses=[])
    assert examined(library, make_host())["GPU 0", "compute mode"].level == "ok"


def test_a_driver_in_trouble_fails_and_is_closed(
    library: Library, make_host: MakeHost, nvml_error: MakeError
) -> None:
    library.system["nvmlSystemGetDriverVersion"] = nvml_error(999, "Unknown Error")
    finding = examined(library, make_host())["host", "NVML"]
    assert (finding.level, finding.what) == ("fail", "the driver answered: Unknown Error")


def test_a_program_that_only_mentions_sigd_is_a_neighbour(library: Library, make_host: MakeHost) -> None:
    findings = examined(
        library, make_host({"proc/2101/cmdline": "python3\0/home/x/sigd-experiments/train.py\0"})
    )
    assert findings["GPU 0", "other tenants"].level == "warn"


@pytest.mark.parametrize(
    ("number", "level"),
    [(31, "warn"), (13, "warn"), (79, "fail"), (119, "fail")],
)
def test_xid_errors_count_for_their_own_card(
    number: int, level: str, library: Library, make_host: MakeHost
) -> None:
    log = f"3,1,1,-;NVRM: Xid (PCI:0000:02:00): {number}, pid=1, name=x\n" * 2
    findings = examined(library, make_host({"dev/kmsg": log}))
    assert findings["GPU 0", "Xid"].level == "ok"
    assert findings["GPU 1", "Xid"].level == level
    assert findings["GPU 1", "Xid"].what == f"{number} (2 times)"


def test_a_card_far_from_the_cpu_is_told_with_the_cpus_that_are_near(
    library: Library, make_host: MakeHost
) -> None:
    device = "sys/bus/pci/devices/0000:01:00.0"
    far = make_host({f"{device}/numa_node": "1", f"{device}/local_cpulist": "8-15"})
    finding = examined(library, far)["GPU 0", "placement"]
    assert finding.level == "warn"
    assert "8-15" in finding.fix[0]
    near = make_host({f"{device}/numa_node": "0"})
    assert examined(library, near)["GPU 0", "placement"].what == "on node 0, as CPU 6"


FUNCTIONS = {
    "nvmlInit": 0,
    "nvmlShutdown": 0,
    "nvmlSystemGetDriverVersion": 0,
    "nvmlSystemGetCudaDriverVersion_v2": 0,
    "nvmlSystemGetProcessName": 1,
    "nvmlDeviceGetCount": 0,
    "nvmlDeviceGetHandleByIndex": 1,
    "nvmlDeviceGetName": 1,
    "nvmlDeviceGetPciInfo": 1,
    "nvmlDeviceGetCudaComputeCapability": 1,
    "nvmlDeviceGetMemoryInfo": 1,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetComputeMode": 1,
    "nvmlDeviceGetDisplayActive": 1,
    "nvmlDeviceGetClockInfo": 2,
    "nvmlDeviceGetMaxClockInfo": 2,
    "nvmlDeviceGetPerformanceState": 1,
    "nvmlDeviceGetCurrentClocksEventReasons": 1,
    "nvmlDeviceGetCurrPcieLinkGeneration": 1,
    "nvmlDeviceGetMaxPcieLinkGeneration": 1,
    "nvmlDeviceGetCurrPcieLinkWidth": 1,
    "nvmlDeviceGetMaxPcieLinkWidth": 1,
    "nvmlDeviceGetNvLinkState": 2,
    "nvmlDeviceGetPowerUsage": 1,
    "nvmlDeviceGetPowerManagementLimit": 1,
    "nvmlDeviceGetPowerManagementDefaultLimit": 1,
    "nvmlDeviceGetTemperature": 2,
    "nvmlDeviceGetTemperatureThreshold": 2,
    "nvmlDeviceGetEccMode": 1,
    "nvmlDeviceGetTotalEccErrors": 3,
    "nvmlDeviceGetComputeRunningProcesses": 1,
    "nvmlDeviceGetGraphicsRunningProcesses": 1,
}
"""Every function of the library that is called, with its number of arguments."""
CONSTANTS = (
    *nvml.SLOWDOWNS,
    "nvmlClocksEventReasonGpuIdle",
    "NVML_CLOCK_SM",
    "NVML_COMPUTEMODE_PROHIBITED",
    "NVML_COMPUTEMODE_EXCLUSIVE_PROCESS",
    "NVML_NVLINK_MAX_LINKS",
    "NVML_TEMPERATURE_GPU",
    "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN",
    "NVML_MEMORY_ERROR_TYPE_UNCORRECTED",
    "NVML_VOLATILE_ECC",
    "NVML_ERROR_NOT_SUPPORTED",
    "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_NOT_FOUND",
    "NVML_ERROR_INVALID_ARGUMENT",
    "NVML_ERROR_FUNCTION_NOT_FOUND",
    "NVML_ERROR_DRIVER_NOT_LOADED",
    "NVML_ERROR_LIBRARY_NOT_FOUND",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH",
)
"""Every constant of the library that is read."""


def test_every_function_that_is_asked_is_in_the_list_that_the_real_package_is_held_against(
    library: Library, make_host: MakeHost
) -> None:
    examined(library, make_host())
    assert library.asked == set(FUNCTIONS)


def test_the_real_package_has_every_name_as_it_is_used_and_recorded(library: Library) -> None:
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install nvidia-ml-py")
    for name, arguments in {**FUNCTIONS, "nvmlDeviceGetHandleByPciBusId": 1}.items():
        inspect.signature(getattr(pynvml, name)).bind(*range(arguments))
    for name in CONSTANTS:
        if name != "NVML_NVLINK_MAX_LINKS":  # grows with the cards
            assert getattr(pynvml, name) == getattr(library, name), name
    assert issubclass(pynvml.NVMLError, Exception)
    assert pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED).value == library.NVML_ERROR_NOT_SUPPORTED


def test_without_the_package_the_bus_decides_how_bad_that_is(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoCards) as with_card:
        nvml.load(make_host())
    assert with_card.value.finding.level == "warn"
    assert with_card.value.finding.fix == ("pip install nvidia-ml-py",)
    with pytest.raises(NoCards) as without_card:
        nvml.load(make_host({"sys/bus/pci/devices/0000:01:00.0/vendor": "0x1002"}))
    assert without_card.value.finding.level == "skip"


@pytest.mark.parametrize(
    ("code", "vendor", "level", "command"),
    [
        (18, "0x10de", "fail", "sudo reboot"),
        (9, "0x10de", "fail", "ubuntu-drivers install"),
        (12, "0x10de", "fail", "ubuntu-drivers install"),
        (12, "0x1002", "skip", ""),
    ],
)
def test_a_driver_that_does_not_answer(
    code: int,
    vendor: str,
    level: str,
    command: str,
    library: Library,
    make_host: MakeHost,
    nvml_error: MakeError,
) -> None:
    library.system["nvmlInit"] = nvml_error(code, "no")
    host = make_host({"sys/bus/pci/devices/0000:01:00.0/vendor": vendor})
    finding = examined(library, host)["host", "NVML"]
    assert finding.level == level
    assert command in "".join(finding.fix)


def test_cards_that_are_expected_and_cannot_be_asked_are_a_failure(make_host: MakeHost) -> None:
    def none(host: Host) -> Any:
        raise NoCards(Finding("NVML", "skip", "none"))

    findings = examine_cards(make_host(), none, parse("2x RTX 3090"), runtimes={})
    assert [(finding.check, finding.level) for finding in findings] == [
        ("NVML", "skip"),
        ("cards expected", "fail"),
    ]
    assert examine_cards(make_host(), none, runtimes={})[0].level == "skip"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2x RTX 3090", (Expected(2, "RTX 3090"),)),
        ("2 x rtx 3090", (Expected(2, "rtx 3090"),)),
        ("RTX 3090", (Expected(1, "RTX 3090"),)),
        ("1x RTX 3090, 1x RTX A6000", (Expected(1, "RTX 3090"), Expected(1, "RTX A6000"))),
    ],
)
def test_expectations_are_read(text: str, expected: tuple[Expected, ...]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "  ", "0x RTX 3090", "2x RTX 3090,"])
def test_an_expectation_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="2x RTX 3090"):
        parse(text)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("NVIDIA GeForce RTX 3090", True),
        ("NVIDIA GeForce RTX 3090 Ti", False),
        ("NVIDIA GeForce RTX 3090 SUPER", False),
        ("NVIDIA GeForce RTX 309", False),
        ("NVIDIA RTX A6000", False),
    ],
)
def test_a_model_is_not_its_faster_sister(name: str, same: bool) -> None:
    assert is_model(name, "RTX 3090") is same


def test_words_behind_a_model_that_are_no_other_model() -> None:
    assert is_model("NVIDIA H100 80GB HBM3", "H100")


def test_cards_of_another_model_do_not_count() -> None:
    other = Card(0, "NVIDIA GeForce RTX 4090")
    assert cards_expected(parse("1x RTX 3090"), [other])[0].level == "fail"


def test_too_few_cards_fail_and_too_many_do_not() -> None:
    card = Card(0, "NVIDIA GeForce RTX 3090")
    one, two, three = ([card] * count for count in (1, 2, 3))
    levels = [cards_expected(parse("2x RTX 3090"), there)[0].level for there in (one, two, three)]
    assert levels == ["fail", "ok", "ok"]


def test_a_card_of_which_nothing_is_known_breaks_no_check(make_host: MakeHost) -> None:
    card = Card(0)
    assert cards.free_memory(card, 1 << 30).level == "skip"
    assert cards.placement(card, make_host()).level == "ok"
    assert card_errors.driver_errors(card, ["NVRM: Xid (PCI:0000:01:00): 79, x"]).level == "ok"
    assert card_speed.clocks(card).level == "skip"
