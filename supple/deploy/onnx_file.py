"""The policy as one ONNX file: every tensor inside, plain operators of one old opset.

Written operator by operator, so that the file holds what a reader of ``plain.py`` expects, under
names a checker can look up, and nothing of the machine that wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from supple.deploy.plain import PlainPolicy, Residual, RmsNorm
from supple.errors import InputError, how_to_install

OPSET = 18
IR_VERSION = 8
"""What onnxruntime 1.14 and later read."""
MEAN, DENOMINATOR = "normaliser.mean", "normaliser.denominator"
CONTRACT_KEY = "supple_contract"
FINITE = "finite"
"""The output by which the runner brakes: false where the action is the safe one."""
OPERATORS = frozenset(
    (
        *("Add", "ArgMax", "Cast", "Clip", "Concat", "Div", "Elu", "Gemm", "Identity", "IsInf"),
        *("IsNaN", "Less", "Max", "Min", "Mul", "Or", "ReduceMax", "ReduceMean", "Relu"),
        *("Sigmoid", "Split", "Sqrt", "Sub", "Tanh", "Where"),
    )
)
"""Every operator that is written; ``verify`` runs no other."""
_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "Relu", nn.Tanh: "Tanh", nn.ELU: "Elu"}


def require_onnx() -> Any:
    """The onnx package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise InputError(f"this needs onnx: {how_to_install('export')}") from error
    return onnx


def onnx_bytes(policy: PlainPolicy, *, batch: int | None, metadata: Mapping[str, str]) -> bytes:
    """The file's content.

    Args:
        policy: what to write.
        batch: rows of every input, or None for any number.
        metadata: what goes into the model's properties.

    Raises:
        InputError: onnx is not installed, or a layer has no writer.
    """
    onnx = require_onnx()
    helper, kinds = onnx.helper, onnx.TensorProto
    rows = "batch" if batch is None else batch
    graph = _Graph(onnx)
    outputs = _policy(policy, graph)
    inputs = [helper.make_tensor_value_info("observation", kinds.FLOAT, [rows, policy.inputs])]
    if policy.memory is not None:
        shape = [rows, policy.memory_width]
        inputs.append(helper.make_tensor_value_info("memory_in", kinds.FLOAT, shape))
    made = [
        helper.make_tensor_value_info(
            name,
            kinds.INT64 if width is None else kinds.FLOAT,
            [rows] if width is None else [rows, width],
        )
        for name, width in outputs.items()
    ]
    made.append(helper.make_tensor_value_info(FINITE, kinds.BOOL, [rows, 1]))
    model = helper.make_model(
        helper.make_graph(graph.nodes, "policy", inputs, made, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="supple",
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class _Graph:
    """Nodes and constants as they are added; an operator returns its output's name."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Tensor | np.ndarray | float | list[int]) -> str:
        """An initializer; floats become float32."""
        array = np.asarray(value.detach() if isinstance(value, Tensor) else value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def __call__(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """One node."""
        output = output or f"{operator}_{len(self.nodes)}"
        node = self._onnx.helper.make_node(operator, list(inputs), [output], output, **attributes)
        self.nodes.append(node)
        return output

    def split3(self, x: str) -> list[str]:
        """Three equal parts of the last axis."""
        names = [f"{x}_{part}" for part in range(3)]
        node = self._onnx.helper.make_node("Split", [x], names, axis=1, num_outputs=3)
        self.nodes.append(node)
        return names

    def dense(self, name: str, layer: nn.Linear, x: str) -> str:
        """A linear layer."""
        weight = self.constant(f"{name}.weight", layer.weight)
        return self("Gemm", x, weight, self.constant(f"{name}.bias", layer.bias), transB=1)

    def finite(self, x: str) -> str:
        """Whether all numbers of a row are finite, (B, 1)."""
        odd = self("Or", self("IsNaN", x), self("IsInf", x))
        found = self("ReduceMax", self("Cast", odd, to=1), "axis_1", keepdims=1)
        return self("Less", found, "half")

    def layers(self, name: str, modules: Iterable[nn.Module], x: str) -> str:
        """Modules in sequence."""
        for index, module in enumerate(modules):
            own = f"{name}.{index}"
            if isinstance(module, nn.Linear):
                x = self.dense(own, module, x)
            elif isinstance(module, Residual):
                x = self("Add", x, self.layers(own, module.inner, x))
            elif isinstance(module, RmsNorm):
                mean = self("ReduceMean", self("Mul", x, x), "axis_1", keepdims=1)
                eps = self.constant(f"{own}.eps", module.eps)
                x = self("Div", x, self("Sqrt", self("Add", mean, eps)))
            elif type(module) in _ACTIVATIONS:
                x = self(_ACTIVATIONS[type(module)], x)
            else:
                raise InputError(
                    f"cannot write {type(module).__name__} as ONNX: expected Linear, ReLU, Tanh,"
                    " ELU, Residual or RmsNorm; add it to supple/deploy/onnx_file.py"
                )
        return x


def _policy(policy: PlainPolicy, graph: _Graph) -> dict[str, int | None]:
    """Adds everything; returns the outputs but ``FINITE`` and their widths (None: one integer)."""
    graph.constant("axis_1", np.array([1], np.int64))
    graph.constant("half", 0.5)
    graph.constant("zero", 0.0)
    x = "observation"
    if policy.normaliser:
        centred = graph("Sub", x, graph.constant(MEAN, policy.normaliser.mean))
        x = graph("Div", centred, graph.constant(DENOMINATOR, policy.normaliser.denominator))
    if policy.memory is not None:
        x = _memory(policy, graph, x)
    head = graph.layers("body", policy.body, x)
    fine = graph.finite(graph("Concat", "observation", head, axis=1))
    graph("Identity", fine, output=FINITE)
    head = graph("Where", fine, head, "zero")
    outputs: dict[str, int | None]
    if policy.choices:
        graph("ArgMax", head, output="action", axis=1, keepdims=0)
        graph("Identity", head, output="scores")
        outputs = {"action": None, "scores": policy.choices}
    else:
        raw = graph("Tanh" if policy.squash else "Identity", head, output="action")
        if policy.clip:
            bounds = (graph.constant("low", -1.0), graph.constant("high", 1.0))
            raw = graph("Clip", raw, *bounds)
        scaled = graph("Mul", raw, graph.constant("scale", policy.scale))
        offset, last = graph.constant("offset", policy.offset), "command"
        if policy.clips_commands:  # each by its own bounds, which Clip cannot
            command = graph(
                "Max", graph("Add", scaled, offset), graph.constant("lowest", policy.low)
            )
            graph("Min", command, graph.constant("highest", policy.high), output=last)
        else:
            graph("Add", scaled, offset, output=last)
        outputs = {"action": policy.actions, "command": policy.actions}
    if policy.memory is not None:
        before = graph("Where", graph.finite("memory_in"), "memory_in", "zero")
        graph("Where", fine, x, before, output="memory_out")
        outputs["memory_out"] = policy.memory_width
    return outputs


def _memory(policy: PlainPolicy, graph: _Graph, x: str) -> str:
    assert policy.memory is not None
    gates = graph.split3(graph.dense("memory.input", policy.memory.input, x))
    own = graph.split3(graph.dense("memory.hidden", policy.memory.hidden, "memory_in"))
    reset = graph("Sigmoid", graph("Add", gates[0], own[0]))
    update = graph("Sigmoid", graph("Add", gates[1], own[1]))
    candidate = graph("Tanh", graph("Add", gates[2], graph("Mul", reset, own[2])))
    change = graph("Mul", update, graph("Sub", "memory_in", candidate))
    return graph("Add", candidate, change)
