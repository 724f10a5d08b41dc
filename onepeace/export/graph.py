"""The branch of one modality as a graph: raw input to unit vectors, for any number of items of any length."""

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
    """Unit vectors (B, E) of one modality as a function of its tensors, in the order of ``names``."""

    def __init__(self, model: nn.Module, key: str, names: list[str]):
        super().__init__()
        self.model, self.key, self.names = model, key, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model({self.key: dict(zip(self.names, inputs, strict=True))})[self.key]


def trace(model: nn.Module, key: str, example: Batch) -> ExportedProgram:
    """The branch ``key`` of a model in evaluation mode, as torch.export sees it.

    Args:
        example: at least two items, padded, with "lengths" if items have lengths: their number, and the axis that is
            padded (the second), may then be any.

    Raises:
        UserError: a network whose computation looks at values, or one that torch cannot trace otherwise.
    """
    padded = {1: Dim.DYNAMIC} if "lengths" in example else {}
    shapes = tuple({0: Dim.DYNAMIC, **(padded if tensor.ndim > 1 else {})} for tensor in example.values())
    branch = Branch(model, key, list(example)).eval()
    with _translating():
        try:
            return torch.export.export(branch, tuple(example.values()), dynamic_shapes=(shapes,))
        except Exception as error:  # of torch's tracer, its symbolic shapes or the network
            raise _cannot(key, error) from error


def write_onnx(program: ExportedProgram, path: Path, names: list[str], *, external_data: bool = False) -> None:
    """The file that onnxruntime reads; its inputs have these names, and its output is `OUTPUT`.

    Args:
        external_data: the weights in a file of their own, PATH.data: it is mapped into memory, and may pass the 2 GB of
            a protobuf message.
    """
    with _translating():
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
            raise _cannot("", error.__cause__ or error) from error


@contextmanager
def _translating() -> Iterator[None]:
    # The layout that torch's fused attention gives on a CPU is not that of its stand-in while a graph is translated.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own inside
        yield


def _cannot(key: str, error: BaseException) -> UserError:
    branch = f"the {key} branch of this model" if key else "this model"
    return UserError(f"torch cannot export {branch}: {one_line(error)[:200]}")


@torch.no_grad()
def distance(run: Callable[..., Tensor], model: nn.Module, key: str, batch: Batch) -> float:
    """The largest distance between the unit vectors of an item by a model and by ``run``, an export of its branch;
    infinite for vectors that are not finite."""
    wanted, got = model({key: batch})[key], run(*batch.values())
    if got.shape != wanted.shape:
        raise UserError(f"the exported {key} branch gives {tuple(got.shape)} and not {tuple(wanted.shape)}")
    apart = float((got - wanted).norm(dim=1).max())
    return apart if math.isfinite(apart) else math.inf
