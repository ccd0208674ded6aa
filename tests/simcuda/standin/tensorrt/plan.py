"""A plan of the stand-in: a header, then the ONNX model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

_MAGIC = b"STANDIN\0"


@dataclass(frozen=True)
class Plan:
    """What a plan holds.

    Attributes:
        version: of the stand-in that built it.
        compute_capability: of the GPU that it was built on.
        profiles: (min, opt, max) rows of each; empty where the batch is fixed.
        weights_bytes: device memory that the engine takes.
        scratch_bytes: device memory that a context needs.
    """

    onnx: bytes
    version: str
    compute_capability: str
    profiles: tuple[tuple[int, int, int], ...]
    weights_bytes: int
    scratch_bytes: int


def write_plan(plan: Plan) -> bytes:
    """The plan as bytes."""
    header = {name: value for name, value in asdict(plan).items() if name != "onnx"}
    encoded = json.dumps(header).encode()
    return _MAGIC + len(encoded).to_bytes(4, "little") + encoded + plan.onnx


def read_plan(content: bytes) -> Plan:
    """The plan in bytes. Raises ValueError."""
    if content[:8] != _MAGIC:
        raise ValueError("this is not a serialized engine")
    size = int.from_bytes(content[8:12], "little")
    header = json.loads(content[12 : 12 + size])
    header["profiles"] = tuple(tuple(profile) for profile in header["profiles"])
    return Plan(onnx=content[12 + size :], **header)
