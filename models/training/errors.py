"""What can be wrong with a training run."""

from __future__ import annotations

from sigd.models.errors import ModelError


class CannotTrain(ModelError):
    """The capture is too short or too quiet for it, or the fit came to nothing."""
