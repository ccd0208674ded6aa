"""The whole training run, from captures to an ONNX file and its card."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sigd.models.features.catalogue import FEATURE_VERSION
from sigd.models.training.export import check_model_file, onnx_model, write_model
from sigd.models.training.fit import LOGISTIC, NETWORK, Fitted, Recipe, fit
from sigd.models.training.measure import (
    CalibrationBin,
    Call,
    Evaluation,
    Score,
    calibration,
    calls,
    evaluate,
    score,
)
from sigd.models.training.network import Network, softmax, standardisation_of
from sigd.models.training.outcome import HORIZONS_MS, Outcome, choose_outcome, shares_of
from sigd.models.training.samples import Float32Array, Int64Array, Samples, read_samples
from sigd.models.training.split import BoolArray, Split, split_by_time

MODEL_NAME = "lob-mlp"
NETWORK_NAME, LOGISTIC_NAME, FLAT_NAME = "network", "logistic regression", "always flat"

_CHECKED_ROWS = 256


class Progress(Protocol):
    """Is told how the run goes."""

    def stage(self, text: str, total: int) -> Callable[[int], None]:
        """A stage of `total` steps begins (0: not known); call what it returns with each number of steps
        done."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the training capture: its name, samples, and seconds from its first sample to its last; the
    shares of down, flat and up."""

    name: str
    samples: int
    seconds: float
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SeedScore:
    """One fit of the network: its seed, the pass it stopped at, its validation loss and its held-out
    score."""

    seed: int
    epoch: int
    validation_loss: float
    held_out: Score


@dataclass(frozen=True, slots=True)
class Report:
    """All that the card states. Times in ns, losses in nats."""

    capture: str
    outcome: Outcome
    gap_ns: int
    parts: tuple[Part, ...]
    feature_version: int
    seed: int
    recipe: Recipe
    epochs: int
    seeds: tuple[SeedScore, ...]
    evaluations: tuple[Evaluation, ...]
    calibration: tuple[CalibrationBin, ...]
    calls: tuple[Call, ...]
    samples_per_s: float
    threads: int
    device: str
    machine: str
    torch_version: str
    error_max: float
    model_bytes: int
    model_sha256: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        capture: the capture to train on.
        transfers: captures to measure on besides.
        out: the folder for the ONNX file and the card.
        seed: of the model that is written.
        seeds: how many seeds to fit in all, to show how far luck goes.
        threads: CPU threads of PyTorch.
        network, logistic: how to fit.
        device: where to fit, in PyTorch's words.
    """

    capture: Path
    transfers: Sequence[Path]
    out: Path
    seed: int = 1
    seeds: int = 3
    threads: int = 1
    network: Recipe = NETWORK
    logistic: Recipe = LOGISTIC
    device: str = "cpu"


def train(plan: Plan, progress: Progress) -> Report:
    """Train, export, check and measure; writes `lob-mlp.onnx` into `plan.out`.

    Raises:
        CaptureError: a capture cannot be read.
        CannotTrain: a capture is too short or too quiet to train or measure on.
        ModelRefused: the written file does not answer as the trained network does.
    """
    samples = _read(plan.capture, progress)
    transfers = [_read(path, progress) for path in plan.transfers]
    outcome = choose_outcome(samples, split_by_time(samples, HORIZONS_MS[-1] * 1_000_000).training)
    split = split_by_time(samples, outcome.horizon_ns)
    classes = outcome.classes(samples)
    training, validation, held_out = (
        part & (classes >= 0) for part in (split.training, split.validation, split.held_out)
    )
    standardisation = standardisation_of(samples.features[training])
    standardised = standardisation.apply(samples.features)

    def fitted(name: str, recipe: Recipe, seed: int) -> Fitted:
        done = progress.stage(f"fitting {name}", recipe.epochs_max)
        parts = [(standardised[part], classes[part]) for part in (training, validation)]
        return fit(recipe, parts[0], parts[1], seed, plan.threads, lambda epoch, loss: done(1), plan.device)

    logistic = fitted("logistic regression", plan.logistic, plan.seed).network.folded(standardisation)
    seeds = range(plan.seed, plan.seed + plan.seeds)
    fits = {seed: fitted(f"network, seed {seed}", plan.network, seed) for seed in seeds}
    network = fits[plan.seed].network.folded(standardisation)
    evaluations = _evaluations(samples, split, transfers, network, logistic, outcome, classes)
    held_out_classes = classes[held_out]
    probabilities = softmax(network.logits(samples.features[held_out]))
    moves_bps = samples.moves_bps(outcome.horizon_ns)[held_out]
    path, error_max = _export(plan, network, outcome, samples)
    return Report(
        capture=samples.name,
        outcome=outcome,
        gap_ns=split.gap_ns,
        parts=_parts(
            samples, classes, {"training": training, "validation": validation, "held-out": held_out}
        ),
        feature_version=FEATURE_VERSION,
        seed=plan.seed,
        recipe=plan.network,
        epochs=fits[plan.seed].epochs,
        seeds=_seed_scores(fits, standardised[held_out], held_out_classes),
        evaluations=evaluations,
        calibration=tuple(calibration(probabilities, held_out_classes)),
        calls=tuple(calls(probabilities, held_out_classes, moves_bps)),
        samples_per_s=float(np.median([fit_.samples_per_s for fit_ in fits.values()])),
        threads=plan.threads,
        device=plan.device,
        machine=_processor(),
        torch_version=importlib.metadata.version("torch"),
        error_max=error_max,
        model_bytes=path.stat().st_size,
        model_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _export(plan: Plan, network: Network, outcome: Outcome, samples: Samples) -> tuple[Path, float]:
    """Write the file and check it on rows from all over the capture; its path and the largest error of a
    logit."""
    path = plan.out / f"{MODEL_NAME}.onnx"
    plan.out.mkdir(parents=True, exist_ok=True)
    write_model(onnx_model(network, outcome, plan.seed), path)
    rows = samples.features[:: max(1, len(samples) // _CHECKED_ROWS)][:_CHECKED_ROWS]
    return path, check_model_file(path, network, rows)


def _seed_scores(
    fits: Mapping[int, Fitted], standardised: Float32Array, classes: Int64Array
) -> tuple[SeedScore, ...]:
    return tuple(
        SeedScore(
            seed,
            found.epoch,
            found.validation_loss,
            score(softmax(found.network.logits(standardised)), classes),
        )
        for seed, found in fits.items()
    )


def _read(path: Path, progress: Progress) -> Samples:
    return read_samples(path, progress.stage(f"reading {path.name}", 0))


def _parts(samples: Samples, classes: Int64Array, parts: Mapping[str, BoolArray]) -> tuple[Part, ...]:
    found = []
    for name, chosen in parts.items():
        times_ns = samples.receive_ns[chosen]
        shares = tuple(float(share) for share in shares_of(classes[chosen]))
        found.append(Part(name, len(times_ns), float(times_ns[-1] - times_ns[0]) / 1e9, shares))
    return tuple(found)


def _evaluations(
    samples: Samples,
    split: Split,
    transfers: Sequence[Samples],
    network: Network,
    logistic: Network,
    outcome: Outcome,
    classes: Int64Array,
) -> tuple[Evaluation, ...]:
    """The held-out part, and each other capture: whole, and in the minutes that training did not see. Markets
    move together, so the minutes of training are not new even in another instrument."""
    trained_shares = shares_of(classes[split.training])
    prior = (trained_shares + trained_shares[::-1]) / 2  # as training sees it, mirror images included

    def of(name: str, which: Samples, chosen: BoolArray) -> Evaluation:
        predictions = {
            NETWORK_NAME: softmax(network.logits(which.features)),
            LOGISTIC_NAME: softmax(logistic.logits(which.features)),
            FLAT_NAME: np.tile(prior, (len(which), 1)),
        }
        return evaluate(name, which, chosen, predictions, outcome)

    found = [of(f"{samples.name}, held out", samples, split.held_out)]
    for transfer in transfers:
        unseen = transfer.receive_ns >= split.held_out_from_ns
        found.append(of(f"{transfer.name}, whole", transfer, np.ones(len(transfer), np.bool_)))
        if unseen.any() and not unseen.all():
            found.append(of(f"{transfer.name}, held-out minutes", transfer, unseen))
    return tuple(found)


def _processor() -> str:
    """The processor's name, where the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
