"""docs/cpp.md: every piece of C++ compiles, what can be run works, and what it names is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sigd.wire.schema.cpp_header import include_dir

if TYPE_CHECKING:
    from tests.wire.conftest import CppBuilder
    from tests.wire.cpp.conftest import DaemonProcess

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "cpp.md").read_text("utf-8")
BLOCKS = re.findall(r"```cpp\n(.*?)```", TEXT, re.DOTALL)
INCLUDE = "#include <sigd/sigd.hpp>\n"
HEADERS = "".join(path.read_text("utf-8") for path in sorted(include_dir().rglob("*.hpp")))


def with_include(block: str) -> str:
    """A block as a reader who copies it compiles it."""
    return block if INCLUDE in block else INCLUDE + block


def block_with(part: str) -> str:
    """The one block that has this in it."""
    (block,) = [block for block in BLOCKS if part in block]
    return with_include(block)


def test_there_is_something_to_compile() -> None:
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_piece_compiles(cpp: CppBuilder, tmp_path: Path, block: str) -> None:
    source = tmp_path / "piece.cpp"
    source.write_text(with_include(block))
    cpp.check(source, "-fno-exceptions", "-fno-rtti", compiler="g++", standard="c++20")


def run(cpp: CppBuilder, folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    source = folder / "program.cpp"
    source.write_text(code)
    command = [str(cpp.build(source)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_first_program(cpp: CppBuilder, live_daemon: DaemonProcess, tmp_path: Path) -> None:
    done = run(cpp, tmp_path, block_with("int main"), live_daemon.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len([float(line) for line in done.stdout.splitlines()]) == 3
    done = run(cpp, tmp_path, block_with("int main"), "/no/such/socket")
    assert done.returncode == 1
    assert "there is no such socket" in done.stderr


CONNECT = "if (connect_somehow(client, {.path = argv[1]}) != sigd::Errc::none) return 3;"
PIECES = {
    "trade": """
    int left = 100, answers = 0;
    const sigd::Errc end = trade(
        client,
        [&](std::span<float> row) {
            if (left == 0) return false;
            for (float& feature : row) feature = 0.5F;
            --left;
            return true;
        },
        [&](const sigd::Response&) { if (++answers == 100) client.close(); });
    return answers == 100 && end == sigd::Errc::finished ? 0 : 1;""",
    "is_alive": """
    for (int round = 0; round < 100 && client.heartbeats() < 3; ++round) {
        if (!is_alive(client, 5'000'000'000)) return 1;
        (void)client.wait(std::chrono::milliseconds(10));
    }
    return client.heartbeats() >= 3 && !is_alive(client, 0) ? 0 : 1;""",
    "serve": """
    client.close();
    sigd::Reconnector link({.path = argv[1]});
    std::uint64_t answers = 0, lost = 0;
    serve(
        link,
        [&](sigd::Client& open) {
            const std::vector<float> row(open.welcome().features, 0.5F);
            if (!open.send(row)) return;
            if (answers == 20) open.close();
        },
        [&](const sigd::Response& answer) { answers += answer.sequence == answers + lost; },
        [&](std::uint64_t sequence) {
            lost += sequence == answers + lost;
            std::puts("lost");
            std::exit(answers == 20 && lost == 1 ? 0 : 1);
        });
    return 4;""",
    "turn": """
    const int loop = ::epoll_create1(0);
    if (!watch(loop, client)) return 4;
    sigd::Client* const clients[] = {&client};
    const std::vector<float> row(client.welcome().features, 0.5F);
    int answers = 0;
    const std::uint64_t begin_ns = sigd::clock_ns();
    for (int request = 1; request <= 50; ++request) {
        if (!client.send(row)) return 5;
        while (answers < request)
            if (turn(loop, clients, [&](const sigd::Response& answer) { answers += answer.ok(); }) != sigd::Errc::none)
                return 6;
    }
    return sigd::clock_ns() - begin_ns < 4'000'000'000 ? 0 : 7;  // 5 s, if only the time-out woke it""",
    "received": """
    Connection c;
    if (open(c, {.path = argv[1]}) != sigd::Errc::none) return 4;
    const std::vector<float> row(c.session.welcome.features, 0.5F);
    for (int request = 0; request < 10; ++request) add_request(c, row);
    for (int answers = 0; answers < 10;) {
        if (const auto bytes = c.buffers.pending(); !bytes.empty()) {
            const ssize_t put = ::write(c.session.socket.get(), bytes.data(), bytes.size());
            c.buffers.sent(static_cast<std::size_t>(put));
        }
        const auto space = c.buffers.writable();
        const ssize_t got = ::read(c.session.socket.get(), space.data(), space.size());
        if (got <= 0) return 5;
        const auto take = [&](const sigd::Response& answer) { answers += answer.ok(); };
        if (received(c, static_cast<std::size_t>(got), take) != sigd::Errc::none) return 6;
    }
    return 0;""",
}


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("transport", ["stream", "shared_memory"])
def test_what_can_be_run_does_what_it_says(
    cpp: CppBuilder, live_daemon: DaemonProcess, tmp_path: Path, name: str, transport: str
) -> None:
    if transport == "shared_memory" and name == "received":
        pytest.skip("is about the stream")
    connect = (
        CONNECT
        if transport == "shared_memory"
        else CONNECT.replace("connect_somehow(client, ", "client.connect(")
    )
    code = "#include <cstdio>\n#include <cstdlib>\n#include <vector>\n" + block_with(f" {name}(")
    if transport == "shared_memory":
        code += block_with("connect_somehow(")
    code += f"int main(int, char** argv) {{\n    sigd::Client client;\n    {connect}\n{PIECES[name]}\n}}\n"
    done = run(cpp, tmp_path, code, live_daemon.path)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_code_has_its_row() -> None:
    (listed,) = re.findall(r"<!-- errors -->(.*?)<!-- end -->", TEXT, re.DOTALL)
    (enumeration,) = re.findall(r"enum class \[\[nodiscard\]\] Errc.*?\{(.*?)\};", HEADERS, re.DOTALL)
    codes = re.findall(r"^\s+(\w+),", enumeration, re.MULTILINE)
    assert re.findall(r"^\| `(\w+)` \|", listed, re.MULTILINE) == codes
    for code, meaning in zip(codes, listed.strip().splitlines()[2:], strict=True):
        over = re.search(rf"^\s+{code},\s+// over", enumeration, re.MULTILINE)
        assert bool(over) == ("| over |" in meaning), code


def test_every_field_of_a_spec_has_its_row() -> None:
    (fields,) = re.findall(r"struct Spec \{(.*?)\n\};", HEADERS, re.DOTALL)
    named = re.findall(r"(\w+)(?:\{\})?(?: = [^;]+)?;", re.sub(r"//.*", "", fields))
    assert {"path", "idle"} <= set(named)
    for field in named:
        assert re.search(rf"^\|.*`{field}`.*\|.*\|$", TEXT, re.MULTILINE), field


def test_every_call_that_is_named_is_there() -> None:
    named = set(re.findall(r"`(?:\w+::)*(\w+)\(", TEXT)) - {"fork", "_exit", "add_subdirectory"}
    assert len(named) > 20
    assert {name for name in named if not re.search(rf"\b{name}\(", HEADERS)} == set()
