"""Whether an engine fits this machine: its manifest against the runtimes, the driver and the card that are
here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.gpus import Card, Gpus
from sigd.models.errors import BackendUnavailable, ModelRefused

if TYPE_CHECKING:  # NumPy and ONNX come with them, and a check of the machine alone does without
    from sigd.models.engine import Environment
    from sigd.models.manifest import Manifest, RuntimeName

_CUDA_MAJORS: Final = (13, 12)
_DRIVERS: Final = {12: "nvidia:580", 13: "nvidia:580"}
"""For each CUDA major version a driver of Ubuntu 24.04 that runs it."""


@dataclass(frozen=True)
class Runtime:
    """An installed runtime.

    Attributes:
        cuda_major: of the CUDA version that it was made for; None where it needs none.
    """

    version: str
    cuda_major: int | None = None


def installed_runtimes(version_of: Callable[[str], str] = metadata.version) -> dict[RuntimeName, Runtime]:
    """The runtimes whose packages are installed, read without importing any of them.

    Args:
        version_of: the version of a distribution; raises PackageNotFoundError where it is not installed.
    """
    found: dict[RuntimeName, Runtime] = {}
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        version = _version(version_of, distribution)
        if version is not None:
            found["onnxruntime"] = Runtime(version)
    runtimes: tuple[RuntimeName, ...] = ("tensorrt", "tensorrt-rtx")
    for name in runtimes:
        for cuda_major in _CUDA_MAJORS:
            version = _version(version_of, f"{name}-cu{cuda_major}-bindings")
            if version is not None:
                # A packaging release (.post1) holds the library of the release before it.
                found.setdefault(name, Runtime(version.partition(".post")[0], cuda_major))
    return found


def _version(version_of: Callable[[str], str], distribution: str) -> str | None:
    try:
        return version_of(distribution)
    except metadata.PackageNotFoundError:
        return None


def engine_fits(engine: Path, runtimes: dict[RuntimeName, Runtime], card: Card | None) -> Finding:
    """What `sigd serve` would find before it loads the engine: digest, runtime, compute capability, memory.

    Args:
        card: the card that is to run it; None without one.
    """
    from sigd.models.engine import Environment, check_engine, read_manifest

    check = "engine"
    capability = None
    if card is not None and card.compute_capability is not None:
        capability = "{}.{}".format(*card.compute_capability)
    environment = Environment(
        versions={name: runtime.version for name, runtime in runtimes.items()},
        compute_capability=capability,
        gpu=None if card is None else card.name,
        memory_free_bytes=None if card is None else card.memory_free_bytes,
    )
    try:
        check_engine(engine, environment=environment)
    except (ModelRefused, BackendUnavailable) as error:
        return Finding(
            check,
            "fail",
            str(error),
            "sigd serve refuses this engine before it loads it.",
            _mend(engine, environment),
        )
    manifest = read_manifest(engine)
    for_what = (
        f", compute capability {manifest.target.compute_capability}"
        if manifest.target.compute_capability
        else ""
    )
    return Finding(
        check,
        "ok",
        f"{engine}: {manifest.runtime} {manifest.runtime_version}, {manifest.precision}{for_what}",
    )


def _mend(engine: Path, environment: Environment) -> tuple[str, ...]:
    from sigd.models.engine import INSTALL, read_manifest, rebuild_command

    try:
        manifest = read_manifest(engine)
    except ModelRefused:
        return ("sigd build-engine MODEL.onnx",)
    if manifest.runtime not in environment.versions:
        return (INSTALL[manifest.runtime],)
    capability = environment.compute_capability
    if manifest.target.compute_capability is None or capability is None:
        return (rebuild_command(manifest),)
    return (rebuild_command(manifest, {"--compute-capability": capability}),)


def driver_fits(
    gpus: Gpus, runtimes: dict[RuntimeName, Runtime], manifest: Manifest | None = None
) -> Finding:
    """Whether the driver can run the CUDA version that the installed runtimes, or the engine's, were made
    for."""
    check = "driver"
    if gpus.driver is None or gpus.cuda is None:
        return Finding(check, "skip", "the driver does not say which version it is")
    here = f"{gpus.driver}, up to CUDA {gpus.cuda[0]}.{gpus.cuda[1]}"
    for name, runtime in runtimes.items():
        needed = runtime.cuda_major
        used = manifest is None or manifest.runtime == name
        if used and needed is not None and gpus.cuda[0] < needed:
            return Finding(
                check,
                "fail",
                f"{here}; {name} {runtime.version} is made for CUDA {needed}",
                "The runtime cannot start on this driver.",
                (f"sudo ubuntu-drivers install {_DRIVERS[needed]} && sudo reboot",),
            )
    built_with = None if manifest is None else _version_numbers(manifest.target.driver)
    if built_with is not None and gpus.cuda < built_with:
        return Finding(
            check,
            "warn",
            f"{here}; the engine was built beside a driver for CUDA {built_with[0]}.{built_with[1]}",
            "An older driver may compile parts of the engine anew at start or run other code for them than"
            " was"
            " measured.",
            ("sudo ubuntu-drivers install && sudo reboot",),
        )
    return Finding(check, "ok", here)


def _version_numbers(text: str | None) -> tuple[int, int] | None:
    """ "13.0" as (13, 0); None where it is not known."""
    parts = (text or "").split(".")
    return (
        (int(parts[0]), int(parts[1]))
        if len(parts) >= 2 and all(part.isdecimal() for part in parts[:2])
        else None
    )


def manifest_of(engine: Path) -> Manifest | None:
    """The engine's manifest; None where there is none to read, which `engine_fits` then reports."""
    from sigd.models.engine import read_manifest

    try:
        return read_manifest(engine)
    except ModelRefused:
        return None


def needed_bytes(manifest: Manifest) -> int:
    """What the engine takes of the card's memory beside the CUDA context: its weights and one execution."""
    return manifest.plan.size_bytes + (manifest.target.device_memory_bytes or 0)


def first_card(cards: Sequence[Card]) -> Card | None:
    """The card that the daemon uses: the first."""
    return next((card for card in cards if card.lost is None), None)
