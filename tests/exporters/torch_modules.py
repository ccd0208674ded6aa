"""Networks as people train them, for `make_models.py`; PyTorch is in the exporters' environment alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Scalar(nn.Module):  # type: ignore[misc]
    """An expected return as [batch]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Any) -> Any:
        return self.net(x).squeeze(-1)


class Masked(nn.Module):  # type: ignore[misc]
    """NaN becomes 0 and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(40, 3)

    def forward(self, x: Any) -> Any:
        gone = torch.isnan(x)
        return self.head(torch.cat([torch.where(gone, torch.zeros_like(x), x), gone.float()], -1))


class Recurrent(nn.Module):  # type: ignore[misc]
    """A window of 16 features in, three classes out."""

    def __init__(self, kind: Any, *, time_first: bool = False) -> None:
        super().__init__()
        self.cells, self.head = kind(16, 32, batch_first=not time_first), nn.Linear(32, 3)
        self.time_first = time_first

    def forward(self, x: Any) -> Any:
        seen = self.cells(x)[0]
        return self.head(seen[-1] if self.time_first else seen[:, -1])


class Step(nn.Module):  # type: ignore[misc]
    """One tick in, one signal out; the state goes round."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(16, 32), nn.Linear(32, 3)

    def forward(self, x: Any, state: Any) -> Any:
        state = self.cell(x, state)
        return self.head(state), state


class Convolutions(nn.Module):  # type: ignore[misc]
    """A TCN over a window of 16 features."""

    def __init__(self) -> None:
        super().__init__()
        wide = nn.Conv1d(32, 32, 3, dilation=2)
        self.net = nn.Sequential(nn.Conv1d(16, 32, 3), nn.ReLU(), wide, nn.ReLU())
        self.head = nn.Linear(32, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.net(x.transpose(1, 2)).mean(-1))


class Attention(nn.Module):  # type: ignore[misc]
    """One encoder layer over a window of 16 features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 32), nn.Linear(32, 3)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.head(self.encoder(self.first(x))[:, -1])


class DeepLob(nn.Module):  # type: ignore[misc]
    """Convolutions over a book of 100 snapshots, an inception block, an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.book = nn.Sequential(
            _block(1, 16, (1, 2), (1, 2)), _block(16, 16, (1, 2), (1, 2)), _block(16, 16, (1, 10), (1, 1))
        )
        self.left = _block(16, 32, (3, 1), (1, 1))
        self.right = nn.Sequential(nn.MaxPool2d((3, 1), 1), _block(16, 32, (1, 1), (1, 1)))
        self.cells, self.head = nn.LSTM(64, 64, batch_first=True), nn.Linear(64, 3)

    def forward(self, x: Any) -> Any:
        x = self.book(x)
        x = torch.cat([self.left(x), self.right(x)], 1).squeeze(3).transpose(1, 2)
        return self.head(self.cells(x)[0][:, -1]).softmax(-1)


def _block(before: int, after: int, kernel: tuple[int, int], stride: tuple[int, int]) -> Any:
    return nn.Sequential(nn.Conv2d(before, after, kernel, stride), nn.LeakyReLU(0.01), nn.BatchNorm2d(after))


class BookAndTrades(nn.Module):  # type: ignore[misc]
    """Two inputs of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.of_book, self.of_trades, self.head = nn.Linear(20, 32), nn.Linear(12, 16), nn.Linear(48, 3)

    def forward(self, book: Any, trades: Any) -> Any:
        return self.head(torch.relu(torch.cat([self.of_book(book), self.of_trades(trades)], -1)))


class Known(nn.Module):  # type: ignore[misc]
    """An instrument's number and features in; probabilities and a return out."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.classes, self.value = nn.Embedding(100, 8), nn.Linear(28, 3), nn.Linear(28, 1)

    def forward(self, instrument: Any, x: Any) -> Any:
        joined = torch.cat([self.known(instrument), x], -1)
        return self.classes(joined).softmax(-1), self.value(joined)


class Ranks(nn.Module):  # type: ignore[misc]
    """All instruments at once: the weight of each depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(20, 1)

    def forward(self, x: Any) -> Any:
        return torch.softmax(self.score(x).squeeze(-1), 0)


def perceptron(*last: Any) -> Any:
    """20 features to 3 values."""
    return nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 3), *last)
