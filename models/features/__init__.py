"""The 64 features that a model reads, computed as a stream. Training, replay and the demo all use this one
object.

stream = FeatureStream()
for event in read_capture(path):
    if stream.on_event(event):  # True: this event is a sample
        send(stream.features)   # float32[64], overwritten by the next sample
"""

from sigd.models.features.catalogue import FEATURE_COUNT, FEATURE_NAMES, FEATURE_VERSION
from sigd.models.features.stream import FeatureStream

__all__ = ["FEATURE_COUNT", "FEATURE_NAMES", "FEATURE_VERSION", "FeatureStream"]
