"""House rules, read from the syntax tree: imports point one way, flags and intrinsics have their place, files stay short."""

import ast
from pathlib import Path

import pytest

import numbanet

ROOT = Path(numbanet.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LINES = 350

ORDER = [
    {"_jit", "names", "checks", "metrics", "progress", "callbacks", "files", "tables", "datasets", "initializers", "schedules",
     "fields"},
    {"_simd"},
    {"_math", "_grid", "_bound"},
    {"_cuda"},
    {"plan"},
    {"layers", "losses", "optimizers", "regularizers", "gather", "augment"},
    {"lowering", "placed"},
    {"engine"},
    {"machinery"},
    {"training"},
    {"network"},
]
"""What stands in a set may import what stands in a set before it, or its own set; everything else is the outer ring."""
RING = {"cli", "commands", "__main__"}
"""What nobody imports but themselves."""


def module_of(path):
    """numbanet/layers/dense.py → layers.dense"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exists(module):
    return (ROOT / (module.replace(".", "/") + ".py")).exists() or (ROOT / module.replace(".", "/")).is_dir()


def imports(tree, everywhere=False):
    """The package's modules that a file imports: when it is loaded, or anywhere in it."""
    inside = {node for outer in ast.walk(tree) if isinstance(outer, (ast.FunctionDef, ast.Lambda)) for node in ast.walk(outer)}
    found = set()
    for node in ast.walk(tree):
        if node in inside and not everywhere:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "numbanet":
                while rest and not exists(rest):
                    rest = rest.rpartition(".")[0]
                found.add(rest)
    return found - {""}


def top(module):
    return module.partition(".")[0]


def level(module):
    return next((k for k, names in enumerate(ORDER) if top(module) in names), len(ORDER))


def against_the_arrow(module, tree):
    """Imports that point to a later set."""
    return {other for other in imports(tree) if level(other) > level(module)}


def is_layer_file(module):
    """Whether a file in layers/ defines a layer, and not only what layers share."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    bases = {base.id for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases if isinstance(base, ast.Name)}
    return bool(bases & {"Layer", "Activation"}) and module not in ("layers.base", "layers.pooling")


def other_layers(module, tree):
    """Layers that a layer imports; a layer on sequences may be one on pictures of height 1, and PerNeuron is made of others."""
    allowed = {"layers.conv1d": {"layers.conv2d", "layers.pool2d"}, "layers.per_neuron": {"layers.activations"}}.get(module, set())
    return {other for other in imports(tree, everywhere=True)
            if other.startswith("layers.") and other != module and is_layer_file(other)} - allowed


def uses(tree, name):
    """Whether a name is imported, read or taken from a module anywhere."""
    return any((isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)
               or (isinstance(node, ast.alias) and name in node.name.split(".")) or
               (isinstance(node, ast.ImportFrom) and name in (node.module or "").split("."))
               for node in ast.walk(tree))


FLAGS = {"fastmath", "error_model", "nopython", "nogil", "forceinline", "boundscheck", "jit_options", "inline"}
COMPILERS = {"jit", "njit", "cfunc", "vectorize", "guvectorize", "stencil"}


def numba_flags(tree):
    """Flags passed by keyword, and Numba's own decorators."""
    passed = {word.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords if word.arg in FLAGS}
    return passed | {name for name in COMPILERS if any(
        (isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.value, ast.Name) and node.value.id == "numba")
        or (isinstance(node, ast.ImportFrom) and node.module == "numba" and name in {alias.name for alias in node.names})
        for node in ast.walk(tree))}


def trees():
    return [pytest.param(module_of(path), ast.parse(path.read_text(encoding="utf-8")), id=module_of(path) or "numbanet")
            for path in FILES]


@pytest.mark.parametrize(("module", "tree"), trees())
def test_imports_follow_the_arrow(module, tree):
    if module:  # the package itself imports what it shows
        assert against_the_arrow(module, tree) == set()


@pytest.mark.parametrize(("module", "tree"), trees())
def test_nobody_imports_the_command_line(module, tree):
    if top(module) not in RING:
        assert {top(other) for other in imports(tree, everywhere=True)} & RING == set()


@pytest.mark.parametrize(("module", "tree"), [case for case in trees() if case.values[0].startswith("layers.")])
def test_layers_do_not_import_one_another(module, tree):
    assert other_layers(module, tree) == set()


@pytest.mark.parametrize(("module", "tree"), trees())
def test_prange_stands_in_the_engine_alone(module, tree):
    assert top(module) == "engine" or not uses(tree, "prange")


@pytest.mark.parametrize(("module", "tree"), trees())
def test_flags_of_numba_stand_in_one_file(module, tree):
    assert module in ("_jit", "_cuda") or numba_flags(tree) == set()


@pytest.mark.parametrize(("module", "tree"), trees())
def test_llvm_is_spoken_in_one_folder(module, tree):
    assert top(module) in ("_jit", "_simd") or not uses(tree, "llvmlite")


@pytest.mark.parametrize(("module", "tree"), trees())
def test_one_file_imports_cuda(module, tree):
    imported = [name for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))
                for name in (getattr(node, "module", None) or "", *(alias.name for alias in node.names))]
    from_numba = uses(tree, "numba") and "cuda" in imported
    assert module == "_cuda" or (not from_numba and not any(name.startswith("numba.cuda") for name in imported))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES


def test_the_files_are_found():
    assert {"_jit", "plan", "layers.dense", "engine.cpu", "network"} <= {module_of(path) for path in FILES}
