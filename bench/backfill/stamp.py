"""What decides the bits of an output: model, runtime, processor, features, sigd and the plan's own settings.

Pieces of unequal stamps are never put into one output directory.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
from pathlib import Path

import msgspec

from sigd import __version__
from sigd.models.backend import Backend
from sigd.models.features.catalogue import FEATURE_VERSION
from sigd.models.processor import instruction_sets


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """Equal stamps and equal inputs give equal bytes.

    Attributes:
        model, model_sha256: the model's file name, and its digest as `sigd inspect` shows it.
        backend, runtime: what runs the model, for example "onnxruntime 1.32.0".
        processor: architecture and instruction sets; answers may depend on them.
        feature_version: of the catalogue.
        features_sha256: of the sources that compute the features and read the markets.
        sigd: its version.
        backfill_sha256: of the sources of the backfill itself.
        writer: what writes the files.
        state: how the features of a piece begin.
        horizon_ns, flat_bps: what is asked of the market after each row.
    """

    model: str
    model_sha256: str
    backend: str
    runtime: str
    processor: str
    feature_version: int
    features_sha256: str
    sigd: str
    backfill_sha256: str
    writer: str
    state: str
    horizon_ns: int
    flat_bps: float

    def differences(self, other: Stamp) -> list[str]:
        """What differs, one line each: "name: this, other"."""
        return [
            f"{name}: {mine}, {others}"
            for name in self.__struct_fields__
            if (mine := getattr(self, name)) != (others := getattr(other, name))
        ]

    @property
    def sha256(self) -> str:
        """Of all of it, in hex."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


def stamp_here(backend: Backend, *, state: str, horizon_ns: int, flat_bps: float) -> Stamp:
    """The stamp that this process would work under. `backend` is open."""
    return Stamp(
        model=backend.spec.path.name,
        model_sha256=backend.spec.sha256.hex(),
        backend=backend.name,
        runtime=f"onnxruntime {importlib.metadata.version('onnxruntime')}",
        processor=instruction_sets(),
        feature_version=FEATURE_VERSION,
        features_sha256=_sources_sha256("sigd.models.features", "sigd.models.market"),
        sigd=__version__,
        backfill_sha256=_sources_sha256("sigd.bench.backfill"),
        writer=f"pyarrow {importlib.metadata.version('pyarrow')}",
        state=state,
        horizon_ns=horizon_ns,
        flat_bps=flat_bps,
    )


def _sources_sha256(*packages: str) -> str:
    digest = hashlib.sha256()
    for package in packages:
        root = Path(str(importlib.resources.files(package)))
        for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".c", ".h")):
            digest.update(f"{package}/{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
