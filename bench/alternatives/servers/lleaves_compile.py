"""Compiles a LightGBM file with lleaves: `python lleaves_compile.py FILE OBJECT`, which has `forest_root`."""

from __future__ import annotations

import sys


def main(file: str, compiled: str) -> None:
    """Write the object file."""
    import lleaves

    lleaves.Model(model_file=file).compile(cache=compiled)


if __name__ == "__main__":
    main(*sys.argv[1:])
