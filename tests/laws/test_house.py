"""House rules, read from the syntax tree: directions of imports, places of flags and intrinsics."""

import ast
from pathlib import Path

import pytest

import numbanet

ROOT = Path(numbanet.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

ROOMS = ["io", "backend", "plan", "nn", "engine", "training", "network", "doors", "apps"]
"""What stands in a room may import its own room and those before it."""
DOORS = {"compiled", "kernels", "datasets", "diagnostics", "plotting", "sklearn"}
"""Modules at the top of the package, which users import by name.

They count as a room of their own.
"""


def module_of(path):
    """numbanet/layers/dense.py → layers.dense"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exists(module):
    return (ROOT / (module.replace(".", "/") + ".py")).exists() or (
        ROOT / module.replace(".", "/")
    ).is_dir()


def imports(tree):
    """The package's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
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


def room(module):
    if module == "__main__":  # starts the command line
        return "apps"
    return "doors" if top(module) in DOORS else top(module)


def against_the_arrow(module, tree):
    """Imports of a later room, inside functions too."""
    return {
        other for other in imports(tree) if ROOMS.index(room(other)) > ROOMS.index(room(module))
    }


def circle(arrows):
    """A list of modules that import one another in a circle, or None.

    `arrows` maps a module to what it imports.
    """
    done, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        path.append(module)
        found = next((c for c in map(visit, sorted(arrows.get(module, ()))) if c), None)
        path.pop()
        done.add(module)
        return found

    return next((c for c in map(visit, sorted(arrows)) if c), None)


def is_layer_file(module):
    """Whether a file in layers/ defines a layer, and not only what layers share."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    bases = {
        base.id
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    }
    return bool(bases & {"Layer", "Activation"}) and module not in (
        "nn.layers.base",
        "nn.layers.normalization",
    )


def other_layers(module, tree):
    """Layers that a layer imports.

    A layer on sequences may be one on images of height 1, PerNeuron is made of others, and a
    recurrent layer begins with a dense one.
    """
    allowed = {
        "nn.layers.conv1d": {"nn.layers.conv2d", "nn.layers.pool2d"},
        "nn.layers.per_neuron": {"nn.layers.activations"},
        "nn.layers.recurrent": {"nn.layers.dense"},
    }.get(module, set())
    return {
        other
        for other in imports(tree)
        if other.startswith("nn.layers.") and other != module and is_layer_file(other)
    } - allowed


def uses(tree, name):
    """Whether a name is imported, read or taken from a module anywhere."""
    return any(
        (isinstance(node, ast.Name) and node.id == name)
        or (isinstance(node, ast.Attribute) and node.attr == name)
        or (isinstance(node, ast.alias) and name in node.name.split("."))
        or (isinstance(node, ast.ImportFrom) and name in (node.module or "").split("."))
        for node in ast.walk(tree)
    )


FLAGS = {
    "fastmath",
    "error_model",
    "nopython",
    "nogil",
    "forceinline",
    "boundscheck",
    "jit_options",
    "inline",
}
COMPILERS = {"jit", "njit", "cfunc", "vectorize", "guvectorize", "stencil"}


def numba_flags(tree):
    """Flags passed by keyword, and Numba's own decorators."""
    passed = {
        word.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg in FLAGS
    }
    return passed | {
        name
        for name in COMPILERS
        if any(
            (
                isinstance(node, ast.Attribute)
                and node.attr == name
                and isinstance(node.value, ast.Name)
                and node.value.id == "numba"
            )
            or (
                isinstance(node, ast.ImportFrom)
                and node.module == "numba"
                and name in {alias.name for alias in node.names}
            )
            for node in ast.walk(tree)
        )
    }


def trees():
    return [
        pytest.param(
            module_of(path),
            ast.parse(path.read_text(encoding="utf-8")),
            id=module_of(path) or "numbanet",
        )
        for path in FILES
    ]


@pytest.mark.parametrize(("module", "tree"), trees())
def test_imports_follow_the_arrow(module, tree):
    if module:  # the package itself imports what it shows
        assert against_the_arrow(module, tree) == set()


def test_no_modules_import_one_another_in_a_circle():
    arrows = {
        module_of(path): imports(ast.parse(path.read_text(encoding="utf-8"))) for path in FILES
    }
    arrows.pop("")  # the package itself imports what it shows
    assert circle(arrows) is None


@pytest.mark.parametrize(
    ("module", "tree"), [case for case in trees() if case.values[0].startswith("nn.layers.")]
)
def test_layers_do_not_import_one_another(module, tree):
    assert other_layers(module, tree) == set()


@pytest.mark.parametrize(("module", "tree"), trees())
def test_prange_stands_in_the_engine_alone(module, tree):
    assert top(module) == "engine" or not uses(tree, "prange")


@pytest.mark.parametrize(("module", "tree"), trees())
def test_flags_of_numba_stand_in_one_file(module, tree):
    assert module in ("backend.jit", "backend.cuda.driver") or numba_flags(tree) == set()


@pytest.mark.parametrize(("module", "tree"), trees())
def test_llvm_is_spoken_in_one_folder(module, tree):
    assert (
        module == "backend.jit"
        or module.startswith("backend.intrinsics")
        or not uses(tree, "llvmlite")
    )


@pytest.mark.parametrize(("module", "tree"), trees())
def test_one_file_imports_cuda(module, tree):
    imported = [
        name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (getattr(node, "module", None) or "", *(alias.name for alias in node.names))
    ]
    from_numba = uses(tree, "numba") and "cuda" in imported
    assert module == "backend.cuda.driver" or (
        not from_numba and not any(name.startswith("numba.cuda") for name in imported)
    )


def test_the_files_are_found():
    assert {
        "backend.jit",
        "plan.lower",
        "nn.layers.dense",
        "engine.cpu.kernels",
        "network.sequential",
    } <= {module_of(path) for path in FILES}
