"""A network as C99 source: forward pass and vjp for one sample, parameters, and a self-test.

The source restates the plan for the target "embedded": a row of numbers for each op, and a call for
each step of the schedule. The kernels stand in kernels.c, each under the names of the module and
of the kernel that it restates; a network gets those that it calls.
"""

import re
from pathlib import Path

import numpy as np

from numbanet.network import handle
from numbanet.nn.layers.base import size
from numbanet.plan.columns import ACCUMULATE, BACKWARD, BUFFERS, FORWARD, W, X, Y
from numbanet.plan.plan import Plan

KERNELS = Path(__file__).with_name("kernels.c")
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
"""Largest error of the self-test, relative to the largest element."""
MATH = ("EXP", "TANH", "SQRT", "FABS", "POW")
"""Functions of math.h, by macros that choose those of the network's dtype."""


def export(network, path) -> tuple[Path, Path]:
    """Write `path`, a C source, and its header; return both paths. See Sequential.export_c."""
    path = Path(path)
    name = path.stem
    if path.suffix != ".c" or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(
            "export_c writes a file whose name is an identifier and ends in .c, as net.c with "
            f"net_forward in it, got {path.name!r}"
        )
    try:
        plan = handle.prediction_plan(network, 1, True)
        trains = handle.is_differentiable(plan.ops)
    except ValueError:
        trains = False
    if not trains:  # a layer without a derivative: there is no vjp
        plan = handle.prediction_plan(network, 1, False)
    sizes = {
        "INPUTS": size(network.input_shape),
        "OUTPUTS": size(network.output_shape),
        "PARAMETERS": network.parameters.size,
        "MEMORY": plan.n_memory,
        "WORK": plan.n_acts + plan.n_deltas,
    }
    header = path.with_suffix(".h")
    source = _source(network, plan, name, sizes, trains)
    path.write_text(source, encoding="utf-8")
    header.write_text(_header(name, sizes, str(network.dtype), trains), encoding="utf-8")
    return path, header


def _header(name: str, sizes: dict[str, int], dtype: str, trains: bool) -> str:
    """The header: sizes and functions."""
    real = {"float32": "float", "float64": "double"}[dtype]
    upper = name.upper()
    lines = [f"#ifndef {upper}_H", f"#define {upper}_H", ""]
    lines += [f"#define {upper}_{key} {value}" for key, value in sizes.items()]
    lines += [
        "",
        f"/* The parameters at the time of the export. */\nextern const {real} "
        f"{name}_params[{upper}_MEMORY];",
        "",
        f"/* Write the outputs of one sample; each thread has a work of {upper}_WORK elements. */",
        f"void {name}_forward(const {real} *params, const {real} *row, {real} *out, {real} *work);",
    ]
    if trains:
        lines += [
            "",
            f"/* Carry dout back: add to dparams[{upper}_PARAMETERS], overwrite drow; NULL for one",
            "   that is not wanted. */",
            f"void {name}_vjp(const {real} *params, const {real} *row, const {real} *dout,",
            f"    {real} *dparams, {real} *drow, {real} *work);",
        ]
    return "\n".join([*lines, "", "#endif", ""])


def _source(network, plan: Plan, name: str, sizes: dict[str, int], trains: bool) -> str:
    """The source: the kernels that are called, ops, parameters, functions, self-test."""
    real = {"float32": "float", "float64": "double"}[str(network.dtype)]
    suffix, table = "f" if real == "float" else "", plan.tables[0]
    calls = _calls(plan)
    kernels = _kernels({kernel for _, kernel, _ in calls})
    used = [row for row in plan.by_row if any(row == called for _, _, called in calls)]
    ops = []
    for row in used:
        op = plan.by_row[row]
        columns = [op.n_in, op.n_out, *(int(table[row, c]) for c in (X, Y, W, BUFFERS))]
        attrs = ", ".join(float(value).hex() for value in op.attrs) or "0"
        ops.append(f"    {{{', '.join(map(str, [*columns, op.n_weights]))}, {{{attrs}}}}},")
    most = max((len(plan.by_row[row].attrs) for row in used), default=0)
    inputs, outputs = (int(table[plan.rows[op], Y]) for op in (plan.ops[0], plan.ops[-1]))

    def called(*verbs):
        return [
            f"    {'if (m->grads) ' if verb == ACCUMULATE else ''}"
            f"{kernel}(&ops[{used.index(row)}], m);"
            for verb, kernel, row in calls
            if verb in verbs
        ]

    parts = [
        f'#include "{name}.h"',
        "#include <math.h>\n#include <stddef.h>",
        f"typedef {real} real;",
        "\n".join(f"#define {one} {one.lower()}{suffix}" for one in MATH),
        "/* sizes of a sample, offsets in acts and deltas, in params; what the kernel wants */\n"
        "typedef struct { long n_in, n_out, x, y, w, buffers, n_weights; "
        f"double a[{max(1, most)}]; }} op_t;",
        "typedef struct { const real *params; real *grads, *acts, *deltas; } memory_t;",
        *kernels,
        *(["static const op_t ops[] = {\n" + "\n".join(ops) + "\n};"] if ops else []),
        _array(f"const real {name}_params[{name.upper()}_MEMORY]", network.memory[: plan.n_memory]),
        "\n".join(
            [
                "static void run_forward(const memory_t *m, const real *row) {",
                f"    for (long k = 0; k < {sizes['INPUTS']}; k++)",
                f"        m->acts[{inputs} + k] = row[k];",
                *called(FORWARD),
                "}",
            ]
        ),
        "\n".join(
            [
                f"void {name}_forward(const real *params, const real *row, real *out,",
                "    real *work) {",
                "    const memory_t memory = {params, NULL, work, NULL};",
                "    run_forward(&memory, row);",
                f"    for (long j = 0; j < {sizes['OUTPUTS']}; j++)",
                f"        out[j] = work[{outputs} + j];",
                "}",
            ]
        ),
    ]
    if trains:
        parts.append(
            "\n".join(
                [
                    f"void {name}_vjp(const real *params, const real *row, const real *dout,",
                    "    real *dparams, real *drow, real *work) {",
                    f"    const memory_t memory = {{params, dparams, work, work + {plan.n_acts}}};",
                    "    const memory_t *m = &memory;",
                    "    run_forward(m, row);",
                    f"    for (long j = 0; j < {sizes['OUTPUTS']}; j++)",
                    f"        m->deltas[{outputs} + j] = dout[j];",
                    *called(ACCUMULATE, BACKWARD),
                    f"    for (long k = 0; drow && k < {sizes['INPUTS']}; k++)",
                    f"        drow[k] = m->deltas[{inputs} + k];",
                    "}",
                ]
            )
        )
    parts.append(_self_test(network, name, trains))
    return "\n\n".join(parts) + "\n"


def _calls(plan: Plan) -> list[tuple[int, str, int]]:
    """(verb, name of the C function, row) of the schedule's steps."""
    result = []
    for verb, row in plan.schedule.tolist():
        op = plan.by_row[row]
        verb_kernel = op.verbs.get(verb)
        if verb_kernel is not None and op.n_in:
            module = verb_kernel.function.__module__
            kernel = f"{module.rpartition('.')[2]}_{verb_kernel.__name__}"
            if not module.startswith("numbanet.") or kernel not in _blocks():
                raise ValueError(
                    f"export_c has no C code for {op.name} ({verb_kernel.__name__}); it knows "
                    "dense, convolution, pooling, normalisation, scaling and activation layers "
                    "that are the same for all neurons"
                )
            result.append((verb, kernel, row))
    return result


def _blocks() -> dict[str, str]:
    """The functions of kernels.c by name, each with the comment before it."""
    blocks = KERNELS.read_text(encoding="utf-8").strip().split("\n\n")
    found = {re.search(r"^static \w+ (\w+)\(", block, re.M): block for block in blocks}
    return {match[1]: block for match, block in found.items() if match}


def _kernels(names: set[str]) -> list[str]:
    """The functions of these names, and those that they call, in the order of the file."""
    blocks, needed = _blocks(), set(names)
    for name in reversed(blocks):  # a function stands behind those that it calls
        if name in needed:
            needed |= {other for other in blocks if f"{other}(" in blocks[name]}
    return [block for name, block in blocks.items() if name in needed]


def _array(declaration: str, values) -> str:
    """An array with its values in hexadecimal, which are exact."""
    suffix = "f" if values.dtype == np.float32 else ""
    words = [float(value).hex() + suffix for value in values.ravel()] or ["0"]
    lines = ["    " + ", ".join(words[k : k + 4]) for k in range(0, len(words), 4)]
    return f"{declaration} = {{\n" + ",\n".join(lines) + "\n};"


def _self_test(network, name: str, trains: bool) -> str:
    """A main function behind a macro, with inputs and outputs that were calculated here."""
    generator = np.random.default_rng(0)
    row = generator.normal(size=(1, *network.input_shape)).astype(network.dtype)
    data = {"row": row, "out": network.predict(row)}
    upper = name.upper()
    lines = [
        f"    static real work[{upper}_WORK], out[{upper}_OUTPUTS];",
        "    int wrong = 0;",
        f"    {name}_forward({name}_params, test_row, out, work);",
        f"    wrong |= differs(out, test_out, {upper}_OUTPUTS);",
    ]
    if trains:
        from numbanet.network import embedded

        model = handle.make_handle(network)
        dout = generator.normal(size=network.output_shape).astype(network.dtype)
        dparams, drow = np.zeros_like(network.parameters), np.empty_like(row)
        work = np.zeros(embedded.work_size(model), network.dtype)
        embedded.vjp(model, network.memory, row, dout, dparams, drow, work)
        data |= {"dout": dout, "dparams": dparams, "drow": drow}
        lines += [
            f"    static real dparams[{upper}_PARAMETERS + 1], drow[{upper}_INPUTS];",
            f"    {name}_vjp({name}_params, test_row, test_dout, dparams, drow, work);",
            f"    wrong |= 2 * differs(drow, test_drow, {upper}_INPUTS);",
            f"    wrong |= 4 * differs(dparams, test_dparams, {upper}_PARAMETERS);",
        ]
    arrays = [_array(f"static const real test_{key}[]", values) for key, values in data.items()]
    return "\n\n".join(
        [
            f"#ifdef {upper}_SELF_TEST\n"
            f"/* cc -std=c99 -D{upper}_SELF_TEST {name}.c -lm; the program returns 0 where all is "
            "well,\n   else 1 for the outputs, 2 and 4 for the gradients, added up. */",
            *arrays,
            "\n".join(
                [
                    "static int differs(const real *found, const real *expected, long n) {",
                    "    double most = 1e-3, error = 0;",
                    "    for (long k = 0; k < n; k++) {",
                    "        most = fmax(most, fabs((double)expected[k]));",
                    "        error = fmax(error, fabs((double)found[k] - (double)expected[k]));",
                    "    }",
                    f"    return !(error <= {TOLERANCE[str(network.dtype)]} * most);",
                    "}",
                ]
            ),
            "\n".join(["int main(void) {", *lines, "    return wrong;", "}"]),
            "#endif",
        ]
    )
