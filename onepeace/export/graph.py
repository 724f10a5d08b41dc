"""Branch of one modality as a graph: raw inputs to unit vectors, with dynamic batch size and length."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from onepeace.errors import UserError, one_line
from onepeace.export.examples import Batch

OUTPUT = "vectors"


class Branch(nn.Module):
    """Module that maps the tensors of one modality, in the order of ``names``, to unit vectors (B, E)."""

    def __init__(self, model: nn.Module, key: str, names: list[str]):
        super().__init__()
        self.model, self.key, self.names = model, key, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model({self.key: dict(zip(self.names, inputs, strict=True))})[self.key]


def trace(model: nn.Module, key: str, example: Batch) -> ExportedProgram:
    """Trace the branch ``key`` of a model in evaluation mode with torch.export.

    Args:
        example: at least two padded items, with "lengths" if items have lengths. The number of items and the padded
            axis (the second) become dynamic.

    Raises:
        UserError: torch cannot trace the network, for example because it branches on values.
    """
    padded = {1: Dim.DYNAMIC} if "lengths" in example else {}
    shapes = tuple({0: Dim.DYNAMIC, **(padded if tensor.ndim > 1 else {})} for tensor in example.values())
    branch = Branch(model, key, list(example)).eval()
    with _export_context():
        try:
            return torch.export.export(branch, tuple(example.values()), dynamic_shapes=(shapes,))
        except Exception as error:  # from torch's tracer, its symbolic shapes or the network
            raise UserError(f"torch cannot export the {key} branch: {one_line(error)[:200]}") from error


def write_onnx(program: ExportedProgram, path: Path, names: list[str], *, external_data: bool = False) -> None:
    """Write an ONNX file with these input names; the output is `OUTPUT`.

    Args:
        external_data: write the weights to PATH.data, which is memory-mapped and may exceed the 2 GB of a protobuf
            message.
    """
    with _export_context():
        try:
            torch.onnx.export(
                program,
                (),
                path,
                external_data=external_data,
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=[OUTPUT],
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = one_line(error.__cause__ or error)
            raise UserError(f"torch cannot write {path.name}: {reason[:200]}") from error


@contextmanager
def _export_context() -> Iterator[None]:
    # On a CPU torch's fused attention has another output layout than its meta function, which exporting uses.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's internals
        yield


@torch.no_grad()
def distance(run: Callable[..., Tensor], model: nn.Module, key: str, batch: Batch) -> float:
    """Largest distance between the unit vectors of an item from the model and from ``run``, an export of its branch;
    infinite if a vector is not finite."""
    wanted, got = model({key: batch})[key], run(*batch.values())
    if got.shape != wanted.shape:
        raise UserError(f"the exported {key} branch returns {tuple(got.shape)}, expected {tuple(wanted.shape)}")
    apart = float((got - wanted).norm(dim=1).max())
    return apart if math.isfinite(apart) else math.inf
