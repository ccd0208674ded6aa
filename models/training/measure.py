"""How good predictions are: log-loss, balanced accuracy, calibration, and what the differences are worth.

Neighbouring samples share most of their outcome, so ten thousand samples are far fewer observations. Two
measures take
that into account: intervals are drawn by resampling whole blocks of time, and every score is also given on
samples whose outcomes do not overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sigd.models.training.errors import CannotTrain
from sigd.models.training.outcome import CLASSES, DOWN, FLAT, UP, Outcome, shares_of
from sigd.models.training.samples import Float64Array, Int64Array, Samples
from sigd.models.training.split import BoolArray

BLOCK_NS = 5_000_000_000
RESAMPLES = 2_000
LATE_NS = 1_000_000
CALIBRATION_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

_PROBABILITY_MIN = 1e-12


@dataclass(frozen=True, slots=True)
class Score:
    """Of one predictor on one set of samples.

    Attributes:
        log_loss: mean negative log-likelihood, nats.
        balanced_accuracy: the mean over the classes of the share that is recognised; guessing gives 1/3.
    """

    log_loss: float
    balanced_accuracy: float


@dataclass(frozen=True, slots=True)
class Gain:
    """How much lower one predictor's log-loss is than another's, nats: the mean and its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Three predictors on one set of samples.

    Attributes:
        name: which samples.
        samples: how many.
        shares: of down, flat and up among them.
        scores: by predictor, over all samples.
        apart: by predictor, over samples at least a horizon apart.
        samples_apart: how many those are.
        gains: of the network over each other predictor.
        late: the network's score where the move is counted from 1 ms after the sample.
    """

    name: str
    samples: int
    shares: tuple[float, ...]
    scores: dict[str, Score]
    apart: dict[str, Score]
    samples_apart: int
    gains: dict[str, Gain]
    late: Score


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Predictions of up or down with a probability in [low, high): the mean prediction and how often it came
    true."""

    low: float
    high: float
    predictions: int
    predicted: float
    observed: float


@dataclass(frozen=True, slots=True)
class Call:
    """What followed where the network held one class the likeliest.

    Attributes:
        name: the class.
        share: of the samples so called.
        recognised: (down, flat, up), how many of the so called turned out to be each.
        mean_move_bps: the mean move of the mid that followed, before any cost.
    """

    name: str
    share: float
    recognised: tuple[int, ...]
    mean_move_bps: float


def losses(probabilities: Float64Array, classes: Int64Array) -> Float64Array:
    """Log-loss of each sample, nats."""
    likelihood = probabilities[np.arange(len(classes)), classes]
    return -np.log(np.maximum(likelihood, _PROBABILITY_MIN))


def score(probabilities: Float64Array, classes: Int64Array) -> Score:
    """Score predictions, shape (samples, 3), against classes 0 to 2. Classes that do not occur do not
    count."""
    called = probabilities.argmax(axis=1)
    recalls = [np.mean(called[classes == number] == number) for number in np.unique(classes)]
    return Score(float(losses(probabilities, classes).mean()), float(np.mean(recalls)))


def gain(worse: Float64Array, better: Float64Array, times_ns: Int64Array, seed: int = 0) -> Gain:
    """The mean of `worse - better` (losses of the same samples), with a 95% interval from a bootstrap over
    blocks of five seconds (A. C. Davison and D. V. Hinkley, Bootstrap Methods and their Application,
    1997)."""
    differences = worse - better
    _, blocks = np.unique((times_ns - times_ns[0]) // BLOCK_NS, return_inverse=True)
    sums, counts = np.bincount(blocks, differences), np.bincount(blocks)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Gain(float(differences.mean()), float(low), float(high))


def apart(times_ns: Int64Array, spacing_ns: int) -> BoolArray:
    """Marks the first sample of each slot of two spacings' time that lies in the slot's first half: marked
    samples are at least one spacing apart, and quiet times count as much as busy ones."""
    since_ns = times_ns - times_ns[0]
    slots, offsets = since_ns // (2 * spacing_ns), since_ns % (2 * spacing_ns)
    marked = np.zeros(len(times_ns), np.bool_)
    candidates = np.flatnonzero(offsets < spacing_ns)
    _, first = np.unique(slots[candidates], return_index=True)
    marked[candidates[first]] = True
    return marked


def evaluate(
    name: str,
    samples: Samples,
    chosen: BoolArray,
    predictions: Mapping[str, Float64Array],
    outcome: Outcome,
) -> Evaluation:
    """Score predictors on the chosen samples of a capture.

    Args:
        name: what to call these samples.
        samples: the capture.
        chosen: bool, shape (samples,).
        predictions: by predictor, probabilities of shape (samples, 3); the first is the network.
        outcome: what is predicted.

    Raises:
        CannotTrain: none of the chosen samples has a known outcome.
    """
    classes = outcome.classes(samples)
    chosen = chosen & (classes >= 0)
    if not chosen.any():
        raise CannotTrain(f"{name}: no sample has a known outcome; expected a longer capture")
    times_ns, late_classes = samples.receive_ns[chosen], outcome.classes(samples, LATE_NS)[chosen]
    classes = classes[chosen]
    spaced = apart(times_ns, outcome.horizon_ns)
    taken = {predictor: probabilities[chosen] for predictor, probabilities in predictions.items()}
    network, *others = taken
    network_losses = losses(taken[network], classes)
    return Evaluation(
        name=name,
        samples=len(classes),
        shares=tuple(float(share) for share in shares_of(classes)),
        scores={predictor: score(probabilities, classes) for predictor, probabilities in taken.items()},
        apart={
            predictor: score(probabilities[spaced], classes[spaced])
            for predictor, probabilities in taken.items()
        },
        samples_apart=int(spaced.sum()),
        gains={other: gain(losses(taken[other], classes), network_losses, times_ns) for other in others},
        late=score(taken[network], late_classes),
    )


def calibration(probabilities: Float64Array, classes: Int64Array) -> list[CalibrationBin]:
    """How often up and down came true, by the probability given to them."""
    predicted = np.concatenate((probabilities[:, DOWN], probabilities[:, UP]))
    observed = np.concatenate((classes == DOWN, classes == UP))
    numbers = np.clip(np.digitize(predicted, CALIBRATION_EDGES) - 1, 0, len(CALIBRATION_EDGES) - 2)
    bins = []
    for number in range(len(CALIBRATION_EDGES) - 1):
        within = numbers == number
        if within.any():
            low, high = CALIBRATION_EDGES[number : number + 2]
            mean = float(predicted[within].mean())
            bins.append(CalibrationBin(low, high, int(within.sum()), mean, float(observed[within].mean())))
    return bins


def calls(probabilities: Float64Array, classes: Int64Array, moves_bps: Float64Array) -> list[Call]:
    """What followed each class that was held the likeliest; the rows of the confusion table."""
    called = probabilities.argmax(axis=1)
    found = []
    for number in (DOWN, FLAT, UP):
        within = called == number
        counts = np.bincount(classes[within], minlength=len(CLASSES))
        mean_move = float(moves_bps[within].mean()) if within.any() else 0.0
        found.append(
            Call(CLASSES[number], float(within.mean()), tuple(int(count) for count in counts), mean_move)
        )
    return found
