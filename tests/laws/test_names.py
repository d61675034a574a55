"""One word for one thing, the field's: words that mean something else do not come back."""

import ast
import re
from pathlib import Path

import pytest

import numbanet

ROOT = Path(numbanet.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FORBIDDEN = {
    "lane": "thread_in_block (CUDA's lane is a thread of a warp)",
    "turn": "transpose, generation or parity",
    "turned": "transposed",
    "twin": "cuda_kernel or reference",
    "apart": "independent",
    "picture": "image",
    "pictures": "images",
    "card": "device or GPU",
    "quotient": "div_u32",
    "neighbours": "swap_pairs",
    "mixed": "fold_in or per_neuron",
    "chance": "uniform_scalar",
    "clock": "context",
    "shard": "chunk (shards are what devices hold)",
    "shards": "chunks",
    "hits": "correct",
    "Memory": "Executor",
    "Machinery": "ExecutorCache",
    "Trainer": "TrainingExecutor",
    "Predictor": "InferenceExecutor",
    "Differentiator": "GradientExecutor",
    "Team": "ThreadTuner",
    "Placed": "BuiltLayer",
    "placed": "built",
    "walkers": "fused_groups",
    "scatter": "write_outputs (a scatter is an indexed write)",
    "multiply": "gemm or brgemm",
    "dots": "gemm_nt",
    "meet": "barrier_wait",
    "STRIDE_H": "stride_col or stride_row (H is the height elsewhere)",
    "STRIDE_V": "stride_row",
    "DILATION_H": "dilation_col",
    "DILATION_V": "dilation_row",
    "OWN": "ATTRS",
    "HOME_X": "BASE_X",
    "STEP_X": "SAMPLE_STRIDE_X",
    "RATE": "the name of the hyper-parameter",
    "SECOND": "the name of the hyper-parameter",
    "READY": "the name of what is ready",
}
"""Identifiers that are not defined, and what they are called."""


def defined(tree):
    """Every name that a file defines: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def forbidden(tree):
    """The forbidden names that a file defines, alone or as a part of a name."""
    found = set()
    for name in defined(tree):
        parts = {name, *re.split(r"_+", name)}
        found |= {f"{name}: {FORBIDDEN[part]}" for part in parts if part in FORBIDDEN}
    return found


def constants(trees):
    """Constants of numbers at the head of files: {name: {file: value}}."""
    found = {}
    for file, tree in trees.items():
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Name) and re.fullmatch(r"_?[A-Z][A-Z0-9_]*", target.id):
                try:
                    value = ast.literal_eval(node.value)
                except ValueError:
                    continue
                if isinstance(value, (int, float)):
                    found.setdefault(target.id, {})[file] = value
    return found


def contradictions(trees):
    """Constants that two files give different values."""
    return {name: files for name, files in constants(trees).items() if len(set(files.values())) > 1}


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_defines_a_forbidden_name(path):
    assert forbidden(tree(path)) == set()


def test_no_constant_has_two_values():
    assert contradictions({str(path.relative_to(ROOT)): tree(path) for path in FILES}) == {}


def test_the_laws_see_a_planted_name_and_a_planted_constant():
    assert forbidden(ast.parse("def f(card): pass")) == {"card: device or GPU"}
    assert forbidden(ast.parse("STRIDE_H = 3")) and forbidden(ast.parse("first_shard = 1"))
    assert forbidden(ast.parse("class Team: pass")) and not forbidden(ast.parse("discard = 1"))
    two = {"a.py": ast.parse("LIMIT = 4"), "b.py": ast.parse("LIMIT = 8")}
    assert contradictions(two) == {"LIMIT": {"a.py": 4, "b.py": 8}}
    assert contradictions({"a.py": ast.parse("LIMIT = 4"), "b.py": ast.parse("LIMIT = 4")}) == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_have_at_most_100_characters(path):
    long = [
        k
        for k, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100
    ]
    assert long == []
