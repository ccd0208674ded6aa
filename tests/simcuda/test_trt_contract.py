"""Every TensorRT name, signature and enumerator that sigd uses exists in the real bindings of every version
it supports.

    our code  --mypy-->  protocols (sigd.models.gpu.trt_types, sigd.models.build.builder_types)  --here-->  the bindings

The bindings are NVIDIA's own, from PyPI, over empty libraries: they can be read, and that is all that is done
with them. The stand-in is held to the same protocols.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest

from sigd.models.build import builder_types
from sigd.models.gpu import trt_types

HERE = Path(__file__).parent
VERSIONS = ("tensorrt-10.13.3.9", "tensorrt-10.16.1.11", "tensorrt-11.4.0.106", "tensorrt-rtx-1.7.1.116")
TABLES: tuple[ModuleType, ...] = (trt_types, builder_types)
_CHECKED_RETURNS = {"bool": "bool", "int": "int", "str": "str", "None": "None"}
"""Return types that are told apart; others are objects of the bindings."""

Bindings = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="session")
def bindings(simcuda_home: Path) -> Bindings:
    """What a version of the bindings offers: (name and version) -> see read_bindings.py."""

    @cache
    def bindings(name: str) -> dict[str, Any]:
        folder = simcuda_home / "bindings" / name
        module = "tensorrt_rtx_bindings" if "rtx" in name else "tensorrt_bindings"
        done = subprocess.run(
            [sys.executable, "-P", str(HERE / "read_bindings.py"), module],
            env={**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return bindings


# -- the comparison --------------------------------------------------------------------------------------


def wrong_in_class(name: str, protocol: type, offered: Mapping[str, Any]) -> list[str]:
    """What a protocol says of a class that the bindings do not bear out."""
    members = offered["classes"].get(name)
    if members is None:
        return [f"there is no class {name}"]
    wrong: list[str] = []
    for member, expected in _members_of(protocol).items():
        found = members.get(member)
        if found is None:
            wrong.append(f"{name} has no {member}")
        elif isinstance(expected, property) or expected is None:
            if found["kind"] != "property" or (expected is None and not found["writable"]):
                wrong.append(
                    f"{name}.{member} is no {'attribute that can be set' if expected is None else 'property'}"
                )
        elif found["kind"] != "method":
            wrong.append(f"{name}.{member} is no method")
        else:
            wrong += _wrong_call(f"{name}.{member}", expected, found["signatures"])
    return wrong


def wrong_in_enumeration(name: str, protocol: type, offered: Mapping[str, Any]) -> list[str]:
    """The enumerators of a protocol that the bindings do not have."""
    known = offered["enumerations"].get(name)
    if known is None:
        return [f"there is no enumeration {name}"]
    return [f"{name} has no {member}" for member in _members_of(protocol) if member not in known]


def wrong_in_module(protocol: type, offered: Mapping[str, Any]) -> list[str]:
    """What a protocol says of the module itself: names, and how its classes are constructed."""
    wrong: list[str] = []
    for member, expected in _members_of(protocol).items():
        if member not in offered["names"]:
            wrong.append(f"the module has no {member}")
        elif expected is not None:
            wrong += _wrong_call(
                member, expected, offered["classes"][member]["__init__"]["signatures"], returns=False
            )
    return wrong


def _members_of(protocol: type) -> dict[str, Any]:
    """Functions and properties of a protocol and its bases, by name; None stands for an attribute that is
    set."""
    members: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if base in (object, Protocol) or not getattr(base, "_is_protocol", False):
            continue
        members.update(dict.fromkeys(inspect.get_annotations(base)))
        for name, value in vars(base).items():
            if isinstance(value, property) or (inspect.isfunction(value) and _is_ours(name)):
                members[name] = value
    return members


def _is_ours(name: str) -> bool:
    return name in ("__len__", "__getitem__") or not name.startswith("_")


def _wrong_call(
    what: str, expected: Any, offered: list[dict[str, Any]], *, returns: bool = True
) -> list[str]:
    signature = inspect.signature(expected)
    names = [name for name in signature.parameters if name != "self"]
    wanted = _CHECKED_RETURNS.get(str(signature.return_annotation)) if returns else None
    for overload in offered:
        given, rest = overload["parameters"][: len(names)], overload["parameters"][len(names) :]
        if [name for name, _ in given] != names or not all(optional for _, optional in rest):
            continue
        if wanted is None or overload["returns"] == wanted:
            return []
    shown = "; ".join(
        f"({', '.join(name for name, _ in overload['parameters'])}) -> {overload['returns']}"
        for overload in offered
    )
    return [f"{what} is not ({', '.join(names)}) -> {wanted or 'anything'} but {shown}"]


def all_wrong(table: ModuleType, offered: Mapping[str, Any], *, rtx: bool) -> list[str]:
    """All that a table of protocols says wrongly."""
    classes = table.RTX_CLASSES if rtx else table.CLASSES
    enumerations = getattr(table, "RTX_ENUMERATIONS", table.ENUMERATIONS) if rtx else table.ENUMERATIONS
    wrong = wrong_in_module(table.RtxModule if rtx else table.Module, offered)
    for name, protocol in classes.items():
        wrong += wrong_in_class(name, protocol, offered)
    for name, protocol in enumerations.items():
        wrong += wrong_in_enumeration(name, protocol, offered)
    return wrong


# -- the contract ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__.rsplit(".", 1)[-1])
@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_is_used_exists(bindings: Bindings, version: str, table: ModuleType) -> None:
    offered = bindings(version)
    assert version.endswith(offered["version"].removesuffix(".post1"))
    assert all_wrong(table, offered, rtx="rtx" in version) == []


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__.rsplit(".", 1)[-1])
@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_the_stand_in_has_all_that_is_used(table: ModuleType, module: str) -> None:
    standin = importlib.import_module(module)
    rtx = module == "tensorrt_rtx"
    enumerations = getattr(table, "RTX_ENUMERATIONS", table.ENUMERATIONS) if rtx else table.ENUMERATIONS
    missing = []
    for name, protocol in {**(table.RTX_CLASSES if rtx else table.CLASSES), **enumerations}.items():
        found = functools.reduce(getattr, name.split("."), standin)
        # What is set on an object is made by its constructor, and so not to be seen in its class.
        calls = {
            member for member, expected in _members_of(protocol).items() if name in enumerations or expected
        }
        missing += [f"{name}.{member}" for member in calls if not hasattr(found, member)]
    assert missing == []


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_read_differs_between_versions(bindings: Bindings, version: str) -> None:
    """A flag that is not used here, because it went with version 11: so these really are other bindings."""
    flags = bindings(version)["enumerations"]["BuilderFlag"]
    assert ("FP16" in flags) == version.startswith("tensorrt-10.")


def test_the_capability_of_the_card_is_one_that_rtx_builds_for(bindings: Bindings) -> None:
    assert "SM86" in bindings("tensorrt-rtx-1.7.1.116")["enumerations"]["ComputeCapability"]


# -- the contract fails when it should
# -------------------------------------------------------------------------------


class MisspeltContext(Protocol):
    def execute_async_v33(self, stream_handle: int) -> bool: ...


class OtherParameter(Protocol):
    def execute_async_v3(self, stream: int) -> bool: ...


class OneParameterMore(Protocol):
    def execute_async_v3(self, stream_handle: int, priority: int) -> bool: ...


class OneParameterLess(Protocol):
    def set_tensor_address(self, name: str) -> bool: ...


class OtherReturn(Protocol):
    def execute_async_v3(self, stream_handle: int) -> int: ...


class NoMethod(Protocol):
    def active_optimization_profile(self) -> int: ...


class NoProperty(Protocol):
    @property
    def infer_shapes(self) -> int: ...


class NotToBeSet(Protocol):
    active_optimization_profile: int


class MisspeltMode(Protocol):
    INPUTS: Any


class MisspeltModule(Protocol):
    TensorIOModes: Any


class OtherConstructor(Protocol):
    def Runtime(self, log: Any) -> Any: ...  # noqa: N802


@pytest.mark.parametrize(
    ("protocol", "wrong"),
    [
        (MisspeltContext, "IExecutionContext has no execute_async_v33"),
        (OtherParameter, r"execute_async_v3 is not \(stream\) -> bool but \(stream_handle\) -> bool"),
        (OneParameterMore, r"execute_async_v3 is not \(stream_handle, priority\)"),
        (OneParameterLess, r"set_tensor_address is not \(name\) -> bool but \(name, memory\) -> bool"),
        (OtherReturn, r"execute_async_v3 is not \(stream_handle\) -> int"),
        (NoMethod, "active_optimization_profile is no method"),
        (NoProperty, "infer_shapes is no property"),
        (NotToBeSet, "active_optimization_profile is no attribute that can be set"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_protocol_that_is_wrong_is_found(
    bindings: Bindings, version: str, protocol: type, wrong: str
) -> None:
    (found,) = wrong_in_class("IExecutionContext", protocol, bindings(version))
    assert re.search(wrong, found)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_wrong_name_of_anything_else_is_found(bindings: Bindings, version: str) -> None:
    offered = bindings(version)
    assert wrong_in_class("IExecutionContexts", trt_types.ExecutionContext, offered) == [
        "there is no class IExecutionContexts"
    ]
    assert wrong_in_enumeration("TensorIOMode", MisspeltMode, offered) == ["TensorIOMode has no INPUTS"]
    assert wrong_in_enumeration("TensorIOModes", trt_types.IoModes, offered) == [
        "there is no enumeration TensorIOModes"
    ]
    assert wrong_in_module(MisspeltModule, offered) == ["the module has no TensorIOModes"]
    assert wrong_in_module(OtherConstructor, offered) == [
        "Runtime is not (log) -> anything but (logger) -> None"
    ]


@pytest.mark.parametrize("version", VERSIONS[:3])
def test_what_only_rtx_has_is_found_missing_elsewhere(bindings: Bindings, version: str) -> None:
    assert all_wrong(trt_types, bindings(version), rtx=True) == [
        "the module has no CudaGraphStrategy",
        "the module has no DynamicShapesKernelSpecializationStrategy",
        "IRuntimeConfig has no cuda_graph_strategy",
        "IRuntimeConfig has no dynamic_shapes_kernel_specialization_strategy",
        "IExecutionContext has no is_stream_capturable",
        "there is no enumeration CudaGraphStrategy",
        "there is no enumeration DynamicShapesKernelSpecializationStrategy",
    ]
