"""Where numbanet runs: versions, processor, vectors, threads, cache."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numba
import numpy as np

import numbanet
from numbanet.backend import cache, intrinsics, threads

OPTIONAL = (
    "click",
    "scikit-learn",
    "h5py",
    "pooch",
    "matplotlib",
    "numba-cuda",
    "onnx",
    "safetensors",
)
FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512vl", "avx512bf16", "neon", "sve")


def show_versions() -> list[tuple[str, Any]]:
    """Return what is found, as names and values for people to read."""
    present = (
        getattr(numba.config, "CPU_FEATURES", None) or numba.core.codegen.get_host_cpu_features()
    )
    features = [name for name in FEATURES if f"+{name}" in present.split(",")]
    return [
        ("numbanet", numbanet.__version__),
        ("numba", numba.__version__),
        ("llvmlite", _version("llvmlite")),
        ("numpy", np.__version__),
        ("python", platform.python_version()),
        ("system", platform.platform()),
        ("processor", _processor()),
        ("vectors", f"{8 * intrinsics.VECTOR_BYTES} bits ({' '.join(features) or 'baseline'})"),
        ("threads", f"{numba.get_num_threads()} by {threads.threading_layer()}"),
        (
            "cache",
            cache.cache_directory()
            or "none: no folder can be written to, so kernels are compiled in every process",
        ),
        ("optional", ", ".join(f"{name} {_version(name)}" for name in OPTIONAL)),
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        found = []
    chosen = getattr(numba.config, "CPU_NAME", None)
    return (found[0] if found else platform.processor() or platform.machine()) + (
        f", compiled for {chosen}" if chosen else ""
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
