"""Fit the network and the logistic regression it is compared with, in PyTorch on the CPU or a GPU.

Both see each training sample and its mirror image (the two sides of the market exchanged: signed features
change sign, down and up change places). Nothing in the market favours a side for long, and a few minutes of
it hold a drift that a network would otherwise learn. Both stop where the loss on the validation part was
lowest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sigd.models.features.catalogue import FEATURE_COUNT, MIRROR
from sigd.models.training.errors import CannotTrain
from sigd.models.training.network import Layer, Network
from sigd.models.training.outcome import CLASSES, UP
from sigd.models.training.samples import Float32Array, Int64Array

if TYPE_CHECKING:
    import torch

Float64Array = npt.NDArray[np.float64]

HIDDEN = (256, 256)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is fitted.

    Attributes:
        hidden: widths of the hidden layers; none makes a logistic regression.
        dropout: share of the features, and of each hidden layer, that is left out at random while training.
        learning_rate, weight_decay: of AdamW.
        batch_rows: samples a step.
        epochs_max: passes over the training part, at most.
        patience: passes without a better validation loss after which fitting ends.
    """

    hidden: tuple[int, ...] = HIDDEN
    dropout: float = 0.5
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    batch_rows: int = 8_192
    epochs_max: int = 40
    patience: int = 8


NETWORK = Recipe()
LOGISTIC = Recipe(hidden=(), learning_rate=3e-3, patience=16)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What fitting gave.

    Attributes:
        network: for standardised features.
        epoch: the pass whose weights these are, from 1.
        epochs: how many passes there were.
        validation_loss: mean log-loss on the validation part, nats.
        samples_per_s: samples a second through forward, backward and step; the median of the passes.
    """

    network: Network
    epoch: int
    epochs: int
    validation_loss: float
    samples_per_s: float


def fit(
    recipe: Recipe,
    training: tuple[Float32Array, Int64Array],
    validation: tuple[Float32Array, Int64Array],
    seed: int,
    threads: int = 1,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
    device: str = "cpu",
) -> Fitted:
    """Fit one network. On one machine the same arguments give the same bits.

    Args:
        recipe: how.
        training, validation: standardised features, shape (samples, 64), and classes 0 to 2, shape
            (samples,).
        seed: of the first weights, the order of the samples and the dropout.
        threads: CPU threads; another number may give other last bits.
        report: told each pass and its validation loss.
        device: PyTorch's name of where to fit, for example "cuda:1"; another one may give other last bits.

    Raises:
        CannotTrain: a part is empty, or a loss is not finite.
    """
    import torch

    for part, (features, _) in (("training", training), ("validation", validation)):
        if not len(features):
            raise CannotTrain(f"the {part} part holds no sample; expected a capture of a few minutes")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    model = _model(recipe).to(device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    # All samples of a capture fit a card, so no step waits for the host.
    rows = torch.from_numpy(np.concatenate((training[0], training[0] * MIRROR))).to(device)
    classes = torch.from_numpy(np.concatenate((training[1], UP - training[1]))).to(device)
    validation_rows, validation_classes = (torch.from_numpy(part).to(device) for part in validation)
    best, best_epoch, best_loss = _network(model), 0, float("inf")
    rates = []
    epoch = 0
    for epoch in range(1, recipe.epochs_max + 1):
        rates.append(_pass(model, optimiser, rows, classes, recipe.batch_rows))
        model.eval()
        with torch.no_grad():
            loss = float(torch.nn.functional.cross_entropy(model(validation_rows), validation_classes))
        if not np.isfinite(loss):
            raise CannotTrain(f"the validation loss of pass {epoch} is {loss}: lower the learning rate")
        report(epoch, loss)
        if loss < best_loss:
            best, best_epoch, best_loss = _network(model), epoch, loss
        elif epoch - best_epoch >= recipe.patience:
            break
    return Fitted(best, best_epoch, epoch, best_loss, float(np.median(rates)))


def _model(recipe: Recipe) -> torch.nn.Sequential:
    import torch

    widths = (FEATURE_COUNT, *recipe.hidden, len(CLASSES))
    steps: list[torch.nn.Module] = []
    for layer, (width_in, width_out) in enumerate(pairwise(widths)):
        if layer:
            steps.append(torch.nn.ReLU())
        steps.append(torch.nn.Dropout(recipe.dropout))
        steps.append(torch.nn.Linear(width_in, width_out))
    if not recipe.hidden:
        # A convex problem needs no random start, and early stopping would make its luck count.
        for parameter in steps[-1].parameters():
            torch.nn.init.zeros_(parameter)
    return torch.nn.Sequential(*steps)


def _pass(
    model: torch.nn.Sequential,
    optimiser: torch.optim.Optimizer,
    rows: torch.Tensor,
    classes: torch.Tensor,
    batch_rows: int,
) -> float:
    """One pass in random order, in whole batches only; samples a second."""
    import torch

    model.train()
    order = torch.randperm(len(rows)).to(rows.device)
    batch_rows = min(batch_rows, len(rows))
    batches = len(rows) // batch_rows
    begin = time.perf_counter()
    for first in range(0, batches * batch_rows, batch_rows):
        batch = order[first : first + batch_rows]
        loss = torch.nn.functional.cross_entropy(model(rows[batch]), classes[batch])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    if rows.is_cuda:
        # A step on a card is only queued.
        torch.cuda.synchronize(rows.device)
    return batches * batch_rows / (time.perf_counter() - begin)


def _network(model: torch.nn.Sequential) -> Network:
    import torch

    return Network(
        tuple(
            Layer(_doubles(step.weight).T.copy(), _doubles(step.bias))
            for step in model
            if isinstance(step, torch.nn.Linear)
        )
    )


def _doubles(parameter: torch.Tensor) -> Float64Array:
    values: Float64Array = parameter.detach().cpu().double().numpy().copy()
    return values
