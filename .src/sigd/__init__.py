"""sigd: a low-latency trading-signal inference daemon."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """`__version__`, the installed package's: it stands in pyproject.toml alone, and is looked up when asked."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("sigd")
