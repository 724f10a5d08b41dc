"""The names of the original code (`one_peace.models`) over this library, for programs written for it.

    from onepeace.compat import from_pretrained
    model = from_pretrained("ONE-PEACE", device="cpu")
    tokens = model.process_text(["cow", "dog"])
    features = model.extract_text_features(tokens)

Inputs are prepared as in the original: texts are lower-cased but not cleaned, sounds are normalised whole and then cut
to 15 s. Its mistakes are not repeated: padding changes no vector, ids stay integers in every dtype, pictures are
turned upright, an unknown dtype or model type is an error. New programs use `onepeace.load`.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from onepeace.config import Config
from onepeace.device import choose_device, choose_dtype
from onepeace.errors import UserError
from onepeace.files.cache import cache_folder
from onepeace.hub import weights as weight_files
from onepeace.hub.convert.convert import convert
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import resolve
from onepeace.model import Encoder
from onepeace.processors import PROCESSORS
from onepeace.processors.tokenizer import EOS, PAD

ORIGINAL_SETTINGS: dict[str, dict[str, object]] = {
    "text": {"clean": False},
    "image": {"draft": False},
    "audio": {"normalize": "file"},
}
"""Settings of the processors in which the original's public functions differ from ours."""
MODEL_TYPES = ("one_peace_retrieval", "one_peace_classify")
Sizes: TypeAlias = tuple[Tensor, Tensor, Tensor]


def from_pretrained(
    model_name_or_path: str | os.PathLike,
    model_type: str = "one_peace_retrieval",
    device: str | torch.device | None = None,
    dtype: str = "float32",
    download_root: str | os.PathLike | None = None,
    *,
    bpe: str | os.PathLike | None = None,
) -> "OnePeaceHubInterface":
    """A released model by its name ("ONE-PEACE", "ONE-PEACE_Grounding", "ONE-PEACE_VGGSound"), or a checkpoint file.

    Args:
        model_name_or_path: also any name or folder that `onepeace.load` takes.
        model_type: "one_peace_retrieval" gives unit vectors, "one_peace_classify" the logits of a fine-tuned head.
        device: the best there is by default.
        dtype: "float32", "bf16" or "fp16" (not on a CPU), or what `onepeace.load` knows.
        download_root: folder for converted checkpoint files; the cache by default.
        bpe: folder with the vocabulary for a checkpoint file that reads text (`onepeace convert --bpe`).

    Raises:
        UserError: unknown names, unreadable files, a model that is not of `model_type`.
    """
    if model_type not in MODEL_TYPES:
        raise UserError(f"model_type {model_type!r} is not known; known: {', '.join(MODEL_TYPES)}")
    chosen = choose_device(device)
    path = Path(model_name_or_path)
    folder = _converted(path, download_root, bpe) if path.is_file() else resolve(model_name_or_path)
    config = read_config(folder)
    if model_type == "one_peace_classify" and not config.model.heads:
        raise UserError(f"{model_name_or_path}: has no classifier; use model_type='one_peace_retrieval'")
    if model_type == "one_peace_retrieval" and not config.model.projections:
        raise UserError(f"{model_name_or_path}: is a classifier; use model_type='one_peace_classify'")
    module = weight_files.load_encoder(folder, chosen, choose_dtype(dtype, chosen, 0))
    return OnePeaceHubInterface(module, config, folder, model_type, dtype)


def _converted(file: Path, download_root: str | os.PathLike | None, bpe: str | os.PathLike | None) -> Path:
    """The model folder made of a checkpoint file, kept for the next time; a changed file makes a new one."""
    status = file.stat()
    state = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
    root = cache_folder() / "converted" if download_root is None else Path(download_root)
    folder = root / f"{file.stem}-{hashlib.sha256(state.encode()).hexdigest()[:12]}"
    if not (folder / "config.yaml").is_file():
        root.mkdir(parents=True, exist_ok=True)
        convert(file, folder, bpe=None if bpe is None else Path(bpe))
    return folder


class OnePeaceHubInterface:
    """A model with the methods of the original's hub object. All tensors it returns are on `device`."""

    def __init__(self, model: Encoder, config: Config, folder: Path, model_type: str, dtype: str) -> None:
        self.model = model.eval()
        self.model_type = model_type
        self.dtype = dtype
        self.device = next(model.parameters()).device
        self.eos, self.pad = EOS, PAD
        self._processors: dict[str, Any] = {
            key: PROCESSORS[key].from_config({**config.processors.get(key, {}), **ORIGINAL_SETTINGS[key]}, folder)
            for key in config.model.adapters
        }
        if "text" in self._processors:
            self.bpe = self._processors["text"].tokenizer
        if "image" in self._processors:
            self.transform = self._processors["image"].finish

    def process_text(self, text_list: Sequence[str]) -> Tensor:
        """(B, L) int64 ids of texts, lower-cased, at most 70 and then eos (2), padded on the right with 1."""
        processor = self._need(self._processors, "text")
        return processor.collate([processor.decode(text) for text in text_list])["ids"].to(self.device)

    def process_image(self, image_list: Sequence[object], return_image_sizes: bool = False) -> Tensor | Sizes:
        """(B, 3, S, S) pixels of pictures; with `return_image_sizes` also their widths and heights (B,) int64."""
        processor = self._need(self._processors, "image")
        images = [processor.load(image) for image in image_list]
        pixels = self.cast_data_dtype(processor.collate([processor.finish(image) for image in images])["pixels"])
        if not return_image_sizes:
            return pixels.to(self.device)
        widths, heights = (torch.tensor([image.size[side] for image in images]) for side in (0, 1))
        return pixels.to(self.device), widths.to(self.device), heights.to(self.device)

    def process_audio(self, audio_list: Sequence[object]) -> tuple[Tensor, Tensor]:
        """Waveforms (B, N) of sounds at 16 kHz, padded with 0, and the mask of padded tokens (B, T + 1), CLS first."""
        processor = self._need(self._processors, "audio")
        batch = processor.collate([processor.decode(audio) for audio in audio_list])
        frames = self.model.adapters["audio"].token_lengths(batch)
        mask = torch.arange(int(frames.max()) + 1) > frames.unsqueeze(1)
        return self.cast_data_dtype(batch["waveform"]).to(self.device), mask.to(self.device)

    def process_image_text_pairs(
        self, image_text_list: Sequence[tuple[object, str]], return_image_sizes: bool = False
    ) -> tuple[Tensor | Sizes, Tensor]:
        """`process_image` of the pictures and `process_text` of the texts of (picture, text) pairs."""
        images = self.process_image([image for image, _ in image_text_list], return_image_sizes)
        return images, self.process_text([text for _, text in image_text_list])

    def extract_text_features(self, src_tokens: Tensor) -> Tensor:
        """(B, E) unit vectors, or (B, number of classes) logits of a classifier."""
        return self._extract({"text": {"ids": src_tokens}})

    def extract_image_features(self, src_images: Tensor) -> Tensor:
        """(B, E) unit vectors, or (B, number of classes) logits of a classifier."""
        return self._extract({"image": {"pixels": src_images}})

    def extract_audio_features(self, src_audios: Tensor, audio_padding_masks: Tensor) -> Tensor:
        """(B, E) unit vectors, or (B, number of classes) logits of a classifier."""
        stem = self._need(self.model.adapters, "audio").stem
        frames = (~audio_padding_masks).sum(dim=1) - 1
        # Samples behind the last whole frame are read by no convolution, so the frames say where the sound ends.
        lengths = (frames - 1) * stem.hop + stem.receptive_field
        return self._extract({"audio": {"waveform": src_audios, "lengths": lengths.clamp_max(src_audios.shape[1])}})

    def extract_vl_features(self, src_images: Tensor, src_tokens: Tensor) -> Tensor:
        """(B, number of classes) logits of a classifier that reads a picture and a text together."""
        if self.model_type != "one_peace_classify":
            raise UserError(
                "a retrieval model embeds pictures and texts alone; model_type='one_peace_classify' joins them"
            )
        return self._extract({"text": {"ids": src_tokens}, "image": {"pixels": src_images}})

    def cast_data_dtype(self, t: Tensor) -> Tensor:
        """Floating-point `t` in the model's dtype; ids stay as they are."""
        return t.to(next(self.model.parameters()).dtype) if t.is_floating_point() else t

    @torch.no_grad()
    def _extract(self, inputs: dict[str, dict[str, Tensor]]) -> Tensor:
        for modality in inputs:
            self._need(self.model.adapters, modality)
        if self.model_type == "one_peace_classify":
            return self.model.predict(inputs)
        (modality,) = inputs
        return self.model(inputs)[modality]

    def _need(self, parts: Mapping[str, Any], modality: str) -> Any:
        if modality not in parts:
            raise UserError(f"this model has no {modality}; it has {', '.join(parts)}")
        return parts[modality]
