"""What is wrong with a capture, for people and as data."""

from __future__ import annotations

from sigd.models.market.capture import CaptureReader


def faults_summary(reader: CaptureReader) -> dict[str, object]:
    """For JSON: the unit of the stamps, the counts by kind, and the first faults of each kind."""
    return {
        "stamp_unit": reader.stamp_unit,
        "capture_faults": reader.faults.counts,
        "first_capture_faults": reader.faults.first,
    }


def faults_shown(reader: CaptureReader) -> list[str]:
    """Lines for people; none where all is well."""
    shown = []
    if reader.stamp_unit != "ns":
        shown.append(f"capture  its times are in {reader.stamp_unit}: nothing shorter can be told from them")
    if reader.faults:
        shown.append(f"capture  {reader.faults}")
        shown += [f"         {fault}" for fault in reader.faults.first]
    return shown
