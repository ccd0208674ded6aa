"""sigd.models.gpu.trt_api over modules of a few lines that do what TensorRT does when it fails: answer None
or False, and log the reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sigd.models.errors import BackendUnavailable
from sigd.models.gpu.trt_api import EngineTensor, RowRange, TensorRt, TrtError, Words, load


class Level(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class Logger:
    Severity = Level

    def __init__(self) -> None:
        self.constructed = True

    def log(self, severity: Level, msg: str) -> None:
        raise NotImplementedError


class Context:
    """Answers True, but for the calls in `failing`."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime = runtime
        self.set_up: list[tuple[Any, ...]] = []

    def set_device_memory(self, memory: int, size: int) -> None:
        self.set_up.append(("memory", memory, size))

    def infer_shapes(self) -> list[str]:
        return self.runtime.missing_shapes

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (4, 3)

    def __getattr__(self, call: str) -> Any:
        def done(*arguments: Any) -> bool:
            self.set_up.append((call, *arguments))
            return self.runtime.answer(call)

        return done


class Config:
    def __init__(self) -> None:
        self.strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class FakeEngine:
    """One input [-1, 2], one output [-1, 3], two profiles."""

    num_io_tensors = 2
    num_optimization_profiles = 2
    device_memory_size_v2 = 4096

    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime = runtime
        self.made_with: Any = None

    def get_tensor_name(self, index: int) -> str:
        return ("features", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "features" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return self.runtime.dtype

    def get_tensor_format(self, name: str) -> str:
        return "linear"

    def get_tensor_location(self, name: str) -> str:
        return "device"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 2) if name == "features" else (-1, 3)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, int]]:
        return [(1, 2), (1, 2), (1, 2)] if profile_index == 0 else [(2, 2), (8, 2), (16, 2)]

    def create_runtime_config(self) -> Config:
        return Config()

    def create_execution_context(self, runtime_config: Any) -> Context | None:
        self.made_with = runtime_config
        return Context(self.runtime) if self.runtime.answer("create_execution_context") else None


class FakeRuntime:
    """A module, its runtime, and what shall go wrong."""

    def __init__(self) -> None:
        self.failing: dict[str, str] = {}
        self.before_it_fails: list[tuple[Level, str]] = []
        self.missing_shapes: list[str] = []
        self.dtype = "float"
        self.logger: Any = None
        self.engine = FakeEngine(self)

    def answer(self, call: str) -> bool:
        if call in self.failing:
            for severity, words in self.before_it_fails:
                self.logger.log(severity, words)
            self.logger.log(Level.ERROR, self.failing[call])
        return call not in self.failing

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        return self.engine if self.answer("deserialize_cuda_engine") else None

    def module(self) -> Any:
        def runtime(logger: Any) -> FakeRuntime:
            self.logger = logger
            return self

        return SimpleNamespace(
            __version__="10.13.3.9",
            ILogger=Logger,
            Runtime=runtime,
            TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
            DataType=SimpleNamespace(FLOAT="float"),
            TensorFormat=SimpleNamespace(LINEAR="linear"),
            TensorLocation=SimpleNamespace(DEVICE="device"),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="ours"),
            CudaGraphStrategy=SimpleNamespace(DISABLED="never"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="at once"),
        )


FEATURES = EngineTensor("features", (-1, 2), plain=True)
LOGITS = EngineTensor("logits", (-1, 3), plain=True)


@pytest.fixture
def nothing_loaded() -> Iterator[None]:
    """Nothing is loaded yet, and nothing stays so."""
    load.cache_clear()
    yield
    load.cache_clear()


@pytest.fixture
def fake() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def trt(fake: FakeRuntime) -> TensorRt:
    return TensorRt("tensorrt", fake.module())


@pytest.fixture
def rtx(fake: FakeRuntime) -> TensorRt:
    return TensorRt("tensorrt-rtx", fake.module())


def test_an_engine_shows_its_tensors_and_profiles(fake: FakeRuntime, trt: TensorRt) -> None:
    engine: Any = trt.deserialize(b"plan")
    assert trt.version == "10.13.3.9"
    assert trt.tensors(engine) == ([FEATURES], [LOGITS])
    assert trt.row_ranges(engine, FEATURES) == (RowRange(1, 1, 1), RowRange(2, 8, 16))
    assert trt.row_ranges(engine, EngineTensor("features", (5, 2), plain=True)) == (RowRange(5, 5, 5),)
    assert trt.scratch_bytes(engine) == 4096


def test_a_context_gets_scratch_memory_also_where_it_wants_none(fake: FakeRuntime, trt: TensorRt) -> None:
    fake.engine.device_memory_size_v2 = 0
    assert trt.scratch_bytes(fake.engine) == 256


def test_a_tensor_that_is_not_float32_is_told(fake: FakeRuntime, trt: TensorRt) -> None:
    fake.dtype = "half"
    engine: Any = trt.deserialize(b"plan")
    assert [tensor.plain for tensors in trt.tensors(engine) for tensor in tensors] == [False, False]


def test_a_context_is_made_on_our_memory_with_its_profile(fake: FakeRuntime, trt: TensorRt) -> None:
    engine: Any = trt.deserialize(b"plan")
    context: Any = trt.context(engine, (0x100, 4096), 7, 1)
    assert fake.engine.made_with.strategy == "ours"
    assert context.set_up == [("memory", 0x100, 4096), ("set_optimization_profile_async", 1, 7)]
    assert not hasattr(fake.engine.made_with, "cuda_graph_strategy")


def test_rtx_compiles_at_once_and_leaves_graphs_to_us(fake: FakeRuntime, rtx: TensorRt) -> None:
    engine: Any = rtx.deserialize(b"plan")
    rtx.context(engine, (0x100, 4096), 7, 0)
    assert fake.engine.made_with.cuda_graph_strategy == "never"
    assert fake.engine.made_with.dynamic_shapes_kernel_specialization_strategy == "at once"


def test_only_rtx_is_asked_whether_it_can_be_captured(
    fake: FakeRuntime, trt: TensorRt, rtx: TensorRt
) -> None:
    fake.failing["is_stream_capturable"] = "kernels are still being compiled"
    context: Any = Context(fake)
    trt.check_capturable(context, 7)
    assert context.set_up == []
    rtx.deserialize(b"plan")
    with pytest.raises(TrtError, match="is_stream_capturable failed: kernels are still being compiled"):
        rtx.check_capturable(context, 7)


def all_calls(trt: TensorRt) -> None:
    """Everything that opening an engine calls."""
    engine: Any = trt.deserialize(b"plan")
    context = trt.context(engine, (0x100, 4096), 7, 0)
    trt.bind(context, FEATURES, (4, 2), 0x1000)
    trt.bind_output(context, LOGITS, (4, 3), 0x2000)
    trt.enqueue(context, 7)


@pytest.mark.parametrize(
    "call",
    [
        "deserialize_cuda_engine",
        "create_execution_context",
        "set_optimization_profile_async",
        "set_input_shape",
        "set_tensor_address",
        "execute_async_v3",
    ],
)
def test_every_call_that_fails_says_what_was_logged(fake: FakeRuntime, trt: TensorRt, call: str) -> None:
    all_calls(trt)
    fake.failing[call] = "because\n  of this"
    with pytest.raises(TrtError, match=rf"{call}.* failed: because of this") as failure:
        all_calls(trt)
    assert not failure.value.out_of_memory


def test_a_call_that_fails_without_a_word_says_so(fake: FakeRuntime, trt: TensorRt) -> None:
    fake.failing["execute_async_v3"] = ""
    with pytest.raises(TrtError, match="execute_async_v3 failed: and it logged nothing"):
        all_calls(trt)


def test_words_of_an_earlier_call_are_not_blamed_on_a_later_one(fake: FakeRuntime, trt: TensorRt) -> None:
    all_calls(trt)
    fake.logger.log(Level.WARNING, "something else")
    fake.failing["set_input_shape"] = ""
    with pytest.raises(TrtError) as failure:
        all_calls(trt)
    assert "something else" not in str(failure.value)


def test_an_output_of_another_shape_is_refused(fake: FakeRuntime, trt: TensorRt) -> None:
    engine: Any = trt.deserialize(b"plan")
    context = trt.context(engine, (0x100, 4096), 7, 0)
    with pytest.raises(TrtError, match=r"'logits' has the shape \(4, 3\), expected \(4, 9\)"):
        trt.bind_output(context, LOGITS, (4, 9), 0x2000)


def test_a_shape_that_is_missing_is_named(fake: FakeRuntime, trt: TensorRt) -> None:
    fake.missing_shapes = ["features"]
    with pytest.raises(TrtError, match=r"infer_shapes \(features not known\)"):
        all_calls(trt)


@pytest.mark.parametrize(
    "words",
    [
        "[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)",
        "Requested amount of GPU memory (104 bytes) could not be allocated.",
        "OutOfMemory (no further information)",
    ],
)
def test_memory_that_was_short_is_told_from_the_words(fake: FakeRuntime, trt: TensorRt, words: str) -> None:
    fake.failing["deserialize_cuda_engine"] = words
    with pytest.raises(TrtError) as failure:
        all_calls(trt)
    assert failure.value.out_of_memory


def test_the_logger_keeps_warnings_and_worse_the_latest_of_them(fake: FakeRuntime, trt: TensorRt) -> None:
    fake.before_it_fails = [
        (Level.INFO, "chatter"),
        *((Level.WARNING, f"warning {number}") for number in range(20)),
    ]
    fake.failing["deserialize_cuda_engine"] = "the plan is damaged"
    with pytest.raises(TrtError) as failure:
        trt.deserialize(b"plan")
    words = [*(f"warning {number}" for number in range(5, 20)), "the plan is damaged"]
    assert str(failure.value).endswith(f": {'; '.join(words)}")


def test_words_are_kept_on_one_line() -> None:
    words = Words()
    words.add("first\n\tline ")
    assert words.last() == "first line"
    words.clear()
    assert words.last() == ""


@pytest.mark.parametrize(("runtime", "extra"), [("tensorrt", "sigd[gpu]"), ("tensorrt-rtx", "sigd[rtx]")])
@pytest.mark.usefixtures("nothing_loaded")
def test_a_runtime_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, runtime: Any, extra: str
) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, runtime.replace("-", "_"), missing)
    with pytest.raises(BackendUnavailable) as failure:
        load(runtime)
    assert f"pip install '{extra}'" in str(failure.value)


@pytest.mark.usefixtures("nothing_loaded")
def test_a_runtime_is_loaded_once(monkeypatch: pytest.MonkeyPatch, fake: FakeRuntime) -> None:
    module = ModuleType("tensorrt")
    vars(module).update(vars(fake.module()))
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    assert load("tensorrt") is load("tensorrt")
