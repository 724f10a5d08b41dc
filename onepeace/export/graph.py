"""Exports the branch of one modality: wraps it as a module, traces it, writes ONNX and measures what an export loses.

A branch maps raw inputs to unit vectors, and to the probabilities of the heads that classify items of this modality
alone. The batch size and the length of items are free.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from onepeace.config import Options
from onepeace.errors import UserError, one_line
from onepeace.hub.architectures import classifies_items
from onepeace.model.interface import Encoder
from onepeace.processors.processor import Processor

Batch = dict[str, Tensor]
VECTORS = "vectors"
"""Name of the first output, the unit vectors; every further output has the name of its head."""
PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {"label": lambda x: x.softmax(-1), "labels": torch.sigmoid}
"""From the logits (B, C) of a head to probabilities, by its task."""
ExportedBranch = Callable[..., Tensor | Sequence[Tensor]]
"""A function that computes what `Branch.forward` does, by an export."""


def exported_heads(heads: Mapping[str, Options], modality: str) -> dict[str, Options]:
    """The heads that become outputs of a modality's branch: classifiers of single items of this modality."""
    return {name: head for name, head in heads.items() if head["on"] == modality and classifies_items(head)}


class Branch(nn.Module):
    """Module that maps the tensors of one modality to the outputs: unit vectors (B, E), and probabilities (B, C) of
    each exported head.

    Args:
        key: the modality.
        names: names of the model's inputs of this modality, in the order in which `forward` takes them.
    """

    def __init__(self, model: Encoder, key: str, names: Sequence[str]):
        super().__init__()
        self.model = model
        self.key = key
        self.names = list(names)
        self.heads = exported_heads(model.config.heads, key)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [VECTORS, *self.heads]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The vectors alone for a modality without heads."""
        batch = {self.key: dict(zip(self.names, inputs, strict=True))}
        if not self.heads:
            return self.model(batch)[self.key]
        blocks = [block for name in self.heads for block in self.model.head_blocks(name)]
        features = self.model.encode(self.model.stems(batch), out_indices=blocks)
        vectors = self.model.embed(self.key, features[self.key])
        probabilities = []
        for name, head in self.heads.items():
            to_probabilities = PROBABILITIES[head.get("task", "label")]
            probabilities.append(to_probabilities(self.model.apply_head(name, features)))
        return (vectors, *probabilities)


def trace(branch: Branch, example: Batch) -> ExportedProgram:
    """Trace a branch in evaluation mode with torch.export.

    Args:
        example: at least two padded items, with "lengths" if items have lengths. The number of items and the padded
            axis (the second) become dynamic.

    Raises:
        UserError: torch cannot trace the network, for example because it branches on values.
    """
    dynamic_axes = []
    for tensor in example.values():
        axes = {0: Dim.DYNAMIC}
        if "lengths" in example and tensor.ndim > 1:
            axes[1] = Dim.DYNAMIC
        dynamic_axes.append(axes)
    shapes = (tuple(dynamic_axes),)  # one entry, as `forward` has one parameter, *inputs
    with _export_context():
        try:
            return torch.export.export(branch.eval(), tuple(example.values()), dynamic_shapes=shapes)
        except Exception as error:  # from torch's tracer, its symbolic shapes or the network
            raise UserError(f"torch cannot export the {branch.key} branch: {one_line(error)[:200]}") from error


def write_onnx(
    program: ExportedProgram,
    path: Path,
    branch: Branch,
    *,
    external_data: bool = False,
) -> None:
    """Write an ONNX file of a traced branch, with its names of inputs and outputs.

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
                input_names=branch.names,
                output_names=branch.outputs,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = one_line(error.__cause__ or error)
            raise UserError(f"torch cannot write {path.name}: {reason[:200]}") from error


@contextmanager
def _export_context() -> Iterator[None]:
    """Context in which torch exports: without gradients, with attention that it can trace, and without its warnings."""
    # On a CPU torch's fused attention has another output layout than its meta function, which exporting uses.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's internals
        yield


@torch.no_grad()
def distances(
    exported: ExportedBranch,
    branch: Branch,
    batch: Batch,
) -> dict[str, float]:
    """Largest difference between a branch and an export of it, by output.

    For unit vectors this is the length of the difference, for probabilities the difference itself. It is infinite if a
    value is not finite.
    """
    outputs_of_branch = _as_sequence(branch(*batch.values()))
    outputs_of_export = _as_sequence(exported(*batch.values()))
    result = {}
    for name, expected, actual in zip(branch.outputs, outputs_of_branch, outputs_of_export, strict=True):
        if actual.shape != expected.shape:
            shapes = f"{tuple(actual.shape)}, expected {tuple(expected.shape)}"
            raise UserError(f"the exported {branch.key} branch returns {name} {shapes}")
        difference = actual - expected
        per_item = difference.norm(dim=1) if name == VECTORS else difference.abs().amax(dim=1)
        largest = float(per_item.max())
        result[name] = largest if math.isfinite(largest) else math.inf
    return result


def _as_sequence(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs


SHARES = (0.5, 0.25, 1.0, 0.0, 0.75)
"""Length of each sample, from the shortest (0) to the longest (1)."""


def examples(processor: Processor) -> tuple[Batch, Batch]:
    """Two batches of random items, which differ in the number of items and their lengths."""
    generator = torch.Generator().manual_seed(0)
    samples = [processor.example(share, generator) for share in SHARES]
    batches = []
    for samples_of_batch in (samples[:2], samples[2:]):
        batches.append(processor.collate_with_lengths(samples_of_batch))
    return batches[0], batches[1]
