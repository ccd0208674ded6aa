"""The frames that are sent: as the wire says, seeded, and a capture's own features."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from sigd.bench.errors import BadRequest
from sigd.bench.load.requests import capture_requests, encode, random_frames
from sigd.models.features.catalogue import FEATURE_COUNT


@pytest.mark.parametrize(("features", "frame_bytes"), [(1, 48), (2, 48), (3, 56), (64, 296)])
def test_a_frame_is_what_the_contract_says(features: int, frame_bytes: int) -> None:
    values = np.arange(2 * features, dtype=np.float32).reshape(2, features) + 0.5
    frames = encode(values, np.array([7, 9], dtype=np.uint32))
    assert frames.shape == (2, frame_bytes)
    for row, instrument in enumerate((7, 9)):
        raw = frames[row].tobytes()
        assert struct.unpack_from("<HHHH", raw) == (frame_bytes - 8, 10, 91, 1)
        assert struct.unpack_from("<QQQIHH", raw, 8) == (0, 0, 0, instrument, 0, 0)
        assert struct.unpack_from(f"<{features}f", raw, 40) == tuple(values[row])
        assert not any(raw[40 + 4 * features :])


def test_random_frames_follow_their_seed() -> None:
    np.testing.assert_array_equal(random_frames(8, seed=5), random_frames(8, seed=5))
    assert not np.array_equal(random_frames(8, seed=5), random_frames(8, seed=6))


def test_a_capture_needs_a_model_of_its_features(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="the model takes 8"):
        capture_requests(tmp_path / "none.gz", 8)


def test_a_file_that_is_no_capture_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "not-a-capture.gz"
    path.write_bytes(b"plainly not gzip")
    with pytest.raises(BadRequest, match=r"not-a-capture\.gz"):
        capture_requests(path, FEATURE_COUNT)


@pytest.mark.slow
def test_a_capture_becomes_requests_at_its_arrivals(capture_dir: Path) -> None:
    arrivals, frames, reader = capture_requests(capture_dir / "spot_btcusdt_20240808.gz", FEATURE_COUNT)
    assert not reader.faults
    assert arrivals.shape == (len(frames),)
    assert len(frames) > 10_000
    assert (np.diff(arrivals) >= 0).all()
    assert frames.shape[1] == 296
    features = frames[:, 40:].copy().view("<f4")
    assert np.isfinite(features).all()
    assert (features.std(axis=0) > 0).sum() > 50, "the features move"
