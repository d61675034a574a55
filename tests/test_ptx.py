"""Every CUDA kernel compiles without register spills, and fits its memory.

For the oldest and the newest architecture; NUMBANET_ALL_ARCHITECTURES=1 takes all six. No GPU is
needed.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import reference

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None or importlib.util.find_spec("nvidia") is None,
    reason='needs pip install "numba-cuda[cu12]"',
)

ALL_ARCHITECTURES = {"sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90"}
ARCHITECTURES = (
    ALL_ARCHITECTURES if os.environ.get("NUMBANET_ALL_ARCHITECTURES") else {"sm_70", "sm_90"}
)
SHARED = 48 * 1024
"""Bytes that a block may have without asking for more."""
PARTS = 2


@pytest.fixture(scope="module")
def report():
    """What the assembler says about every kernel; two processes share the work."""
    script = str(Path(__file__).parent / "gate_ptx.py")
    started = [
        subprocess.Popen(
            [sys.executable, script, str(part), str(PARTS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(PARTS)
    ]
    rows = []
    for process in started:
        out, err = process.communicate()
        assert process.returncode == 0, err
        rows += json.loads(out)
    return rows


def places(rows):
    return [(row["kernel"], row["dtype"], row["architecture"]) for row in rows]


def test_every_kernel_compiles_for_every_architecture(report):
    assert [row for row in report if row.get("error")] == []
    for name in reference.kernels():
        if not name.startswith("numbanet.network.profiler"):
            seen = {
                row["architecture"]
                for row in report
                if row["kernel"] == name and row["dtype"] == "float32"
            }
            assert seen == ARCHITECTURES, name


def test_nothing_is_spilled(report):
    assert places(row for row in report if row.get("spilled")) == []


def test_shared_memory_fits(report):
    assert places(row for row in report if row.get("shared", 0) > SHARED) == []


def test_what_lies_between_the_layers_has_room_on_a_threads_stack(report):
    compiled = [row for row in report if "needed" in row]
    assert len(compiled) == 4 * len(ARCHITECTURES)
    assert places(row for row in compiled if row.get("stack", 0) < row["needed"]) == []


def test_the_report_says_how_many(report):
    """One line for whoever reads the test's output with -s."""
    kernels = {(row["kernel"], row["dtype"]) for row in report}
    most = max(report, key=lambda row: row.get("registers", 0))
    print(
        f"\n{len(kernels)} kernels, {len(report)} with architectures; "
        f"at most {most['registers']} registers ({most['kernel']}, "
        f"{most['dtype']}, {most['architecture']})"
    )
    assert len(report) > len(ARCHITECTURES) * len(reference.kernels())
