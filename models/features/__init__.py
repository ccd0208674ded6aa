"""The 64 features that a model reads, computed as a stream. Training, replay and the demo all use this one
object.

stream = FeatureStream()
for event in read_capture(path):
    if stream.on_event(event):  # True: this event is a sample
        send(stream.features)   # float32[64], overwritten by the next sample

`FeatureStream` is the native stream where it was built, else the one in Python; both give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sigd.models.features.catalogue import FEATURE_COUNT, FEATURE_NAMES, FEATURE_VERSION
from sigd.models.features.state import StreamState
from sigd.models.features.stream import PythonFeatureStream

if TYPE_CHECKING:
    from sigd.models.features.stream import PythonFeatureStream as FeatureStream
else:
    try:
        from sigd.models.features.native import NativeFeatureStream as FeatureStream
    except ImportError:
        FeatureStream = PythonFeatureStream


def restored_stream(state: StreamState) -> FeatureStream:
    """A stream that goes on where another one stood, whichever implementation that was."""
    return FeatureStream.from_state(state)


__all__ = [
    "FEATURE_COUNT",
    "FEATURE_NAMES",
    "FEATURE_VERSION",
    "FeatureStream",
    "PythonFeatureStream",
    "StreamState",
    "restored_stream",
]
