"""ONNX files with weights of 8 bits, for CPUs: a quarter of the size.

"weights" stores every large weight as int8 with a float32 scale per output channel (per word of a vocabulary), and
computes in float32. A weight becomes Cast and Mul of constants: onnxruntime works them out once when it opens the file,
so the speed is that of float32. It keeps DequantizeLinear, the operator meant for this, and computes it at every call:
pictures then take over twice the time. Its own MatMulNBits stores matrix products only: the table of a vocabulary and
convolutions, over a third of each branch of the bundled model, stay in float32.

"dynamic" also multiplies in int8: `onnxruntime.quantization.quantize_dynamic` for the matrix products, whose inputs are
rounded as they come, and stored int8 for the rest. Weights of products have 7 bits, as onnxruntime advises: on x86 CPUs
without VNNI a sum of two products of 8 bits overflows, and a file should give the same vectors everywhere.

torch.ao.quantization is deprecated and about to be removed from torch; its successor, torchao, writes no ONNX.
"""

import tempfile
from collections.abc import Callable
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


def store_weights(source: Path, target: Path) -> None:
    """Write `target`, the graph of `source` with its weights stored as int8; biases and small weights stay."""
    onnx = need("onnx", "onnx")
    graph = onnx.load(source)
    _store(graph)
    _save(graph, target)


def quantize_products(source: Path, target: Path) -> None:
    """Write `target`, the graph of `source` with matrix products in int8 and its other weights stored as int8."""
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
    _store(graph)
    _save(graph, target)


INT8: dict[str, Callable[[Path, Path], None]] = {"dynamic": quantize_products, "weights": store_weights}
"""How a float32 file becomes one of int8."""


def _store(model: Any) -> None:
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


def _save(model: Any, path: Path) -> None:
    onnx = need("onnx", "onnx")
    data = f"{path.name}.data"
    onnx.save_model(model, path, save_as_external_data=_size(model) > SINGLE_FILE, location=data)
