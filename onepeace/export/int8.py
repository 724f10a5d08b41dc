"""ONNX files with weights of 8 bits, for CPUs: a quarter of the size.

Matrix products are in int8, by `onnxruntime.quantization.quantize_dynamic`: their inputs are rounded as they come.
Their weights have 7 bits, as onnxruntime advises: on x86 CPUs without VNNI a sum of two products of 8 bits overflows,
and a file should give the same vectors everywhere.

Every other large weight is stored as int8 with a float32 scale per output channel (per word of a vocabulary), and
computed with in float32. It becomes Cast and Mul of constants: onnxruntime works them out once when it opens the file.
It keeps DequantizeLinear, the operator meant for this, and computes it at every call: pictures then take over twice the
time.

torch.ao.quantization is deprecated and about to be removed from torch; its successor, torchao, writes no ONNX.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import need

LEAST = 4096
"""Numbers in a weight that is worth storing as int8."""
PER_SCALE = 32
"""Numbers that share a scale, at least. Depthwise convolutions have fewer, and would cost more accuracy than all other
layers of a convolutional stem together."""
SINGLE_FILE = 1_800_000_000
"""Bytes that fit into one ONNX file, whose limit is 2 GB; the weights of larger graphs go into a file beside it."""


def quantize(source: Path, target: Path) -> None:
    """Write `target`, the graph of `source` with matrix products in int8 and its other large weights stored as int8."""
    onnx = need("onnx", "onnx")
    quantization = need("onnxruntime.quantization", "onnx")
    graph = onnx.load(source)
    large = _size(graph) > SINGLE_FILE
    # Else it advises to run its own optimisation first, which torch's export has done.
    onnx.helper.set_model_props(graph, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory(prefix="onepeace-") as folder:
        path = Path(folder, target.name)
        quantization.quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=large,
        )
        graph = onnx.load(path)
    store(graph)
    data = f"{target.name}.data"
    onnx.save_model(graph, target, save_as_external_data=_size(graph) > SINGLE_FILE, location=data)


def store(model: Any) -> None:
    """Store the large weights of a graph as int8; biases and small weights stay."""
    onnx = need("onnx", "onnx")
    graph = model.graph
    uses: dict[str, list[tuple[Any, int]]] = {}
    for node in graph.node:
        for i, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, i))
    nodes = []
    for tensor in list(graph.initializer):
        axes = {_scaled_axis(node, i) for node, i in uses.get(tensor.name, [])}
        if tensor.data_type != onnx.TensorProto.FLOAT or len(axes) != 1 or None in axes:
            continue
        weight, axis = onnx.numpy_helper.to_array(tensor), axes.pop()
        if weight.size < LEAST or weight.size // weight.shape[axis] < PER_SCALE:
            continue
        others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
        largest = np.abs(weight).max(axis=others, keepdims=True)
        scale = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
        name = tensor.name
        stored = np.rint(weight / scale).astype(np.int8)
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [onnx.numpy_helper.from_array(stored, f"{name}_int8"), onnx.numpy_helper.from_array(scale, f"{name}_scale")]
        )
        nodes += [
            onnx.helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name]),
        ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _scaled_axis(node: Any, i: int) -> int | None:
    """The axis of a weight, input `i` of a node, that has a scale for each place; None for another kind of input."""
    if node.op_type == "Gemm" and i == 1:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return 0 if transposed else -1
    return {("MatMul", 1): -1, ("Conv", 1): 0, ("Gather", 0): 0}.get((node.op_type, i))


def _size(model: Any) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)
