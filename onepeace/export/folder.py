"""A folder with the branches of a model as files, and what a program needs to run them without this package.

`export_model` writes, for each modality, KEY.onnx or KEY.pt2; tokenizer.json, if texts are among them; and export.json,
which says of each branch its inputs, and how a picture, a sound or a text becomes them.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from onepeace.embed.embedder import Embedder, load
from onepeace.errors import UserError, need
from onepeace.export.examples import Batch, examples
from onepeace.export.graph import OUTPUT, distance, trace, write_onnx
from onepeace.export.int8 import SINGLE_FILE, quantize
from onepeace.export.session import onnxruntime, open_session
from onepeace.files.atomic import sync, write_text_atomic
from onepeace.hub.fingerprint import fingerprint
from onepeace.hub.folder import TOKENIZER, check_free, new_folder, read_config
from onepeace.hub.resolve import resolve
from onepeace.processors.pieces import LEADING, TextPieces
from onepeace.processors.processor import Processor
from onepeace.processors.tokenizer import EOS, PAD

log = logging.getLogger(__name__)

RECORD = "export.json"
FORMAT = 1
ENDINGS = {"onnx": ".onnx", "int8": ".onnx", "torch": ".pt2"}
"""Ending of the files by form."""
TOLERANCE = {"onnx": 1e-4, "int8": 0.4, "torch": 1e-4}
"""Largest distance between the unit vectors of an item by the model and by an export; 0.4 is a cosine of 0.92."""
RULES = {
    "text": (
        f"lower: lower case. clean: no {LEADING} at the beginning, runs of white space and tabs as one space, no "
        "spaces and line ends around it. prefix_space: a space in front. Then tokenizer.json, which appends </s>, "
        f"{EOS}; of more than max_tokens ids before it, the first max_tokens and {EOS}. ids is padded on the right "
        f"with {PAD}; lengths counts the ids of each text, {EOS} included."
    ),
    "image": (
        "Upright RGB, on white where it is transparent. resize: squash scales both sides to size [height, width] by "
        "Pillow's bicubic filter, crop keeps their ratio and cuts out the middle. Then (x / 255 - mean) / std, "
        "channels first."
    ),
    "audio": (
        "The first max_seconds, mono (the mean of the channels) at sample_rate. Then (x - mean) / sqrt(variance + "
        "1e-5) over all of it; shorter than min_seconds: repeated and cut there. waveform is padded on the right with "
        "0; lengths counts the samples of each sound."
    ),
}
"""What preprocessing does with its settings, for who writes it anew."""


@dataclass(frozen=True)
class Exported:
    """A file that was written."""

    modality: str
    path: Path
    bytes: int
    """With the weights beside it, if they have a file of their own."""
    distance: float
    """Largest distance of its unit vectors from those of the model, on made-up items."""


def export_model(
    name: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    form: Literal["onnx", "int8", "torch"] = "onnx",
    modalities: Collection[str] | None = None,
    replace: bool = False,
) -> list[Exported]:
    """Write the branches of a model as files that take any number of items of any length.

    Each has given the vectors of the model, of another batch than it was traced by, before it gets its name.

    Args:
        name: as for `onepeace.load`; one modality is in memory at a time.
        folder: a new one, or an empty one; it appears when all its files are written.
        form: "onnx", in float32; "int8", ONNX files of 8 bits; "torch", what torch.export writes (.pt2).
        modalities: only these; None: all that have vectors.
        replace: replace the folder of an older export, with all that is in it.

    Raises:
        UserError: packages that are not installed, a modality the model lacks, a folder that is in use, a network that
            torch cannot export, vectors that differ by more than `TOLERANCE`.
        OSError: the disk is full or not writable.
    """
    folder = Path(folder)
    check_free(folder, replace=replace, record=RECORD, what="export")
    if form != "torch":
        onnxruntime()
        need("onnx", "onnx")
        need("onnxscript", "onnx")
    source = resolve(os.fspath(name))
    has = read_config(source).model.projections
    chosen = tuple(dict.fromkeys(has if modalities is None else modalities))
    if unknown := [key for key in chosen if key not in has]:
        raise UserError(f"{name} makes no vectors of {unknown[0]!r}, only of {', '.join(has)}")
    if not chosen:
        raise UserError(f"{name} makes no vectors, so there is nothing to export")
    record: dict[str, Any] = {"format": FORMAT, "model_hash": fingerprint(source), "form": form}
    branches: dict[str, Any] = {}
    done = []
    with new_folder(folder, replace=replace, record=RECORD, what="export") as part:
        for key in chosen:
            log.info("%s ...", key)
            embedder = load(source, device="cpu", dtype="float32", modalities=[key])
            embedder.module.decoder = None  # it makes no vectors, and torch.export would keep its weights
            processor = embedder.processors[key]
            batches = examples(key, processor)
            path = part / f"{key}{ENDINGS[form]}"
            apart = _write(embedder, key, batches, path, form)
            size = sum(file.stat().st_size for file in part.glob(f"{path.name}*"))
            done.append(Exported(key, folder / path.name, size, apart))
            branches[key] = {"file": path.name, **_about(processor, batches[0])}
            record |= {"embed_dim": embedder.embed_dim, "logit_scale": embedder.logit_scale}
            if isinstance(processor, TextPieces):
                processor.tokenizer.save(str(part / TOKENIZER), pretty=False)
        for file in part.iterdir():
            sync(file)
        write_text_atomic(part / RECORD, json.dumps({**record, "branches": branches}, indent=1) + "\n")
    return done


def _write(embedder: Embedder, key: str, batches: tuple[Batch, Batch], path: Path, form: str) -> float:
    """Write the file of one branch; its distance from the model, and `UserError` if that is too large."""
    example, other = batches
    program = trace(embedder.module, key, example)
    if form == "torch":
        torch.export.save(program, path)
        return _check(torch.export.load(path).module(), embedder, key, other, form)
    large = sum(tensor.nbytes for tensor in program.state_dict.values()) > SINGLE_FILE
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        plain = path if form == "onnx" else Path(scratch, path.name)
        write_onnx(program, plain, list(example), external_data=large)
        apart = _check(_runner(plain), embedder, key, other, "onnx")
        if form == "int8":
            quantize(plain, path)
            apart = _check(_runner(path), embedder, key, other, form)
    return apart


def _runner(path: Path) -> Callable[..., Tensor]:
    session = open_session(path)
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays = (tensor.numpy() for tensor in inputs)
        return torch.from_numpy(session.run([OUTPUT], dict(zip(names, arrays, strict=True)))[0])

    return run


def _check(run: Callable[..., Tensor], embedder: Embedder, key: str, batch: Batch, form: str) -> float:
    apart, allowed = distance(run, embedder.module, key, batch), TOLERANCE[form]
    if not apart <= allowed:
        raise UserError(
            f"the {form} export of {key} is refused: its vectors are up to {apart:.2g} away from the model's, and "
            f"{allowed:g} is allowed"
        )
    return apart


def _about(processor: Processor, example: Batch) -> dict[str, Any]:
    """What a program has to know of a branch: its inputs, and how they are made."""
    inputs = {}
    for name, tensor in example.items():
        free = 1 + (tensor.ndim > 1 and "lengths" in example)
        shape = ["batch", "length"][:free] + list(tensor.shape[free:])
        inputs[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}
    return {"inputs": inputs, "output": OUTPUT, "preprocessing": processor.settings, "rules": RULES.get(processor.key)}
