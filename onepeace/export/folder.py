"""Export of a model's branches into a folder with everything a program needs to run them without this package.

`export_model` writes KEY.onnx or KEY.pt2 for each modality; tokenizer.json, if text is among them; and export.json,
which describes the inputs of each branch and the preprocessing.
"""

import json
import logging
import os
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from onepeace.config import Options
from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.export.graph import VECTORS, Batch, Branch, ExportedBranch, distances, examples, trace, write_onnx
from onepeace.export.int8 import SINGLE_FILE, quantize
from onepeace.export.session import need_writers, open_session
from onepeace.files.atomic import sync, write_text_atomic
from onepeace.hub.architectures import check_own_weights, classifies_items
from onepeace.hub.folder import TOKENIZER, check_free, new_folder
from onepeace.hub.resolve import fetch_model
from onepeace.processors.processor import Processor
from onepeace.processors.tokenizer import TextPieces

log = logging.getLogger(__name__)

RECORD = "export.json"
EXPORT_FORMAT = 1
"""Version of the layout of export.json, for programs that read it."""
TOLERANCE = {"onnx": 1e-4, "int8": 0.4, "torch": 1e-4}
"""Largest allowed distance between the unit vectors of the model and of an export; 0.4 is a cosine of 0.92."""
HEAD_TOLERANCE = {"onnx": 1e-4, "int8": 0.2, "torch": 1e-4}
"""Largest allowed difference between the probabilities of a head."""


@dataclass(frozen=True)
class Exported:
    """An exported file."""

    modality: str
    path: Path
    bytes: int
    """Size, including a separate file of weights."""
    distance: float
    """Largest difference from the model, of unit vectors or probabilities, on random items."""


def export_model(
    name: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    form: Literal["onnx", "int8", "torch"] = "onnx",
    modalities: Collection[str] | None = None,
    replace: bool = False,
) -> list[Exported]:
    """Export the branches of a model with dynamic batch size and length.

    A head that classifies single items is a further output of the branch of its modality. Each file is checked against
    the model, on a batch other than the one it was traced with.

    Args:
        name: see `onepeace.load`; one modality is in memory at a time.
        folder: new or empty folder; it appears when all its files are written.
        form: "onnx", in float32; "int8", ONNX in 8 bits; "torch", a torch.export program (.pt2).
        modalities: modalities to export; None = all with a projection.
        replace: replace an older export; files of others in its folder are kept.

    Raises:
        UserError: missing packages, an unknown modality, a folder in use, a network that torch cannot export, vectors
            that differ by more than `TOLERANCE`, or probabilities by more than `HEAD_TOLERANCE`.
        OSError: the disk is full or not writable.
    """
    folder = Path(folder)
    check_free(folder, replace=replace, what="export")
    if form != "torch":
        need_writers()
    opened = fetch_model(name)
    config = opened.config
    check_own_weights(config, str(name))
    chosen = _chosen(config.model.projections, modalities, str(name))
    left_out = [name for name, head in config.model.heads.items() if not classifies_items(head)]
    if left_out:
        log.warning("not exported: %s (only heads that classify single items are)", ", ".join(left_out))
    record: dict[str, Any] = {"format": EXPORT_FORMAT, "model_hash": opened.identity.hash, "form": form}
    branches: dict[str, Any] = {}
    exported = []
    ending = "pt2" if form == "torch" else "onnx"
    with new_folder(folder, replace=replace, what="export") as part:
        for key in chosen:
            log.info("%s ...", key)
            embedder = load(opened, device="cpu", dtype="float32", modalities=[key])
            embedder.encoder.decoder = None  # not needed, and torch.export would keep its weights
            processor = embedder.processors[key]
            batches = examples(processor)
            branch = Branch(embedder.encoder, key, list(batches[0]))
            path = part / f"{key}.{ending}"
            difference = _write(branch, batches, path, form)
            size = sum(file.stat().st_size for file in part.glob(f"{path.name}*"))
            exported.append(Exported(key, folder / path.name, size, difference))
            branches[key] = {"file": path.name, **_description(branch, processor, batches[0])}
            record |= {"embed_dim": embedder.embed_dim, "logit_scale": embedder.logit_scale}
            if isinstance(processor, TextPieces):
                (part / TOKENIZER).write_text(processor.tokenizer.to_str(), encoding="utf-8")
        for file in part.iterdir():
            sync(file)
        write_text_atomic(part / RECORD, json.dumps({**record, "branches": branches}, indent=1) + "\n")
    return exported


def _chosen(
    projections: Collection[str],
    modalities: Collection[str] | None,
    name: str,
) -> list[str]:
    """The modalities to export; UserError if there are none, or one cannot be exported."""
    chosen = list(dict.fromkeys(projections if modalities is None else modalities))
    unknown = [key for key in chosen if key not in projections]
    if unknown or not chosen:
        embeds = ", ".join(projections) or "nothing"
        what = f"{', '.join(unknown)} cannot be exported" if unknown else "nothing was chosen to be exported"
        raise UserError(f"{name} embeds {embeds}; {what}")
    return chosen


def _write(
    branch: Branch,
    batches: tuple[Batch, Batch],
    path: Path,
    form: str,
) -> float:
    """Write and check the file of one branch; returns its distance from the model."""
    example, other = batches
    program = trace(branch, example)
    if form == "torch":
        torch.export.save(program, path)
        return _check(torch.export.load(path).module(), branch, other, form)
    large = sum(tensor.nbytes for tensor in program.state_dict.values()) > SINGLE_FILE
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        plain = path if form == "onnx" else Path(scratch, path.name)
        write_onnx(program, plain, branch, external_data=large)
        largest = _check(_runner(plain, branch), branch, other, "onnx")
        if form == "int8":
            quantize(plain, path)
            largest = _check(_runner(path, branch), branch, other, form)
    return largest


def _runner(path: Path, branch: Branch) -> ExportedBranch:
    session = open_session(path)
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = [tensor.numpy() for tensor in inputs]
        outputs = session.run(branch.outputs, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(array) for array in outputs]

    return run


def _check(
    exported: ExportedBranch,
    branch: Branch,
    batch: Batch,
    form: str,
) -> float:
    """Largest difference of an export from the model; UserError if one is too large."""
    differences = distances(exported, branch, batch)
    for name, difference in differences.items():
        allowed = TOLERANCE[form] if name == VECTORS else HEAD_TOLERANCE[form]
        if not difference <= allowed:
            raise UserError(
                f"the {form} export of {branch.key} is refused: its {name} differ from the model's by up to "
                f"{difference:.2g}, more than {allowed:g}"
            )
    return max(differences.values())


def _description(
    branch: Branch,
    processor: Processor,
    example: Batch,
) -> dict[str, Any]:
    """Entry of a branch in export.json: its inputs, outputs and preprocessing."""
    inputs = {}
    for name, tensor in example.items():
        num_free_axes = 2 if tensor.ndim > 1 and "lengths" in example else 1
        shape = ["batch", "length"][:num_free_axes] + list(tensor.shape[num_free_axes:])
        inputs[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}
    description: dict[str, Any] = {
        "inputs": inputs,
        "output": VECTORS,
        "preprocessing": processor.settings,
        "rules": processor.rules,
    }
    if branch.heads:
        description["heads"] = {name: _head_description(head) for name, head in branch.heads.items()}
    return description


def _head_description(head: Options) -> dict[str, Any]:
    """Entry of a head in export.json: what its output, probabilities (batch, classes), means."""
    task = head.get("task", "label")
    rule = "probabilities that sum to 1" if task == "label" else "a probability for each label on its own"
    return {"labels": head.get("labels"), "rule": rule}
