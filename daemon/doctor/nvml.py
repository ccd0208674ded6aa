"""The graphics cards as NVML tells it: one reading of everything, which the checks then judge.

What NVML has no answer for is None; see `Nvml.ask`.
"""

from __future__ import annotations

from typing import Any, Final

from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.gpus import Card, Gpus, Tenant
from sigd.daemon.doctor.host import Host
from sigd.models.gpu import nvml
from sigd.models.gpu.nvml import Nvml

SLOWDOWNS: Final = {
    "nvmlClocksEventReasonSwPowerCap": "power cap",
    "nvmlClocksEventReasonSwThermalSlowdown": "thermal slowdown by the driver",
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "thermal slowdown by the hardware",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake (power supply)",
}
"""The library's constant for each reason that a card runs slower than it is asked to, and our word for it."""


class NoCards(Exception):
    """NVML cannot be asked.

    Attributes:
        finding: what to report for it.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding


def load(host: Host) -> Any:
    """The module `pynvml`.

    Raises:
        NoCards: it is not installed.
    """
    try:
        return nvml.load()
    except ImportError:
        raise NoCards(_no_package(host)) from None


def _no_package(host: Host) -> Finding:
    what = "the package nvidia-ml-py is not installed"
    if not has_nvidia_card(host):
        return Finding("NVML", "skip", f"no NVIDIA card on the PCI bus, and {what}")
    return Finding(
        "NVML",
        "warn",
        f"there is an NVIDIA card, and {what}",
        "Nothing can be said about the card: its clocks, its memory, its other tenants.",
        ("pip install nvidia-ml-py",),
    )


def read(library: Any, host: Host) -> Gpus:
    """Everything that the checks want to know, read once. Changes nothing on any card.

    Args:
        library: the module `pynvml`, or what stands in for it.
        host: where the command lines of the processes on the cards are read.

    Raises:
        NoCards: there is no driver, or it does not answer.
    """
    try:
        session = Nvml(library)
    except library.NVMLError as error:
        raise NoCards(_no_driver(library, error, host)) from None
    try:
        with session:
            reader = _Reader(session, host)
            cuda = session.ask("nvmlSystemGetCudaDriverVersion_v2")
            cards = tuple(reader.card(index) for index in range(session.call("nvmlDeviceGetCount")))
            return Gpus(
                driver=session.ask("nvmlSystemGetDriverVersion"),
                cuda=None if cuda is None else (cuda // 1000, cuda % 1000 // 10),
                cards=cards,
            )
    except library.NVMLError as error:
        raise NoCards(
            Finding(
                "NVML",
                "fail",
                f"the driver answered: {error}",
                "A driver that does not say which cards it has will not run a model on one.",
                ("sudo dmesg | grep -i nvrm",),
            )
        ) from None


def _no_driver(library: Any, error: Any, host: Host) -> Finding:
    if error.value == library.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return Finding(
            "NVML",
            "fail",
            "the driver in the kernel is of another version than its libraries (an update without a reboot)",
            "No process can open a card until both are of one version.",
            ("sudo reboot",),
        )
    if not has_nvidia_card(host):
        return Finding("NVML", "skip", f"no NVIDIA card on the PCI bus ({error})")
    return Finding(
        "NVML",
        "fail",
        f"there is an NVIDIA card, but its driver is not loaded: {error}",
        "Without the driver the model runs on the CPU or not at all.",
        ("sudo ubuntu-drivers install && sudo reboot", "# already installed? sudo dmesg | grep -i nvidia"),
    )


def has_nvidia_card(host: Host) -> bool:
    """Whether the PCI bus holds a display or 3D controller (class 03) of NVIDIA (vendor 10de)."""
    devices = "sys/bus/pci/devices"
    return any(
        host.read(f"{devices}/{name}/vendor") == "0x10de"
        and (host.read(f"{devices}/{name}/class") or "").startswith("0x03")
        for name in host.names(devices)
    )


class _Reader:
    """Asks the library, and turns its answers into plain values."""

    def __init__(self, session: Nvml, host: Host) -> None:
        self._session = session
        self._library = session.library
        self._host = host

    def card(self, index: int) -> Card:
        """All of one card."""
        try:
            handle = self._session.call("nvmlDeviceGetHandleByIndex", index)
            return self._whole_card(index, handle)
        except self._library.NVMLError as error:
            return Card(index, lost=str(error))

    def _whole_card(self, index: int, handle: Any) -> Card:
        library = self._library

        def of(function: str, *arguments: Any) -> Any:
            return self._session.ask(function, handle, *arguments)

        memory = of("nvmlDeviceGetMemoryInfo")
        reasons = of("nvmlDeviceGetCurrentClocksEventReasons")
        ecc = of("nvmlDeviceGetEccMode")
        capability = of("nvmlDeviceGetCudaComputeCapability")
        return Card(
            index=index,
            name=of("nvmlDeviceGetName") or "an unnamed card",
            bus_id=_bus_id(of("nvmlDeviceGetPciInfo")),
            compute_capability=None if capability is None else (capability[0], capability[1]),
            memory_total_bytes=None if memory is None else memory.total,
            memory_free_bytes=None if memory is None else memory.free,
            persistence=_truth(of("nvmlDeviceGetPersistenceMode")),
            compute_mode=self._compute_mode(of("nvmlDeviceGetComputeMode")),
            display=_truth(of("nvmlDeviceGetDisplayActive")),
            sm_clock_mhz=of("nvmlDeviceGetClockInfo", library.NVML_CLOCK_SM),
            sm_clock_max_mhz=of("nvmlDeviceGetMaxClockInfo", library.NVML_CLOCK_SM),
            performance_state=of("nvmlDeviceGetPerformanceState"),
            slowdowns=None if reasons is None else self._slowdowns(reasons),
            idle=None if reasons is None else bool(reasons & library.nvmlClocksEventReasonGpuIdle),
            pcie_generation=of("nvmlDeviceGetCurrPcieLinkGeneration"),
            pcie_generation_max=of("nvmlDeviceGetMaxPcieLinkGeneration"),
            pcie_width=of("nvmlDeviceGetCurrPcieLinkWidth"),
            pcie_width_max=of("nvmlDeviceGetMaxPcieLinkWidth"),
            nvlinks=self._nvlinks(handle),
            power_w=_watts(of("nvmlDeviceGetPowerUsage")),
            power_limit_w=_watts(of("nvmlDeviceGetPowerManagementLimit")),
            power_limit_default_w=_watts(of("nvmlDeviceGetPowerManagementDefaultLimit")),
            temperature_c=of("nvmlDeviceGetTemperature", library.NVML_TEMPERATURE_GPU),
            slowdown_c=of("nvmlDeviceGetTemperatureThreshold", library.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
            ecc=None if ecc is None else bool(ecc[0]),
            ecc_uncorrected=of(
                "nvmlDeviceGetTotalEccErrors",
                library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                library.NVML_VOLATILE_ECC,
            ),
            tenants=self._tenants(handle),
        )

    def _compute_mode(self, mode: int | None) -> str | None:
        if mode is None:
            return None
        names = {
            self._library.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
            self._library.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive",
        }
        return names.get(mode, "default")

    def _slowdowns(self, reasons: int) -> tuple[str, ...]:
        return tuple(word for name, word in SLOWDOWNS.items() if reasons & getattr(self._library, name))

    def _nvlinks(self, handle: Any) -> tuple[bool, ...]:
        states = []
        for link in range(self._library.NVML_NVLINK_MAX_LINKS):
            state = self._session.ask("nvmlDeviceGetNvLinkState", handle, link)
            if state is None:  # the card has no more links
                break
            states.append(bool(state))
        return tuple(states)

    def _tenants(self, handle: Any) -> tuple[Tenant, ...]:
        """Each process once; one that computes and draws counts as computing."""
        by_pid: dict[int, Tenant] = {}
        for function, graphics in (
            ("nvmlDeviceGetGraphicsRunningProcesses", True),
            ("nvmlDeviceGetComputeRunningProcesses", False),
        ):
            for process in self._session.ask(function, handle) or ():
                by_pid[process.pid] = Tenant(
                    process.pid, self._program(process.pid), process.usedGpuMemory, graphics
                )
        return tuple(by_pid.values())

    def _program(self, pid: int) -> str:
        """Separated by blanks, as `ps` shows it."""
        command_line = (self._host.read(f"proc/{pid}/cmdline") or "").replace("\0", " ").strip()
        name: str | None = command_line or self._session.ask("nvmlSystemGetProcessName", pid)
        return name or "unknown"


def _bus_id(pci: Any) -> str:
    """ "00000000:01:00.0" of NVML as the kernel writes it: a domain of four digits, lower case."""
    if pci is None:
        return ""
    bus_id = pci.busId.decode() if isinstance(pci.busId, bytes) else pci.busId
    domain, _, rest = bus_id.lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def _truth(state: int | None) -> bool | None:
    return None if state is None else bool(state)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
