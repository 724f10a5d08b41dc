"""Sessions of onnxruntime; importing this loads no torch."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from onepeace.errors import UserError, need, one_line


def onnxruntime() -> ModuleType:
    """Import onnxruntime; UserError if it is not installed."""
    # Official builds (1.32 on Linux; Privacy.md in the wheel) report sessions to their vendor with a persistent id of
    # the machine. Searches in private files should not be reported unless the user has set the variable.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return need("onnxruntime", "onnx")


def need_writers() -> None:
    """Raise UserError unless the packages that write and run ONNX files are installed."""
    onnxruntime()
    need("onnx", "onnx")
    need("onnxscript", "onnx")


def open_session(path: Path, *, optimize: bool = True) -> Any:
    """Open an `onnxruntime.InferenceSession` on one CPU core.

    Args:
        optimize: fuse operators and rearrange weights. This pays off for images, sounds and int8, but takes longer than
            it saves for a few sentences.

    Raises:
        UserError: onnxruntime is not installed, or cannot read the file.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3  # errors
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base class; an older version may lack operators
        raise UserError(f"onnxruntime {ort.__version__} cannot read {path.name}: {one_line(error)}") from error
