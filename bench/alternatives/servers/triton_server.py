"""NVIDIA Triton with its Python backend: `python triton_server.py MODEL 127.0.0.1:PORT FEATURES OUTPUTS`.

The server and the backend come with nvidia-pytriton. One instance on the CPU, no batching, gRPC only, no
metrics.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

_CONFIGURATION = """
name: "model"
backend: "python"
max_batch_size: 0
input [ {{ name: "features" data_type: TYPE_FP32 dims: [ 1, {features} ] }} ]
output [ {{ name: "answer" data_type: TYPE_FP32 dims: [ 1, {outputs} ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


def main(model: str, address: str, features: str, outputs: str) -> None:
    """Become the server."""
    import pytriton

    here = Path(__file__).resolve().parent
    server = Path(pytriton.__file__).parent / "tritonserver"
    stub = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    backend = Path("backends").resolve() / "python"
    shutil.copytree(server / "backends" / "python", backend)
    shutil.copy(stub / "triton_python_backend_stub", backend)
    os.chmod(backend / "triton_python_backend_stub", 0o700)
    folder = Path("models/model")
    (folder / "1").mkdir(parents=True)
    shutil.copy(here / "triton_model.py", folder / "1" / "model.py")
    (folder / "config.pbtxt").write_text(_CONFIGURATION.format(features=features, outputs=outputs))
    packages = str(Path(pytriton.__file__).parents[1])
    os.environ |= {
        "BENCH_MODEL": model,
        "PYTHONPATH": f"{packages}:{here}",
        # The interpreter's library, and the one of CUDA that the wheel carries beside the stub.
        "LD_LIBRARY_PATH": f"{sysconfig.get_config_var('LIBDIR')}:{packages}/nvidia_pytriton.libs",
    }
    os.execv(
        server / "bin" / "tritonserver",
        [
            "tritonserver",
            *("--model-repository", "models", "--backend-directory", str(backend.parent)),
            *("--allow-http", "false", "--allow-metrics", "false"),
            *("--grpc-address", "127.0.0.1", "--grpc-port", address.rpartition(":")[2]),
        ],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
