"""ONNX Runtime: predictions of a model that is made here from the same weights.

run     session.run, array to array
bound   inputs and outputs bound beforehand, so a call only computes
"""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers import work
from benchmarks.peers.worker import Contender

NAME, PACKAGES = "ONNX Runtime", ("onnxruntime", "onnx")
ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softmax": "Softmax"}
OPSET = 17
GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""Our places of its gates: i o f g, and u r n."""


def variants(line: work.Line) -> tuple[str, ...]:
    return ("run", "bound") if line.kind in ("one", "many") else ()


def model(case: work.Case) -> onnx.ModelProto:
    """The network as a graph; shapes are fixed, channels first."""
    line, nodes, constants, name = case.line, [], [], "x"
    values = iter(work.channels_first(line, case.weights))

    def add(kind, inputs, place=0, **attributes):
        outputs = [""] * place + [f"n{len(nodes)}"]
        nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[place]

    def constant(array):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), f"c{len(constants)}"))
        return constants[-1].name

    for kind, *own in line.layers:
        if kind == "pool":
            name = add("MaxPool", [name], kernel_shape=[own[0]] * 2, strides=[own[0]] * 2)
        elif kind == "flatten":
            name = add("Flatten", [name])
        elif kind in GATES:
            given = recurrent(kind, own[0], values)
            name = add("Transpose", [name], perm=[1, 0, 2])
            reset = {"linear_before_reset": 1} if kind == "gru" else {}
            inputs = [name, *map(constant, given)]
            name = add(kind.upper(), inputs, place=1, hidden_size=own[0], **reset)
            name = add("Squeeze", [name, constant(np.zeros(1, np.int64))])
        else:
            w, b = next(values), next(values)
            if kind == "conv":
                name = add("Conv", [name, constant(w), constant(b)])
            else:
                name = add("Gemm", [name, constant(w.T), constant(b)])
            if own[-1]:
                name = add(
                    ACTIVATIONS[own[-1]], [name], **({"axis": 1} if own[-1] == "softmax" else {})
                )
    nodes[-1].output[0] = "y"
    shape = [
        line.rows,
        *((line.input_shape[2], *line.input_shape[:2]) if line.has_images else line.input_shape),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", shape), ("y", [line.rows, line.layers[-1][1]]))
    ]
    graph = helper.make_graph(nodes, "line", ends[:1], ends[1:], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def recurrent(kind: str, units: int, values) -> list[np.ndarray]:
    """W and U (1, gates · units, …) and both biases, with the gates in the order of ONNX."""
    order = np.concatenate([np.arange(units) + gate * units for gate in GATES[kind]])
    w, b, u = (next(values)[order] for _ in range(3))
    inner = np.zeros_like(b)
    if kind == "gru":
        inner[-units:] = next(values)
    return [w[None], u[None], np.concatenate([b, inner])[None]]


class Predicting(Contender):
    """A call of the session."""

    def __init__(self, case: work.Case, variant: str, threads: int):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(
            model(case).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        x = case.x.transpose(0, 3, 1, 2) if case.line.has_images else case.x
        self.feed, self.binding = {"x": np.ascontiguousarray(x)}, None
        if variant == "bound":
            self.x = ort.OrtValue.ortvalue_from_numpy(self.feed["x"])
            self.y = ort.OrtValue.ortvalue_from_shape_and_type(
                [case.line.rows, case.line.layers[-1][1]], np.float32
            )
            self.binding = self.session.io_binding()
            self.binding.bind_ortvalue_input("x", self.x)
            self.binding.bind_ortvalue_output("y", self.y)

    def repeat(self, calls: int) -> None:
        if self.binding is None:
            run, names, feed = self.session.run, ["y"], self.feed
            for _ in range(calls):
                run(names, feed)
        else:
            run, binding = self.session.run_with_iobinding, self.binding
            for _ in range(calls):
                run(binding)

    def outputs(self) -> np.ndarray:
        if self.binding is None:
            return self.session.run(["y"], self.feed)[0]
        self.session.run_with_iobinding(self.binding)
        return self.y.numpy()


def start(case: work.Case, variant: str, threads: int):
    """A contender for the line."""
    return Predicting(case, variant, threads)
