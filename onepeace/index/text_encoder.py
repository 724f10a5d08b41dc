"""The text branch of a model as an ONNX file beside an index: a search by words then needs neither torch nor the model.

`export_text_encoder` writes four files into a folder; encoder.json, which comes last, holds size and checksum of the
others, the hash of the model, and the rules by which a text is cut into pieces. `OnnxTextEncoder` reads them with
numpy, tokenizers and onnxruntime alone. Whatever is wrong with the files, they only save time: who opens them falls
back to the model.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, need, one_line
from onepeace.export.session import onnxruntime, open_session
from onepeace.files.atomic import write_atomic
from onepeace.processors.pieces import TextPieces
from onepeace.processors.tokenizer import PAD, read_tokenizer

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

logger = logging.getLogger(__name__)

MODEL, WEIGHTS, TOKENIZER, RECORD = "model.onnx", "model.onnx.data", "tokenizer.json", "encoder.json"
FORMAT = 1
TOLERANCE = 1e-4
"""Largest distance between the unit vectors of a text by torch and by the export."""
BATCH = 32
"""Texts in one pass."""
SENTENCES = [
    "",
    " ",
    "a",
    "...A  DOG \t barks\n",
    "it's raining, isn't it?",
    "Ein Hündchen über 日本 😀",
    "\0\ud800<pad></s>",
]
"""Texts by which an export is compared with its model; longer and longer ones come on top."""


@dataclass(frozen=True)
class OnnxTextEncoder:
    """Texts to the unit vectors that the model gives for them, without the model."""

    embed_dim: int
    pieces: TextPieces
    session: Any
    """The `onnxruntime.InferenceSession`."""

    @classmethod
    def open(cls, folder: str | os.PathLike[str], model_hash: str, *, threads: int = 1) -> "OnnxTextEncoder | None":
        """The encoder in `folder`; None, after one line in the log, if there is none that can be used.

        Args:
            model_hash: of the model whose vectors are searched; an export of another model is not used.
            threads: more than one pays for many texts at once only: starting them takes longer than one sentence.
        """
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            logger.debug("%s: no exported text encoder", folder)
            return None
        try:
            return cls._read(folder, model_hash, threads)
        except (UserError, OSError) as error:
            logger.info("%s: the exported text encoder is not used: %s", folder, one_line(error))
            return None

    @classmethod
    def _read(cls, folder: Path, model_hash: str, threads: int) -> "OnnxTextEncoder":
        try:
            record = json.loads((folder / RECORD).read_bytes())
        except ValueError:
            record = None
        if not isinstance(record, dict) or record.pop("checksum", None) != _checksum(record):
            raise UserError(f"{RECORD} is damaged")
        if record["format"] != FORMAT:
            raise UserError(f"it has format {record['format']}, and this onepeace reads {FORMAT}")
        if record["model_hash"] != model_hash:
            raise UserError(f"it was made of another model ({record['model_hash']}, not {model_hash})")
        for name, expected in record["files"].items():
            if _state(folder / name) != expected:
                raise UserError(f"{name} is damaged")
        pieces = TextPieces(read_tokenizer(folder / TOKENIZER), **record["text"])
        return cls(record["embed_dim"], pieces, open_session(folder / MODEL, threads=threads, optimize=False))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, E) float32 unit vectors of n texts."""
        ids = [self.pieces.cut(self.pieces.prepare(text))[0] for text in texts]
        vectors = np.empty((len(ids), self.embed_dim), np.float32)
        by_length = np.argsort([len(row) for row in ids], kind="stable")
        for start in range(0, len(ids), BATCH):
            chosen = by_length[start : start + BATCH]
            lengths = np.array([len(ids[i]) for i in chosen], np.int64)
            batch = np.full((len(chosen), lengths.max()), PAD, np.int64)
            for row, i in enumerate(chosen):
                batch[row, : len(ids[i])] = ids[i]
            (vectors[chosen],) = self.session.run(None, {"ids": batch, "lengths": lengths})
        return vectors


def export_text_encoder(embedder: "Embedder", folder: str | os.PathLike[str], *, model_hash: str) -> None:
    """Write the text branch of a model into `folder`, and make sure that its vectors are those of the model.

    An older export is replaced. A process that is killed on the way leaves one that is not used, or the old one.

    Args:
        embedder: of float32 on the CPU; `onepeace.load(name, device="cpu", dtype="float32", modalities=["text"])`
            reads no more than is needed.
        model_hash: names the model in `OnnxTextEncoder.open`.

    Raises:
        UserError: a model without text, of another precision, or whose texts have no limit; packages that are not
            installed; a network that torch cannot export; vectors that differ by more than `TOLERANCE`.
        OSError: the disk is full or not writable.
    """
    onnxruntime()
    need("onnx", "onnx")
    need("onnxscript", "onnx")
    from onepeace.export.examples import examples
    from onepeace.export.graph import trace, write_onnx

    folder = Path(folder)
    pieces = embedder.processors.get("text")
    if not isinstance(pieces, TextPieces) or "text" not in embedder.module.config.projections:
        raise UserError("this model has no vectors of texts; there is nothing to export")
    if (embedder.device.type, str(embedder.dtype)) != ("cpu", "torch.float32"):
        raise UserError(f"a text encoder is exported from float32 on the CPU, not from {embedder.dtype} on "
                        f"{embedder.device}; load the model with device='cpu', dtype='float32'")  # fmt: skip
    if pieces.max_tokens is None:
        raise UserError("a text encoder is exported with a limit of length, and processors.text.max_tokens is null")
    example, _ = examples("text", pieces)
    part = folder / "part"
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir(parents=True)
    try:
        # Weights in a file of their own are mapped into memory.
        write_onnx(trace(embedder.module, "text", example), part / MODEL, list(example), external_data=True)
        pieces.tokenizer.save(str(part / TOKENIZER), pretty=False)
        files = {name: _state(part / name) for name in (MODEL, WEIGHTS, TOKENIZER)}
        record = {"format": FORMAT, "model_hash": model_hash, "embed_dim": embedder.embed_dim, "text": pieces.settings}
        record["files"] = files
        (part / RECORD).write_text(json.dumps({**record, "checksum": _checksum(record)}, indent=1), encoding="utf-8")
        _compare(embedder, pieces, OnnxTextEncoder._read(part, model_hash, threads=1))
        for name in (*files, RECORD):
            with write_atomic(folder / name) as temporary:
                os.replace(part / name, temporary)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _compare(embedder: "Embedder", pieces: TextPieces, encoder: OnnxTextEncoder) -> None:
    """`UserError` if the export gives other vectors than the model."""
    from onepeace.embed.embedder import Embedder
    from onepeace.processors.text import TextProcessor

    words = "a dog barks at the mailman while two cats sleep on the warm roof of a red car".split()
    texts = [*SENTENCES, *(" ".join(islice(cycle(words), 2**power)) for power in range(1, 13))]
    processor = TextProcessor(pieces.tokenizer, **pieces.settings)
    processor.report_cut = encoder.pieces.report_cut = False
    wanted = Embedder(embedder.module, {"text": processor}).encode_text(texts, output="numpy", progress=False)
    distances = np.linalg.norm(encoder.encode(texts) - np.asarray(wanted), axis=1)
    worst = int(distances.argmax())  # NaN is the largest
    if not distances[worst] <= TOLERANCE:
        raise UserError(
            f"the exported text encoder is refused: its vector of {texts[worst][:40]!r} is {distances[worst]:.2g} away "
            f"from the model's, and {TOLERANCE:g} is allowed"
        )


def _state(path: Path) -> dict[str, int]:
    """Size and CRC-32 of a file."""
    size = crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return {"size": size, "crc32": crc}


def _checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
