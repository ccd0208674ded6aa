"""The parts of training that need no PyTorch: outcomes, the split, folding, the ONNX file, the measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigd.models.errors import ModelRefused
from sigd.models.features.catalogue import MIRROR, WINDOWS_NS
from sigd.models.spec import read_spec
from sigd.models.training.errors import CannotTrain
from sigd.models.training.export import check_model_file, onnx_model, write_model
from sigd.models.training.measure import apart, calibration, calls, evaluate, gain, score
from sigd.models.training.network import Layer, Network, softmax, standardisation_of
from sigd.models.training.outcome import HORIZONS_MS, Outcome, choose_outcome, classes_of, outcome_of_model
from sigd.models.training.samples import Float32Array, Samples
from sigd.models.training.split import split_by_time

SECOND_NS = 1_000_000_000
OUTCOME = Outcome(500_000_000, 0.0)


def samples_of(
    mids: list[float], spacing_ns: int = SECOND_NS, features: Float32Array | None = None
) -> Samples:
    """One quote and one sample for each mid, evenly spaced from 1 s on."""
    times_ns = np.arange(1, len(mids) + 1, dtype=np.int64) * spacing_ns
    rows = np.zeros((len(mids), 64), np.float32) if features is None else features
    return Samples("made", rows, times_ns, times_ns, np.array(mids))


def network(seed: int = 0, hidden: int = 5) -> Network:
    draw = np.random.default_rng(seed)
    sizes = ((64, hidden), (hidden, hidden), (hidden, 3))
    return Network(
        tuple(Layer(draw.standard_normal(size) / 8, draw.standard_normal(size[1])) for size in sizes)
    )


# ---- outcomes ------------------------------------------------------------------------------------------


def test_moves_are_read_off_the_mid_in_force_at_the_horizon() -> None:
    samples = samples_of([100.0, 101.0, 100.0, 100.0])
    np.testing.assert_allclose(samples.moves_bps(SECOND_NS), [100, -1e4 / 101, 0, np.nan])
    just_before = samples.moves_bps(SECOND_NS - 1)
    np.testing.assert_array_equal(just_before, [0, 0, 0, np.nan])


def test_a_delayed_move_begins_at_the_delayed_mid() -> None:
    samples = samples_of([100.0, 101.0, 103.0])
    np.testing.assert_allclose(samples.moves_bps(2 * SECOND_NS, SECOND_NS)[0], 1e4 * 2 / 101)


def test_no_quote_after_the_horizon_changes_an_outcome() -> None:
    mids = [100.0, 101.0, 100.5, 102.0, 99.0]
    before = samples_of(mids).moves_bps(2 * SECOND_NS)
    after = samples_of([*mids[:4], 500.0]).moves_bps(2 * SECOND_NS)
    np.testing.assert_array_equal(before[:2], after[:2])


def test_classes_of_moves() -> None:
    moves = np.array([-0.2, -0.1, 0.0, 0.1, 0.2, np.nan])
    assert classes_of(moves, 0.1).tolist() == [0, 1, 1, 1, 2, -1]
    assert classes_of(moves, 0.0).tolist() == [0, 0, 1, 2, 2, -1]


def test_the_outcome_is_the_shortest_horizon_without_a_majority() -> None:
    """The mid stands for four of five 100 ms steps: at 100 ms flat is the majority, at 500 ms no more."""
    draw = np.random.default_rng(5)
    steps = draw.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=5_000)
    samples = samples_of((10_000 + steps.cumsum()).tolist(), spacing_ns=100_000_000)
    everything = np.ones(len(samples), np.bool_)
    outcome = choose_outcome(samples, everything)
    assert outcome == Outcome(500_000_000, 0.0)
    shorter = max(ms for ms in HORIZONS_MS if ms < 500)
    assert (classes_of(samples.moves_bps(shorter * 1_000_000), 0.0) == 1).mean() > 0.5


def test_the_choice_looks_at_the_allowed_samples_alone() -> None:
    draw = np.random.default_rng(5)
    lively = 10_000 + draw.choice([-1.0, 0.0, 1.0], size=2_000).cumsum()
    samples = samples_of([*lively, *np.full(2_000, lively[-1])], spacing_ns=100_000_000)
    first = np.arange(len(samples)) < 1_900
    assert choose_outcome(samples, first).horizon_ns == 100_000_000
    with pytest.raises(CannotTrain, match="the mid moves"):
        choose_outcome(samples, ~first & (np.arange(len(samples)) > 2_100))


# ---- the split -----------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    gaps_ms=st.lists(st.integers(0, 5_000), min_size=2, max_size=200),
    horizon_ms=st.sampled_from(HORIZONS_MS),
)
def test_no_part_sees_an_event_of_another(gaps_ms: list[int], horizon_ms: int) -> None:
    times_ns = np.cumsum(np.array(gaps_ms, np.int64) * 1_000_000) + SECOND_NS
    samples = Samples(
        "made", np.zeros((len(times_ns), 64), np.float32), times_ns, times_ns, np.ones(len(times_ns))
    )
    horizon_ns = horizon_ms * 1_000_000
    split = split_by_time(samples, horizon_ns)
    parts = [split.training, split.validation, split.held_out]
    assert (np.sum(parts, axis=0) <= 1).all()
    for earlier, later in ((0, 1), (1, 2), (0, 2)):
        if parts[earlier].any() and parts[later].any():
            last_seen_ns = times_ns[parts[earlier]].max() + horizon_ns
            first_seen_ns = times_ns[parts[later]].min() - WINDOWS_NS[-1]
            assert last_seen_ns < first_seen_ns


def test_the_held_out_part_is_the_last_thirty_percent_of_the_time() -> None:
    samples = samples_of([100.0] * 1_001)
    split = split_by_time(samples, SECOND_NS)
    assert split.held_out.sum() == 301
    assert split.held_out[-301:].all()
    assert samples.receive_ns[split.training].max() == (1 + 560 - 12) * SECOND_NS
    assert split.gap_ns == 11 * SECOND_NS


# ---- network and file
# ------------------------------------------------------------------------------------------------


def test_standardisation_is_symmetric_and_folds_into_the_first_layer() -> None:
    draw = np.random.default_rng(1)
    features = (draw.standard_normal((500, 64)) * 3 + 2).astype(np.float32)
    features[:, 3] = 0.25
    standardisation = standardisation_of(features)
    doubled = np.concatenate((features, features * MIRROR))
    lively = np.arange(64) != 3
    standardised = standardisation.apply(doubled)
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standardised.std(axis=0)[lively], 1, rtol=1e-4)
    plain = network()
    np.testing.assert_allclose(
        plain.folded(standardisation).logits(features),
        plain.logits(standardisation.apply(features)),
        atol=1e-4,
    )


def test_the_file_is_the_network_and_nothing_else(tmp_path: Path) -> None:
    model = onnx_model(network(), OUTCOME, seed=3)
    path = tmp_path / "made.onnx"
    write_model(model, path)
    features = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    assert check_model_file(path, network(), features) < 1e-5
    assert outcome_of_model(path) == OUTCOME
    spec = read_spec(path)
    assert (spec.features, spec.outputs, spec.batch_rows) == (64, 3, None)
    assert path.read_bytes() == onnx_model(network(), OUTCOME, seed=3).SerializeToString(deterministic=True)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.onnx"
    write_model(onnx_model(network(0), OUTCOME, seed=3), path)
    with pytest.raises(ModelRefused, match="is off by"):
        check_model_file(path, network(1), np.ones((2, 64), np.float32))


# ---- measures ------------------------------------------------------------------------------------------


def test_scores_of_known_predictions() -> None:
    classes = np.array([0, 0, 0, 1, 2, 2])
    guess = np.tile([0.25, 0.5, 0.25], (6, 1))
    assert score(guess, classes).balanced_accuracy == pytest.approx(1 / 3)
    assert score(guess, classes).log_loss == pytest.approx((5 * np.log(4) + np.log(2)) / 6)
    sure = np.eye(3)[[0, 0, 1, 1, 2, 0]]
    assert score(sure, classes).balanced_accuracy == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)


def test_a_gain_is_told_from_noise_by_blocks_of_time() -> None:
    """The same ten thousand differences: spread over time they are certain, from two bursts they are not."""
    draw = np.random.default_rng(0)
    better = np.zeros(10_000)
    times_ns = np.arange(10_000) * SECOND_NS
    certain = gain(draw.normal(0.1, 1, 10_000), better, times_ns)
    assert 0 < certain.low < certain.mean < certain.high
    bursts = np.repeat([-1.0, 1.2], 5_000)
    uncertain = gain(bursts, better, np.repeat([0, 60 * SECOND_NS], 5_000) + np.arange(10_000))
    assert uncertain.low < 0 < uncertain.high


@given(
    gaps_ms=st.lists(st.sampled_from([0, 1, 400, 600, 3_000]), min_size=1, max_size=100),
    spacing_ms=st.just(500),
)
def test_marked_samples_lie_apart(gaps_ms: list[int], spacing_ms: int) -> None:
    times_ns = np.cumsum(np.array(gaps_ms, np.int64)) * 1_000_000
    marked = apart(times_ns, spacing_ms * 1_000_000)
    assert marked[0]
    assert (np.diff(times_ns[marked]) > spacing_ms * 1_000_000).all()


def test_calibration_counts_predictions_of_both_directions() -> None:
    probabilities = np.array([[0.05, 0.9, 0.05], [0.05, 0.2, 0.75], [0.75, 0.2, 0.05], [0.75, 0.2, 0.05]])
    low, high = calibration(probabilities, np.array([1, 2, 0, 2]))
    assert (low.low, low.predictions) == (0.0, 5)
    assert low.observed == pytest.approx(1 / 5)
    assert (high.low, high.predictions) == (0.7, 3)
    assert high.observed == pytest.approx(2 / 3)
    assert high.predicted == pytest.approx(0.75)


def test_calls_are_the_confusion_table_with_what_followed() -> None:
    probabilities = np.eye(3)[[0, 0, 2, 2]]
    down, flat, up = calls(probabilities, np.array([0, 1, 2, 2]), np.array([-3.0, 0.0, 1.0, 2.0]))
    assert (down.recognised, down.share, down.mean_move_bps) == ((1, 1, 0), 0.5, -1.5)
    assert (flat.recognised, flat.share, flat.mean_move_bps) == ((0, 0, 0), 0.0, 0.0)
    assert (up.recognised, up.share, up.mean_move_bps) == ((0, 0, 2), 0.5, 1.5)


def test_an_evaluation_leaves_out_unknown_outcomes() -> None:
    draw = np.random.default_rng(0)
    samples = samples_of((1_000 + draw.choice([-1.0, 0.0, 1.0], size=400).cumsum()).tolist())
    everything = np.ones(len(samples), np.bool_)
    outcome = Outcome(SECOND_NS, 0.0)
    right = np.eye(3)[np.maximum(outcome.classes(samples), 0)] * 0.9 + 0.1 / 3
    guess = np.tile(1 / 3, (400, 3))
    found = evaluate("made", samples, everything, {"network": right, "guess": guess}, outcome)
    assert found.samples == 399
    assert found.scores["network"].balanced_accuracy == 1
    assert found.scores["guess"].log_loss == pytest.approx(np.log(3))
    assert found.gains["guess"].low > 0
    assert sum(found.shares) == pytest.approx(1)
    with pytest.raises(CannotTrain, match="no sample has a known outcome"):
        evaluate("made", samples, ~everything, {"network": right}, outcome)


def test_probabilities_add_up_whatever_the_logits() -> None:
    probabilities = softmax(np.array([[1e3, 0.0, -1e3], [0.0, 0.0, 0.0]]))
    expected = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(probabilities, expected)


def test_nothing_in_the_file_tells_when_or_where_it_was_made() -> None:
    model = onnx_model(network(), OUTCOME, seed=3)
    keys = {entry.key for entry in model.metadata_props}
    assert keys == {"classes", "feature_names", "feature_version", "flat_bps", "horizon_ns", "seed"}
    assert [node.op_type for node in model.graph.node] == ["Gemm", "Relu", "Gemm", "Relu", "Gemm"]
    onnx.checker.check_model(model, full_check=True)
