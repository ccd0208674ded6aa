"""Takes the pictures of the README: `python -m tests.pictures`, `make pictures`.

`sigd demo` and `sigd top` run as a user runs them, in a terminal of tmux; what stands on the screen is drawn
as SVG.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

ROOT: Final = Path(__file__).resolve().parents[1]
PICTURES: Final = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 100, 30
DEMO_S_MAX: Final = 90
SIGD: Final = f"{sys.executable} -P -m sigd.daemon"


class Terminal:
    """One terminal of tmux, on a server of its own."""

    def __init__(self, folder: str, name: str) -> None:
        self._server = ["tmux", "-S", f"{folder}/tmux"]
        self._name = name

    def run(self, command: str) -> None:
        """Begin it; the terminal stays when it has ended."""
        size = ["-x", str(WIDTH), "-y", str(HEIGHT)]
        shell = f"{command}; sleep 3600"
        self._do("-f", "/dev/null", "new-session", "-d", "-s", self._name, *size, shell)

    def screen(self) -> str:
        """What stands on it, with its colours."""
        return self._do("capture-pane", "-e", "-p", "-t", self._name)

    def close(self) -> None:
        """End what runs in it: a daemon takes the hang-up of a terminal as an order to reload."""
        self._do("send-keys", "-t", self._name, "C-c")
        time.sleep(2)
        self._do("kill-session", "-t", self._name)

    def _do(self, *words: str) -> str:
        return subprocess.run([*self._server, *words], capture_output=True, text=True, check=True).stdout


def draw(title: str, screen: str) -> str:
    """A screen as SVG."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text.from_ansi(screen.rstrip()))
    return console.export_svg(title=title)


def main() -> int:
    """Take both pictures; 3 without tmux."""
    if shutil.which("tmux") is None:
        print("needs tmux", file=sys.stderr)
        return 3
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        demo, daemon, top = (Terminal(folder, name) for name in ("demo", "daemon", "top"))
        print("sigd demo ...")
        demo.run(f"{SIGD} demo")
        for _ in range(DEMO_S_MAX):
            time.sleep(1)
            if "Next:" in demo.screen():
                break
        else:
            print("sigd demo did not end in time", file=sys.stderr)
            return 1
        (PICTURES / "demo.svg").write_text(draw("sigd demo", demo.screen()))
        demo.close()
        print("sigd top ...")
        daemon.run(f"{SIGD} serve --socket {folder}/s")
        time.sleep(5)
        load = subprocess.Popen(
            [
                *SIGD.split(),
                *["bench", "--no-p99", "--rate", "5000", "--duration", "12", "--socket"],
                f"{folder}/s",
            ],
            stdout=subprocess.DEVNULL,
        )
        top.run(f"{SIGD} top --socket {folder}/s")
        time.sleep(9)
        (PICTURES / "top.svg").write_text(draw("sigd top", top.screen()))
        load.wait()
        top.close()
        daemon.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
