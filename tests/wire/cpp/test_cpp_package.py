"""How other projects find the headers: CMake, pkg-config, a line of Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sigd
from sigd.wire.cpp_header import include_dir, package_dir

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


def test_everybody_says_the_same_version() -> None:
    share = package_dir() / "share"
    assert f"\nVersion: {sigd.__version__}\n" in (share / "pkgconfig" / "sigd.pc").read_text()
    version_file = share / "cmake" / "sigd" / "sigdConfigVersion.cmake"
    assert f"\nset(PACKAGE_VERSION {sigd.__version__})\n" in version_file.read_text()
    assert f"project(sigd VERSION {sigd.__version__} " in (package_dir() / "CMakeLists.txt").read_text()
    major, minor, _ = sigd.__version__.split(".")
    assert f"MAJOR EQUAL {major} AND PACKAGE_FIND_VERSION_MINOR EQUAL {minor}\n" in version_file.read_text()


def test_cmake_finds_the_package_where_it_lies(consumer: Path) -> None:
    need("cmake", "make", "g++")
    build = consumer / "build"
    run("cmake", "-S", consumer, "-B", build, f"-DCMAKE_PREFIX_PATH={package_dir()}", "-G", "Unix Makefiles")
    run("cmake", "--build", build)
    assert run(build / "consumer") == SAYS


@pytest.mark.parametrize("version", ["0.2", "1.0", "0.1.1", "0.0"])
def test_cmake_does_not_take_another_version(consumer: Path, version: str) -> None:
    need("cmake", "make", "g++")
    (consumer / "CMakeLists.txt").write_text(CMAKE_LISTS.format(version=version))
    command = ["cmake", "-S", str(consumer), "-B", str(consumer / "build"), "-G", "Unix Makefiles"]
    done = subprocess.run(
        [*command, f"-DCMAKE_PREFIX_PATH={package_dir()}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert "version: 0.1.0" in done.stderr


@pytest.mark.slow
def test_an_installed_package_and_the_examples(consumer: Path, tmp_path: Path) -> None:
    need("cmake", "make", "g++", "pkg-config")
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    run("cmake", "-S", package_dir(), "-B", build, "-DSIGD_EXAMPLES=ON", "-G", "Unix Makefiles")
    run("cmake", "--build", build)
    assert (build / "minimal").exists()
    assert (build / "soak").exists()
    run("cmake", "--install", build, "--prefix", prefix)
    run("cmake", "-S", consumer, "-B", consumer / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", consumer / "build")
    assert run(consumer / "build" / "consumer") == SAYS
    assert _with_pkg_config(consumer, prefix / "share" / "pkgconfig") == SAYS


def test_pkg_config_finds_the_package_where_it_lies(consumer: Path) -> None:
    need("pkg-config", "g++")
    assert _with_pkg_config(consumer, package_dir() / "share" / "pkgconfig") == SAYS


def _with_pkg_config(consumer: Path, path: Path) -> str:
    flags = run("pkg-config", "--cflags", "sigd", PKG_CONFIG_PATH=str(path)).split()
    program = consumer / "with-pkg-config"
    run("g++", "-std=c++20", *flags, "-o", program, consumer / "consumer.cpp")
    return run(program)


def test_the_folder_in_a_line() -> None:
    line = "from sigd.wire.cpp_header import include_dir; print(include_dir())"
    assert run(sys.executable, "-P", "-c", line) == f"{include_dir()}\n"
    assert (include_dir() / "sigd" / "sigd.hpp").is_file()
