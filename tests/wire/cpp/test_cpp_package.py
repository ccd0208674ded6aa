"""How other projects find the headers: CMake, pkg-config, a line of Python."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import sigd
from sigd.wire.schema.cpp_header import include_dir, package_dir

if TYPE_CHECKING:
    from tests.wire.cpp.conftest import DaemonProcess

CONSUMER = """
#include <cstdio>
#include <sigd/sigd.hpp>
int main() {
    sigd::Client client;
    const auto code = client.connect({.path = "/no/such/socket"});
    std::printf("%s %zu\\n", sigd::name(code), sigd::wire::request_frame_bytes(64));
}
"""
CMAKE_LISTS = """
cmake_minimum_required(VERSION 3.16)
project(consumer LANGUAGES CXX)
find_package(sigd {version} REQUIRED)
add_executable(consumer consumer.cpp)
target_link_libraries(consumer PRIVATE sigd::sigd)
"""
SAYS = "connect_failed 296\n"


def need(*programs: str) -> None:
    """Skip where one is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (Debian: apt install {program})")


def run(*command: str | Path, **environment: str) -> str:
    """What a command that must succeed prints."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def consumer(tmp_path: Path) -> Path:
    """A project that uses sigd."""
    project = tmp_path / "consumer"
    project.mkdir()
    (project / "consumer.cpp").write_text(CONSUMER)
    (project / "CMakeLists.txt").write_text(CMAKE_LISTS.format(version="0.1"))
    return project


def test_package_and_headers_have_the_version_of_pyproject() -> None:
    with (Path(__file__).parents[3] / "pyproject.toml").open("rb") as file:
        assert sigd.__version__ == tomllib.load(file)["project"]["version"], (
            "make .venv/.dev installs it anew"
        )
    share = package_dir() / "share"
    assert f"\nVersion: {sigd.__version__}\n" in (share / "pkgconfig" / "sigd.pc").read_text()
    version_file = share / "cmake" / "sigd" / "sigdConfigVersion.cmake"
    assert f"\nset(PACKAGE_VERSION {sigd.__version__})\n" in version_file.read_text()
    assert f"project(sigd VERSION {sigd.__version__} " in (package_dir() / "CMakeLists.txt").read_text()
    major, minor, _ = sigd.__version__.split(".")
    assert f"MAJOR EQUAL {major} AND PACKAGE_FIND_VERSION_MINOR EQUAL {minor}\n" in version_file.read_text()


def test_the_version_is_in_the_names_that_linkers_see() -> None:
    major, minor, _ = sigd.__version__.split(".")
    for path in (include_dir() / "sigd").glob("*.hpp"):
        opened = re.findall(r"^namespace (.*) \{$", path.read_text("utf-8"), re.MULTILINE)
        if path.name != "sigd.hpp":
            assert {name.removesuffix("::wire") for name in opened if name != "detail"} == {
                f"sigd::inline v{major}_{minor}"
            }


ASKS = """
#include <vector>
#include <sigd/sigd.hpp>
extern "C" unsigned ask_{name}(const char* path) {{
    sigd::Client client;
    if (client.connect({{.path = path}}) != sigd::Errc::none) return 0;
    const auto answer = client.request(std::vector<float>(client.welcome().features), {{.instrument_id = {number}}});
    return answer && (*answer)->ok() ? (*answer)->instrument_id : 0;
}}
"""
ASKS_BOTH = """
#include <cstdio>
extern "C" unsigned ask_one(const char*), ask_other(const char*);
int main(int, char** argv) { std::printf("%u %u\\n", ask_one(argv[1]), ask_other(argv[1])); }
"""


@pytest.mark.slow
def test_two_versions_in_one_process_do_not_mix(live_daemon: DaemonProcess, tmp_path: Path) -> None:
    """The other one has its fields in other places. Without optimisation each inline function is a symbol,
    of which the linker keeps one of each name."""
    need("g++")
    major, minor, _ = sigd.__version__.split(".")
    shutil.copytree(include_dir(), tmp_path / "other")
    for path in (tmp_path / "other" / "sigd").glob("*.hpp"):
        text = path.read_text().replace(f"v{major}_{minor}", "v9_9")
        path.write_text(text.replace("struct Tags {", "struct Tags {\n    std::uint64_t moved[4]{};"))
    (tmp_path / "both.cpp").write_text(ASKS_BOTH)
    for name, number, include in (("one", 11, include_dir()), ("other", 22, tmp_path / "other")):
        (tmp_path / f"{name}.cpp").write_text(ASKS.format(name=name, number=number))
        run(
            *("g++", "-std=c++20", "-O0", "-I", include, "-c"),
            *(tmp_path / f"{name}.cpp", "-o", tmp_path / f"{name}.o"),
        )
    run("g++", *(tmp_path / name for name in ("both.cpp", "one.o", "other.o")), "-o", tmp_path / "both")
    assert run(tmp_path / "both", live_daemon.path) == "11 22\n"


def test_cmake_finds_the_package_where_it_lies(consumer: Path) -> None:
    need("cmake", "make", "g++")
    build = consumer / "build"
    run("cmake", "-S", consumer, "-B", build, f"-DCMAKE_PREFIX_PATH={package_dir()}", "-G", "Unix Makefiles")
    run("cmake", "--build", build)
    assert run(build / "consumer") == SAYS


def found(version: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What CMake says to a project that asks for a version."""
    need("cmake", "make")
    lists = (
        f"cmake_minimum_required(VERSION 3.16)\nproject(asks LANGUAGES NONE)\nfind_package(sigd {version}"
        " REQUIRED)\n"
    )
    (folder / "CMakeLists.txt").write_text(lists)
    command = ["cmake", "-S", str(folder), "-B", str(folder / "build"), "-G", "Unix Makefiles"]
    return subprocess.run(
        [*command, f"-DCMAKE_PREFIX_PATH={package_dir()}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("version", ["", "0.1", "0.1.0", "0.1.0 EXACT"])
def test_cmake_takes_a_version_that_will_do(tmp_path: Path, version: str) -> None:
    done = found(version, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("version", ["0", "0.2", "1.0", "0.1.1", "0.0", "0.1.1 EXACT"])
def test_cmake_does_not_take_another_version(tmp_path: Path, version: str) -> None:
    done = found(version, tmp_path)
    assert done.returncode != 0
    assert "version: 0.1.0" in done.stderr


@pytest.mark.parametrize(
    ("versions", "takes"),
    [
        ("0.1...0.3", True),
        ("0.0...0.1.0", True),
        ("0.0...<1.0", True),
        ("0.0...<0.1.0", False),
        ("0.0...0.0.9", False),
        ("0.2...1.0", False),
    ],
)
def test_cmake_takes_a_range_at_its_word(tmp_path: Path, versions: str, takes: bool) -> None:
    need("cmake")
    major, minor = re.findall(r"version (\d+)\.(\d+)", run("cmake", "--version"))[0]
    if (int(major), int(minor)) < (3, 19):
        pytest.skip("this CMake knows no ranges of versions (3.19)")
    assert (found(versions, tmp_path).returncode == 0) is takes


def test_the_page_says_how(consumer: Path) -> None:
    need("cmake", "make", "g++")
    page = Path(__file__).resolve().parents[3] / "docs" / "cpp.md"
    (lines,) = re.findall(r"```cmake\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    (consumer / "engine.cpp").write_text(CONSUMER)
    head = "cmake_minimum_required(VERSION 3.16)\nproject(engine LANGUAGES CXX)\n"
    (consumer / "CMakeLists.txt").write_text(head + lines)
    build = consumer / "build"
    run("cmake", "-S", consumer, "-B", build, f"-DCMAKE_PREFIX_PATH={package_dir()}", "-G", "Unix Makefiles")
    run("cmake", "--build", build)
    assert run(build / "engine") == SAYS


def test_inside_of_another_project_it_is_a_target_and_no_more(consumer: Path) -> None:
    need("cmake", "make", "g++")
    lists = CMAKE_LISTS.format(version="").replace(
        "find_package(sigd  REQUIRED)", f'add_subdirectory("{package_dir()}" sigd)'
    )
    assert "add_subdirectory" in lists
    (consumer / "CMakeLists.txt").write_text(f"{lists}install(TARGETS consumer DESTINATION bin)\n")
    build, prefix = consumer / "build", consumer / "prefix"
    run("cmake", "-S", consumer, "-B", build, "-DSIGD_EXAMPLES=ON", "-G", "Unix Makefiles")
    run("cmake", "--build", build)
    assert run(build / "consumer") == SAYS
    assert "minimal" not in run("cmake", "--build", build, "--target", "help")
    run("cmake", "--install", build, "--prefix", prefix)
    assert [path.name for path in prefix.rglob("*") if path.is_file()] == ["consumer"]


def test_a_project_that_adds_the_folder_can_export_its_targets(consumer: Path) -> None:
    need("cmake", "make", "g++")
    lists = CMAKE_LISTS.format(version="").replace(
        "find_package(sigd  REQUIRED)", f'add_subdirectory("{package_dir()}" sigd)'
    )
    (consumer / "CMakeLists.txt").write_text(
        lists + "install(TARGETS sigd consumer EXPORT all DESTINATION bin)\n"
        "install(EXPORT all DESTINATION share NAMESPACE engine::)\n"
    )
    build, prefix = consumer / "build", consumer / "prefix"
    run("cmake", "-S", consumer, "-B", build, "-G", "Unix Makefiles")
    run("cmake", "--build", build)
    run("cmake", "--install", build, "--prefix", prefix)
    exported = (prefix / "share" / "all.cmake").read_text()
    assert "engine::sigd" in exported
    assert str(package_dir()) not in exported


def test_headers_compile_with_libcxx(tmp_path: Path) -> None:
    if shutil.which("clang++") is None:
        pytest.skip("needs clang++ (Debian: apt install clang)")
    source = tmp_path / "probe.cpp"
    source.write_text("#include <version>\n#ifndef _LIBCPP_VERSION\n#error\n#endif\n")
    flags = ("-std=c++20", "-stdlib=libc++", "-fsyntax-only")
    if subprocess.run(["clang++", *flags, source], capture_output=True, check=False).returncode:
        pytest.skip("needs libc++ (Debian: apt install libc++-dev libc++abi-dev)")
    source.write_text("#include <sigd/sigd.hpp>\nsigd::Client client;\n")
    run("clang++", *flags, "-Wall", "-Wextra", "-Werror", f"-I{include_dir()}", source)


@pytest.mark.parametrize(
    "chosen",
    [
        (),
        (
            "-DCMAKE_INSTALL_LIBDIR=lib64",
            "-DCMAKE_INSTALL_INCLUDEDIR=cpp/headers",
            "-DCMAKE_INSTALL_DATADIR=lib/data",
        ),
        ("-DCMAKE_INSTALL_INCLUDEDIR={folder}/elsewhere",),
        ("-DCMAKE_INSTALL_DATADIR={folder}/elsewhere", "-DCMAKE_INSTALL_PREFIX={prefix}"),
    ],
    ids=["usual", "other", "absolute-headers", "absolute-data"],
)
def test_installed_wherever(consumer: Path, tmp_path: Path, chosen: tuple[str, ...]) -> None:
    need("cmake", "make", "g++", "pkg-config")
    build, prefix = tmp_path / "build", tmp_path / "a prefix"
    options = [option.format(folder=tmp_path, prefix=prefix) for option in chosen]
    run("cmake", "-S", package_dir(), "-B", build, *options, "-G", "Unix Makefiles")
    run("cmake", "--install", build, "--prefix", prefix)
    if not any(str(tmp_path) in option for option in options):
        prefix = prefix.rename(tmp_path / "moved here")
    (config,) = [path for path in tmp_path.rglob("sigdConfig.cmake") if not path.is_relative_to(build)]
    found_with = (
        "-G",
        "Unix Makefiles",
        f"-Dsigd_DIR={config.parent}" if chosen else f"-DCMAKE_PREFIX_PATH={prefix}",
    )
    run("cmake", "-S", consumer, "-B", consumer / "build", *found_with)
    run("cmake", "--build", consumer / "build")
    assert run(consumer / "build" / "consumer") == SAYS
    flags = pkg_config_flags(config.parents[2] / "pkgconfig")
    (folder,) = [Path(flag.removeprefix("-I")) for flag in flags]
    assert (folder / "sigd" / "sigd.hpp").is_file()
    assert not folder.resolve().is_relative_to(package_dir())
    assert _with_pkg_config(consumer, config.parents[2] / "pkgconfig") == SAYS


@pytest.mark.slow
def test_the_examples(tmp_path: Path) -> None:
    need("cmake", "make", "g++")
    build = tmp_path / "build"
    run("cmake", "-S", package_dir(), "-B", build, "-DSIGD_EXAMPLES=ON", "-G", "Unix Makefiles")
    run("cmake", "--build", build)
    assert (build / "minimal").exists()
    assert (build / "soak").exists()


def test_pkg_config_finds_the_package_where_it_lies(consumer: Path) -> None:
    need("pkg-config", "g++")
    assert _with_pkg_config(consumer, package_dir() / "share" / "pkgconfig") == SAYS


def pkg_config_flags(path: Path) -> list[str]:
    """As a shell hands them to a compiler."""
    return shlex.split(run("pkg-config", "--cflags", "sigd", PKG_CONFIG_PATH=str(path)))


def _with_pkg_config(consumer: Path, path: Path) -> str:
    flags = pkg_config_flags(path)
    program = consumer / "with-pkg-config"
    run("g++", "-std=c++20", *flags, "-o", program, consumer / "consumer.cpp")
    return run(program)


def test_the_folder_in_a_line() -> None:
    line = "from sigd.wire.schema.cpp_header import include_dir; print(include_dir())"
    assert run(sys.executable, "-P", "-c", line) == f"{include_dir()}\n"
    assert (include_dir() / "sigd" / "sigd.hpp").is_file()
