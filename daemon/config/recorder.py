"""What of the flight recorder can be set."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from sigd.wire.recording.format import stretch_bytes_in

_MIB_BYTES = 1 << 20


class RecorderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table [recorder] of the configuration.

    Attributes:
        directory: where recordings go; "" records nothing.
        segment_mib: how much goes into one file.
        total_mib: how much all files of the directory may take; then the oldest are deleted.
        ring_mib: memory for what is not on disk yet: what comes while the disk does not keep up.
        sync_ms: how often what is written is forced to the disk; 0 leaves that to the kernel.
    """

    directory: str = ""
    segment_mib: Annotated[int, Meta(ge=1, le=65_536)] = 64
    total_mib: Annotated[int, Meta(ge=2, le=1 << 30)] = 1024
    ring_mib: Annotated[int, Meta(ge=1, le=4096)] = 32
    sync_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 1000

    @property
    def stretch_bytes(self) -> int:
        """Of the stream in one segment, which is a little larger."""
        return stretch_bytes_in(self.segment_mib * _MIB_BYTES)

    @property
    def total_bytes(self) -> int:
        """Of all segments in the directory."""
        return self.total_mib * _MIB_BYTES

    @property
    def ring_bytes(self) -> int:
        """The ring's capacity."""
        return self.ring_mib * _MIB_BYTES

    def wrong(self) -> str:
        """What of it does not fit together; empty where all does."""
        if self.total_mib < 2 * self.segment_mib:
            return (
                f"recorder.total_mib is {self.total_mib}, expected room for two segments of"
                " recorder.segment_mib"
                f" ({self.segment_mib}) at least: one is written while another is kept"
            )
        return ""
