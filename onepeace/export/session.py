"""onnxruntime, as this package opens files with it; loads no torch."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from onepeace.errors import UserError, need, one_line


def onnxruntime() -> ModuleType:
    """The package; UserError if it is not installed."""
    # Official builds (1.32 on Linux; Privacy.md in the wheel) report sessions to their maker under a lasting number of
    # the machine. A search in one's own files tells nobody, unless its user has set the variable otherwise.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return need("onnxruntime", "onnx")


def open_session(path: Path, *, optimize: bool = True) -> Any:
    """An `onnxruntime.InferenceSession` on one core of the CPU.

    Args:
        optimize: fuse operators and lay weights out for them. It takes longer than a few sentences gain by it, and
            pays for pictures, for sounds and for int8.

    Raises:
        UserError: onnxruntime is not installed, or does not read the file.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3  # errors
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no other base; an older version may not know the operators
        raise UserError(f"onnxruntime {ort.__version__} does not read {path.name}: {one_line(error)}") from error
