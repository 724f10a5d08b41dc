"""Quantisation of ONNX files to 8 bits, for CPUs: a quarter of the size.

Matrix products are computed in int8 by `onnxruntime.quantization.quantize_dynamic`, with weights of 7 bits: on x86 CPUs
without VNNI a sum of two 8-bit products overflows, and a file should compute the same vectors everywhere.

Every other large weight is stored as int8 with a float32 scale per output channel, and converted by Cast and Mul, which
onnxruntime folds when it opens the file. DequantizeLinear would be computed at every call: twice the time for images.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import need

LEAST = 4096
"""Minimum number of values in a weight stored as int8."""
PER_SCALE = 32
"""Minimum number of values per scale. Depthwise convolutions have fewer and would cost more accuracy than all other
layers of a convolutional stem together."""
SINGLE_FILE = 1_800_000_000
"""Maximum bytes of weights in one ONNX file, whose limit is 2 GB; larger weights go into a separate file."""


def quantize(source: Path, target: Path) -> None:
    """Write the graph of `source` to `target` with int8 matrix products and its other large weights stored as int8."""
    onnx = need("onnx", "onnx")
    quantization = need("onnxruntime.quantization", "onnx")
    graph = onnx.load(source)
    large = _size(graph) > SINGLE_FILE
    # Otherwise onnxruntime advises running its own optimisation first, which torch's export has done.
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
    """Store the large weights of a graph as int8; biases and small weights are kept."""
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
    """Axis with one scale per index, of the weight that is input `i` of a node; None for another kind of input."""
    if node.op_type == "Gemm" and i == 1:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return 0 if transposed else -1
    return {("MatMul", 1): -1, ("Conv", 1): 0, ("Gather", 0): 0}.get((node.op_type, i))


def _size(model: Any) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)
