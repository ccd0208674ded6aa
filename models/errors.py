"""What can go wrong with a model, by whose fault it is.

ModelError                 anything below; the message says what was wrong, what was expected and what to do
├── ModelRefused           the file is not a model that can be served (shape, dtype, operator, digest)
│   └── FileNotTrusted      others could change the file (sigd.models.trusted_file)
├── BackendUnavailable     this machine or this installation cannot run that backend
├── BackendFailed          a backend that was open failed while it ran; requests in flight get MODEL_ERROR
│   └── BackendClosed      used before open() or after close(): a programming error of the caller
├── EngineNotWritten       the file system refused an engine (sigd.models.engine)
├── AccuracyTooLow         an engine agrees less with the oracle than was asked for
└── RowsRefused            a file of rows does not fit the model (sigd.models.rows)
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of all errors of `sigd.models`."""


class ModelRefused(ModelError):
    """The file cannot be served as it is."""


class BackendUnavailable(ModelError):
    """The backend cannot run here, for example for want of a package or a device."""


class BackendFailed(ModelError):
    """The backend failed while it ran.

    Attributes:
        fatal: True where the process cannot go on (a sticky device error); the daemon then answers what is
            in flight with MODEL_ERROR and exits for its supervisor.
    """

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class BackendClosed(BackendFailed):
    """The backend was used before open() or after close()."""
