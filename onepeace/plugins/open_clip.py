"""Models with open_clip's interface, for programs written for it.

    from onepeace.plugins.open_clip import create_model_and_transforms, get_tokenizer    # instead of open_clip's

    model, preprocess_train, preprocess_val = create_model_and_transforms("tiny")
    images = model.encode_image(preprocess_val(picture)[None], normalize=True)
    texts = model.encode_text(get_tokenizer("tiny")(["a dog", "a cat"]), normalize=True)

Model names are those of `onepeace.load`. As in open_clip, a separate function loads the tokenizer (and no
weights), so a program only changes its import.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onepeace.data.augment import ImageAugment
from onepeace.embed.embedder import Embedder, load
from onepeace.hub.resolve import fetch_model
from onepeace.model import INITIAL_SCALE
from onepeace.processors import PROCESSORS, Processor, TextProcessor
from onepeace.processors.tokenizer import PAD


class ClipModel(nn.Module):
    """CLIP model of images and texts. Vectors have unit length; ``normalize`` makes them float32 of exact
    unit length, in half precision too."""

    logit_bias = None

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.module = embedder.encoder
        self._processors = embedder.processors

    @property
    def visual(self) -> SimpleNamespace:
        """What programs read of an image tower: ``image_size`` (height, width) and ``output_dim``."""
        processor: Any = self._processors["image"]
        return SimpleNamespace(image_size=(processor.height, processor.width), output_dim=self.module.embed_dim)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.module.set_grad_checkpointing(enable)

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the scale from cosines to logits; CLIP's initial value if the model has not learned one."""
        scale = self.module.logit_scale
        return torch.tensor(math.log(INITIAL_SCALE)) if scale is None else scale

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Vectors (B, E) of pixels (B, 3, H, W) from the transforms."""
        return self._encode("image", {"pixels": image}, normalize)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Vectors (B, E) of ids (B, L) from `Tokenizer`; columns with only padding are cut off."""
        longest = 0
        if len(text):
            longest = int((text != PAD).sum(dim=1).max())
        return self._encode("text", {"ids": text[:, :longest]}, normalize)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Any, Any, Tensor]:
        """(image vectors, text vectors, logit scale), the input of open_clip's losses."""
        image_vectors = None
        if image is not None:
            image_vectors = self.encode_image(image, normalize=True)
        text_vectors = None
        if text is not None:
            text_vectors = self.encode_text(text, normalize=True)
        return image_vectors, text_vectors, self.logit_scale.exp()

    def _encode(self, modality: str, inputs: dict[str, Tensor], normalize: bool) -> Tensor:
        dtype = next(self.module.parameters()).dtype
        for name in PROCESSORS[modality].cast_inputs:
            if name in inputs:
                inputs[name] = inputs[name].to(dtype)
        vectors = self.module({modality: inputs})[modality]
        return F.normalize(vectors.float(), dim=-1) if normalize else vectors


Transform: TypeAlias = Callable[[Any], Tensor]
"""Maps an image, PIL or any other form, to a tensor (3, H, W); picklable, for worker processes."""


def _augmented(picture: Any, processor: Processor) -> Tensor:
    """Random crop of an image: the transform for training, seeded by torch's generator."""
    seed = int(torch.randint(2**62, ()))
    augment = ImageAugment(crop_scale=(0.9, 1.0))
    whole = augment.load(picture, processor)
    crop, _ = augment.vary(whole, "", processor, np.random.default_rng(seed), another=lambda: (whole, ""))
    return augment.collate([crop], processor)["pixels"][0]


class Tokenizer:
    """Maps one or several texts to ids (B, L), padded on the right to one length, so that batches can be stacked. The
    vector of a text does not depend on the padding."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.context_length = None if processor.max_tokens is None else processor.max_tokens + 1
        """L, including the end token; None: that of the longest text of a batch."""

    def __call__(self, texts: str | list[str]) -> Tensor:
        if isinstance(texts, str):
            texts = [texts]
        rows = [self.processor.decode(text) for text in texts]
        ids = torch.empty(0, 0, dtype=torch.int64)
        if rows:
            ids = self.processor.collate(rows)["ids"]
        length = self.context_length or ids.shape[1]
        return F.pad(ids, (0, length - ids.shape[1]), value=PAD)


def create_model_and_transforms(
    model_name: str | os.PathLike[str] = "tiny",
    pretrained: str | None = None,
    *,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[ClipModel, Transform, Transform]:
    """Load (model, preprocess_train, preprocess_val), as open_clip's function does.

    Args:
        model_name: see `onepeace.load`.
        pretrained: ignored, as in open_clip for names that include the weights ("local-dir:...").
        precision: "fp32", "bf16", or "fp16" (not on a CPU).
        device: see `onepeace.load`.
        cache_dir: folder for downloads, instead of the default.
    """
    embedder = load(fetch_model(model_name, cache_dir), device=device, dtype=precision, modalities=("text", "image"))
    processor = embedder.processor("image", projected=True)
    preprocess_train = partial(_augmented, processor=processor)
    return ClipModel(embedder).eval(), preprocess_train, processor.decode


def get_tokenizer(
    model_name: str | os.PathLike[str] = "tiny", cache_dir: str | os.PathLike[str] | None = None
) -> Tokenizer:
    """Load the tokenizer of a model."""
    opened = fetch_model(model_name, cache_dir)
    return Tokenizer(TextProcessor.from_config(opened.config.processors.get("text", {}), opened.folder))
