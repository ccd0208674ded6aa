"""The graphics cards at one moment, as plain values: what `nvml` reads and the checks judge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tenant:
    """A process that has a context on a card.

    Attributes:
        program: its command line where it may be read, else the name that the driver has.
        memory_bytes: what it holds of the card's memory; None where the driver does not say.
        graphics: a display server or the like, not a computation.
    """

    pid: int
    program: str
    memory_bytes: int | None
    graphics: bool


@dataclass(frozen=True)
class Card:
    """One card at one moment. None is what it does not tell.

    Attributes:
        bus_id: where it is on the PCI bus, in the kernel's form, for example "0000:01:00.0".
        compute_mode: "prohibited", "exclusive" or "default".
        slowdowns: why it runs slower than it is asked to, in the words of `nvml.SLOWDOWNS`.
        idle: the driver says that the clocks are down because nothing runs.
        nvlinks: for each link whether it is up; empty where the card has none.
        ecc: whether memory errors are corrected.
        ecc_uncorrected: errors since the driver was loaded that could not be.
        lost: the driver's words where the card no longer answers; all else is then None.
    """

    index: int
    name: str = "a card that does not answer"
    bus_id: str = ""
    compute_capability: tuple[int, int] | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    persistence: bool | None = None
    compute_mode: str | None = None
    display: bool | None = None
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    performance_state: int | None = None
    slowdowns: tuple[str, ...] | None = None
    idle: bool | None = None
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    nvlinks: tuple[bool, ...] = ()
    power_w: float | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    temperature_c: int | None = None
    slowdown_c: int | None = None
    ecc: bool | None = None
    ecc_uncorrected: int | None = None
    tenants: tuple[Tenant, ...] = ()
    lost: str | None = None


@dataclass(frozen=True)
class Gpus:
    """All cards and what drives them.

    Attributes:
        driver: the driver's version, for example "580.95.05".
        cuda: the newest CUDA version that the driver can run, as (major, minor).
    """

    driver: str | None
    cuda: tuple[int, int] | None
    cards: tuple[Card, ...]
