"""An engine against the machine that is to run it, and the pair on the disk."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sigd.models import trusted_file
from sigd.models.engine import (
    EngineNotWritten,
    Environment,
    check_engine,
    cpu_environment,
    publish_engine,
    read_engine,
    read_manifest,
    rebuild_command,
    stage_engine,
    staging_folder,
    write_whole,
)
from sigd.models.errors import BackendUnavailable, ModelRefused
from sigd.models.manifest import Golden, Host, Manifest, Plan, Profile, Source, Target, Tensor, manifest_path
from sigd.models.processor import instruction_sets
from sigd.models.trusted_file import FileNotTrusted

PLAN = b"the plan " * 100
RTX_3090 = Environment(
    {"tensorrt-rtx": "1.7.1.116", "tensorrt": "10.13.3.9"}, "8.6", "RTX 3090", 1 << 30, cpu="x86_64"
)
Write = Callable[..., Path]


def manifest_of(plan: bytes, **changes: Any) -> Manifest:
    """The manifest of an engine for an RTX 3090."""
    fields: dict[str, Any] = {
        "runtime": "tensorrt-rtx",
        "source": Source(file="m.onnx", sha256="00" * 32, opset=17),
        "plan": Plan(file="m.engine", sha256=hashlib.sha256(plan).hexdigest(), size_bytes=len(plan)),
        "tools": {"tensorrt-rtx": "1.7.1.116", "tensorrt": "10.13.3.9", "onnxruntime": "1.32.0"},
        "target": Target(compute_capability="8.6"),
        "input": Tensor(name="features", row_dims=(4, 2)),
        "output": Tensor(name="logits", row_dims=(3,)),
        "batch_rows": None,
        "profiles": tuple(Profile(rows_min=n, rows_opt=n, rows_max=n) for n in (1, 8)),
        "precision": "fp16",
        "flags": {},
        "timing_cache_sha256": None,
        "golden": Golden(rows=1, source="seeded", features=bytes(32), outputs=bytes(12), max_abs_allowed=0.1),
        "accuracy": "not measured",
        "conversion_accuracy": "not measured",
        "host": Host(name="h", system="s", python="3.11"),
        "built_at": "2026-11-24T00:00:00+00:00",
        "build_seconds": 1.0,
        "rebuild": (
            *("sigd", "build-engine", "/models/m.onnx", "--runtime", "tensorrt-rtx"),
            *("--batch-max", "8", "--compute-capability", "8.6"),
        ),
    }
    return Manifest(**{**fields, **changes})


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Publishes an engine with a manifest: (plan=PLAN, **changes of the manifest) -> its path."""

    def write(plan: bytes = PLAN, **changes: Any) -> Path:
        engine = tmp_path / "m.engine"
        with staging_folder(engine) as folder:
            publish_engine(stage_engine(folder, engine, plan, manifest_of(plan, **changes)), engine)
        return engine

    return write


def test_an_engine_that_fits_gives_its_spec(write: Write) -> None:
    spec = check_engine(write(), environment=RTX_3090, batch_rows_max=8, name="lob")
    assert (spec.name, spec.features, spec.outputs) == ("lob", 8, 3)
    assert (spec.input_name, spec.input_dims, spec.output_name, spec.output_dims) == (
        "features",
        (4, 2),
        "logits",
        (3,),
    )
    assert (spec.batch_rows, spec.opset) == (None, None)
    assert spec.sha256 == hashlib.sha256(PLAN).digest()
    assert read_engine(spec) == PLAN


def test_without_a_name_the_file_gives_it(write: Write) -> None:
    assert check_engine(write(), environment=RTX_3090).name == "m"


def changed(**changes: Any) -> Environment:
    return dataclasses.replace(RTX_3090, **changes)


@pytest.mark.parametrize(
    ("environment", "error", "message"),
    [
        (
            changed(compute_capability="8.9", gpu="RTX 4090"),
            ModelRefused,
            r"built for compute capability 8\.6, RTX 4090 has 8\.9: .*--compute-capability 8\.9",
        ),
        (
            changed(versions={"tensorrt-rtx": "1.7.2.1"}),
            ModelRefused,
            r"built by tensorrt-rtx 1\.7\.1\.116, here is 1\.7\.2\.1, expected the same: .*sigd build-engine",
        ),
        (
            changed(versions={"onnxruntime": "1.32.0"}),
            BackendUnavailable,
            r"which is not installed here: pip install 'sigd\[rtx\]'; .*--runtime auto",
        ),
        (changed(compute_capability=None), BackendUnavailable, "there is none here"),
        (
            changed(memory_free_bytes=(48 << 20)),
            BackendUnavailable,
            r"needs at least 64 MiB on RTX 3090, 48 MiB are free: .*sigd build-engine",
        ),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_with_the_way_out(
    write: Write, environment: Environment, error: type[Exception], message: str
) -> None:
    engine = write(
        target=Target(compute_capability="8.6", device_memory_bytes=(64 << 20) - len(PLAN)),
    )
    check_engine(engine, environment=RTX_3090)
    with pytest.raises(error, match=message):
        check_engine(engine, environment=environment)


def test_memory_that_was_not_asked_for_is_not_checked(write: Write) -> None:
    engine = write(target=Target(compute_capability="8.6", device_memory_bytes=1 << 40))
    check_engine(engine, environment=changed(memory_free_bytes=None))


def test_batches_beyond_the_profiles_are_refused(write: Write) -> None:
    with pytest.raises(
        ModelRefused, match=r"at most 8 rows, asked for 9: serve with --batch-rows-max 8, .*--batch-max 9"
    ):
        check_engine(write(), environment=RTX_3090, batch_rows_max=9)


def test_a_fixed_batch_is_served_whatever_is_asked_for(write: Write) -> None:
    engine = write(batch_rows=8, profiles=(Profile(rows_min=8, rows_opt=8, rows_max=8),))
    assert check_engine(engine, environment=RTX_3090, batch_rows_max=64).batch_rows == 8


def test_onnx_runtime_serves_other_batches_and_other_patch_releases(write: Write) -> None:
    engine = write(runtime="onnxruntime", target=Target())
    spec = check_engine(engine, environment=Environment({"onnxruntime": "1.32.5"}), batch_rows_max=1000)
    assert spec.opset == 17
    with pytest.raises(ModelRefused, match=r"onnxruntime 1\.32\.0, here is 1\.33\.0"):
        check_engine(engine, environment=Environment({"onnxruntime": "1.33.0"}))


def test_a_layout_for_another_processor_is_refused(write: Write) -> None:
    engine = write(runtime="onnxruntime", target=Target(cpu="x86_64 avx512f"))
    versions = {"onnxruntime": "1.32.0"}
    check_engine(engine, environment=Environment(versions, cpu="x86_64 avx512f"))
    with pytest.raises(
        ModelRefused, match=r"with x86_64 avx512f, this one has x86_64 avx2: .*sigd build-engine"
    ):
        check_engine(engine, environment=Environment(versions, cpu="x86_64 avx2"))


def test_a_changed_engine_is_refused(write: Write) -> None:
    engine = write()
    spec = check_engine(engine, environment=RTX_3090)
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(ModelRefused, match=r"not the engine that its manifest describes.*sigd build-engine"):
        check_engine(engine, environment=RTX_3090)
    with pytest.raises(ModelRefused, match=r"not the engine that its manifest describes.*load it again"):
        read_engine(spec)


@pytest.mark.parametrize("which", ["m.engine", "m.engine.json"])
def test_a_pair_that_others_could_change_is_not_served(
    write: Write, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    engine = write()
    monkeypatch.setattr(trusted_file._demand, "made", True)
    check_engine(engine, environment=RTX_3090)
    engine.with_name(which).chmod(0o666)
    with pytest.raises(FileNotTrusted, match=f"chmod .*{which}"):
        check_engine(engine, environment=RTX_3090)


def test_an_engine_without_a_manifest_is_refused(write: Write) -> None:
    engine = write()
    manifest_path(engine).unlink()
    with pytest.raises(ModelRefused, match=r"m\.engine\.json: no such file: .*Copy both files"):
        check_engine(engine, environment=RTX_3090)


def test_a_manifest_without_an_engine_is_refused(write: Write) -> None:
    engine = write()
    engine.unlink()
    with pytest.raises(ModelRefused, match=r"m\.engine: cannot be read: No such file"):
        check_engine(engine, environment=RTX_3090)


def test_a_crash_between_the_two_renames_never_leaves_a_pair_that_loads(write: Write, tmp_path: Path) -> None:
    engine = write(b"old plan")
    with staging_folder(engine) as folder:
        staged = stage_engine(folder, engine, b"new plan", manifest_of(b"new plan"))
        moves = [(staged, engine), (manifest_path(staged), manifest_path(engine))]
        for done in range(len(moves) + 1):
            shutil.rmtree(tmp_path / "crashed", ignore_errors=True)
            (tmp_path / "crashed").mkdir()
            for file in (engine, manifest_path(engine)):
                shutil.copy(file, tmp_path / "crashed" / file.name)
            for source, target in moves[:done]:
                shutil.copy(source, tmp_path / "crashed" / target.name)
            crashed = tmp_path / "crashed" / engine.name
            if done == 1:
                with pytest.raises(ModelRefused, match="not the engine that its manifest describes"):
                    check_engine(crashed, environment=RTX_3090)
            else:
                check_engine(crashed, environment=RTX_3090)


def test_the_engine_is_renamed_before_its_manifest(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, order = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        order.append(Path(target).name)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write()
    assert order == ["m.engine", "m.engine.json"]


@pytest.mark.parametrize(
    ("failing", "message", "left"),
    [
        (1, "nothing was left behind", []),
        (2, "nothing was left behind", []),
        (3, "is there, but the disk does not confirm it", ["m.engine", "m.engine.json"]),
    ],
)
def test_a_disk_that_fails_at_any_sync_leaves_no_part_behind(
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
    message: str,
    left: list[str],
) -> None:
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(EngineNotWritten, match=message):
        write()
    assert sorted(path.name for path in tmp_path.iterdir()) == left


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system: run the tests as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_engine_that_was_there(tiny_disk: Path) -> None:
    engine = tiny_disk / "m.engine"
    old, new = b"o" * 10_000, b"n" * 60_000

    def write(plan: bytes) -> None:
        with staging_folder(engine) as folder:
            publish_engine(stage_engine(folder, engine, plan, manifest_of(plan)), engine)

    write(old)
    with pytest.raises(EngineNotWritten, match="No space left on device"):
        write(new)
    assert sorted(path.name for path in tiny_disk.iterdir()) == ["m.engine", "m.engine.json"]
    assert read_engine(check_engine(engine, environment=RTX_3090)) == old


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(EngineNotWritten, match=r"gone/m\.engine: cannot be written \(No such file"),
        staging_folder(tmp_path / "gone" / "m.engine"),
    ):
        pass


def test_a_file_of_its_own_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_the_rebuild_command_takes_changes() -> None:
    manifest = manifest_of(PLAN)
    assert rebuild_command(manifest) == (
        "sigd build-engine /models/m.onnx --runtime tensorrt-rtx --batch-max 8 --compute-capability 8.6"
    )
    assert rebuild_command(manifest, {"--batch-buckets": "1,2", "--runtime": "auto"}) == (
        "sigd build-engine /models/m.onnx --runtime auto --compute-capability 8.6 --batch-buckets 1,2"
    )


def test_the_rebuild_command_keeps_flags_and_options_that_come_twice() -> None:
    words = (*manifest_of(PLAN).rebuild[:3], "--dim", "T=3", "--dim", "K=2", "--seed", "-1", "--salvage")
    manifest = msgspec.structs.replace(manifest_of(PLAN), rebuild=words)
    assert rebuild_command(manifest, {"--seed": "2"}) == (
        "sigd build-engine /models/m.onnx --dim T=3 --dim K=2 --seed 2 --salvage"
    )


def test_the_cpu_environment_is_this_machine() -> None:
    import onnxruntime

    environment = cpu_environment()
    assert environment.versions == {"onnxruntime": onnxruntime.__version__}
    assert environment.cpu == instruction_sets()
    assert environment.compute_capability is None


def test_the_manifest_is_read_back(write: Write) -> None:
    assert read_manifest(write()) == manifest_of(PLAN)
