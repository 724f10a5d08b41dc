"""Quantisation of ONNX files to 8 bits, for CPUs: a quarter of the size.

Matrix products are computed in int8 by `onnxruntime.quantization.quantize_dynamic`, with weights of 7 bits: on x86 CPUs
without VNNI a sum of two 8-bit products overflows, and a file should compute the same vectors everywhere.

Every other large weight is stored as int8 with a float32 scale per output channel, and converted by Cast and Mul, which
onnxruntime folds when it opens the file. DequantizeLinear would be computed at every call: twice the time for images.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import need

LEAST = 4096
"""Minimum number of values in a weight stored as int8."""
PER_SCALE = 32
"""Minimum number of values per scale. Depthwise convolutions have fewer and would cost more accuracy than all other
layers of a convolutional stem together."""
SCALED_AXES = {("MatMul", 1): -1, ("Conv", 1): 0, ("Gather", 0): 0}
"""Axis with one scale per index, by operator and position of the weight among its inputs."""
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
        for position, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, position))
    converters = []
    for tensor in list(graph.initializer):
        axis = _axis_of_scales(uses.get(tensor.name, []))
        if axis is None or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        weight = onnx.numpy_helper.to_array(tensor)
        if weight.size < LEAST or weight.size // weight.shape[axis] < PER_SCALE:
            continue
        graph.initializer.remove(tensor)
        converters += _stored(onnx, graph, tensor.name, weight, axis)
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*converters, *nodes])


def _stored(onnx: Any, graph: Any, name: str, weight: NDArray[np.float32], axis: int) -> list[Any]:
    """Add a weight to a graph as int8 and scales along an axis; returns the nodes that convert it to float32."""
    other_axes = tuple(number for number in range(weight.ndim) if number != axis % weight.ndim)
    largest = np.abs(weight).max(axis=other_axes, keepdims=True)
    scale = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
    integers = np.rint(weight / scale).astype(np.int8)
    from_array = onnx.numpy_helper.from_array
    graph.initializer.extend([from_array(integers, f"{name}_int8"), from_array(scale, f"{name}_scale")])
    make_node = onnx.helper.make_node
    return [
        make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=onnx.TensorProto.FLOAT),
        make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name]),
    ]


def _axis_of_scales(uses: Sequence[tuple[Any, int]]) -> int | None:
    """Axis with one scale per index, of the weight that is this input of these nodes; None unless all agree on one."""
    axes = {_scaled_axis(node, position) for node, position in uses}
    if len(axes) != 1:
        return None
    return axes.pop()


def _scaled_axis(node: Any, position: int) -> int | None:
    """The same for one node; None for another kind of input."""
    if node.op_type == "Gemm" and position == 1:
        is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return 0 if is_transposed else -1
    return SCALED_AXES.get((node.op_type, position))


def _size(model: Any) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)
