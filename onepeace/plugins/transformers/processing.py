"""Processors of images, sounds and texts; `onepeace.processors` does the work."""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding, BatchFeature, PreTrainedTokenizerFast, ProcessorMixin, SequenceFeatureExtractor
from transformers.image_processing_utils import BaseImageProcessor

from onepeace.errors import UserError
from onepeace.hub.folder import TOKENIZER
from onepeace.hub.resolve import fetch_model
from onepeace.processors import PROCESSORS, TextProcessor
from onepeace.processors.tokenizer import BOS, EOS, PAD, SPECIALS, UNK, TextPieces

SETTINGS = ("lower", "clean", "prefix_space")


class OnePeaceTokenizer(PreTrainedTokenizerFast):
    """Tokenizer that cleans a text as our processor does and ends it with </s>.

    Texts are truncated at the model's length unless ``truncation=False`` is given; "</s>" in a text is plain text.
    Offsets refer to the cleaned text.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    @classmethod
    def from_onepeace(cls, name: str | os.PathLike[str] = "tiny") -> "OnePeaceTokenizer":
        """Tokenizer of a model by name, see `onepeace.load`."""
        opened = fetch_model(name)
        processor: Any = TextProcessor.from_config(opened.config.processors.get("text", {}), opened.folder)
        settings = processor.settings
        max_tokens = settings.pop("max_tokens")
        if max_tokens is not None:
            settings["model_max_length"] = max_tokens + 1
        return cls(
            tokenizer_object=processor.tokenizer,
            bos_token=SPECIALS[BOS],
            pad_token=SPECIALS[PAD],
            eos_token=SPECIALS[EOS],
            unk_token=SPECIALS[UNK],
            split_special_tokens=True,
            **settings,
        )

    @cached_property
    def _pieces(self) -> TextPieces:
        settings = {name: self.init_kwargs[name] for name in SETTINGS if name in self.init_kwargs}
        return TextPieces(self.backend_tokenizer, max_tokens=None, **settings)

    def _encode_plus(  # type: ignore[override]
        self, text: Any, text_pair: Any = None, **kwargs: Any
    ) -> BatchEncoding:
        is_batch = isinstance(text, list | tuple)
        texts = text if is_batch else [text]
        are_texts = all(isinstance(item, str) for item in texts)
        if not are_texts or text_pair is not None or kwargs.get("is_split_into_words"):
            raise UserError("this tokenizer takes a text or a list of texts, not pairs or pre-split words")
        space = " " if self._pieces.prefix_space else ""
        prepared = [space + self._pieces.prepare(item) for item in texts]
        return super()._encode_plus(prepared if is_batch else prepared[0], **kwargs)

    def _get_padding_truncation_strategies(  # type: ignore[override]
        self, padding: Any = False, truncation: Any = None, **kwargs: Any
    ) -> Any:
        if truncation is None:
            truncation = True
        return super()._get_padding_truncation_strategies(padding=padding, truncation=truncation, **kwargs)

    def _save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        files = super()._save_pretrained(*args, **kwargs)
        # In a model folder the four special tokens are plain text, and the settings of the last call are not kept.
        path = next(Path(file) for file in files if file.endswith(TOKENIZER))
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, "added_tokens": [], "truncation": None, "padding": None}), "utf-8")
        return files


IGNORED = ("data_format", "device", "input_data_format", "padding", "return_attention_mask", "truncation")
"""Options that callers in transformers always pass."""


class _FromModel:
    """Processor with the settings of a model's processor."""

    modality: ClassVar[str]
    settings: dict[str, Any]

    @classmethod
    def from_onepeace(cls, name: str | os.PathLike[str] = "tiny") -> Any:
        """Processor of a model by name, see `onepeace.load`."""
        config = fetch_model(name).config
        if cls.modality not in config.model.adapters:
            raise UserError(
                f"no modality {cls.modality!r}; the model has {', '.join(config.model.adapters)}", where=name
            )
        return cls(config.processors.get(cls.modality, {}))  # type: ignore[call-arg]

    @property
    def processor(self) -> Any:
        """Processor of `onepeace.processors` with these settings."""
        return PROCESSORS[self.modality].from_config(self.settings)


class OnePeaceImageProcessor(_FromModel, BaseImageProcessor):
    """Images to ``pixel_values`` (B, 3, H, W); the settings are those of `onepeace.processors.ImageProcessor`."""

    modality = "image"
    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, settings: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = dict(settings or {})
        _ = self.processor  # raises at once if a setting is wrong

    def preprocess(self, images: Any, return_tensors: Any = None, **options: Any) -> BatchFeature:
        """
        Args:
            images: one or a list of what `onepeace.processors.ImageProcessor` reads: PIL images, uint8 arrays
                (H, W, 3), tensors (3, H, W), paths, URLs, bytes; or a batch (B, H, W, 3) or (B, 3, H, W) of them.
            return_tensors: "pt" or "np"; None returns a list of arrays.
        """
        _refuse(options)
        is_batch = isinstance(images, np.ndarray | Tensor) and images.ndim == 4
        if not is_batch and not isinstance(images, list | tuple):
            images = [images]
        processor = self.processor
        batch = processor.collate([processor.decode(image) for image in images])
        return _feature({"pixel_values": batch["pixels"]}, return_tensors)


class OnePeaceFeatureExtractor(_FromModel, SequenceFeatureExtractor):
    """Sounds to ``input_values`` (B, N), normalised waveforms, and ``padding_mask`` (B, N), 0 in padding.

    The settings are those of `onepeace.processors.AudioProcessor`.
    """

    modality = "audio"
    model_input_names = ["input_values", "padding_mask"]  # noqa: RUF012

    def __init__(self, settings: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.settings = dict(settings or {})
        rate = self.processor.sample_rate
        super().__init__(**{**kwargs, "feature_size": 1, "sampling_rate": rate, "padding_value": 0.0})

    def __call__(
        self, raw_speech: Any, sampling_rate: int | None = None, return_tensors: Any = None, **options: Any
    ) -> BatchFeature:
        """
        Args:
            raw_speech: one or a list of arrays or tensors of samples (n,), (channels, n) or (n, channels), of paths,
                URLs or bytes.
            sampling_rate: rate of arrays in Hz, which are resampled to the model's; None if they have the model's.
            return_tensors: "pt" or "np"; None returns a list of arrays.
        """
        _refuse(options)
        processor = self.processor
        rate = sampling_rate or self.sampling_rate
        sounds = raw_speech if isinstance(raw_speech, list | tuple) else [raw_speech]
        samples = [processor.decode(_with_rate(sound, rate)) for sound in sounds]
        waveform = processor.collate(samples)["waveform"]
        lengths = torch.tensor([len(sound) for sound in samples])
        mask = (torch.arange(waveform.shape[1]) < lengths[:, None]).long()
        return _feature({"input_values": waveform, "padding_mask": mask}, return_tensors)


def _with_rate(sound: Any, rate: int) -> Any:
    """A sound as our processor takes it: (samples, rate), or a path, URL or bytes."""
    return (sound, rate) if isinstance(sound, np.ndarray | Tensor) else sound


class OnePeaceProcessor(ProcessorMixin):
    """Image, text and audio processor: ``processor(images=..., text=..., audio=..., return_tensors="pt")``."""

    def __init__(
        self,
        image_processor: OnePeaceImageProcessor,
        tokenizer: OnePeaceTokenizer,
        feature_extractor: OnePeaceFeatureExtractor,
    ) -> None:
        super().__init__(image_processor, tokenizer, feature_extractor)

    @classmethod
    def from_onepeace(cls, name: str | os.PathLike[str] = "tiny") -> Any:
        """Processor of a model by name; its class depends on whether the model has images and sounds."""
        opened = fetch_model(name)
        adapters = opened.config.model.adapters
        parts = {attribute: part for attribute, (modality, part) in PARTS.items() if modality in adapters}
        for processor_class in (OnePeaceProcessor, OnePeaceImageTextProcessor, OnePeaceAudioTextProcessor):
            if set(processor_class.get_attributes()) == set(parts):
                return processor_class(**{attribute: part.from_onepeace(opened) for attribute, part in parts.items()})
        names = ", ".join(part.__name__ for part in parts.values())
        raise UserError(f"reads only {', '.join(adapters)}; use {names}", where=name)

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Inputs of a model; see the processor of each modality. Texts are padded unless ``padding`` is set."""
        if "padding" not in kwargs.get("text_kwargs", {}):
            kwargs.setdefault("padding", True)
        return super().__call__(images, text, videos, audio, **kwargs)

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **_: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Return the items unchanged, as our processors open paths and URLs themselves."""
        return images, text, videos, audio


class OnePeaceImageTextProcessor(OnePeaceProcessor):
    """Processor of models without sounds."""

    def __init__(self, image_processor: OnePeaceImageProcessor, tokenizer: OnePeaceTokenizer) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer)


class OnePeaceAudioTextProcessor(OnePeaceProcessor):
    """Processor of models without images."""

    def __init__(self, tokenizer: OnePeaceTokenizer, feature_extractor: OnePeaceFeatureExtractor) -> None:
        ProcessorMixin.__init__(self, tokenizer, feature_extractor)


PARTS: dict[str, tuple[str, Any]] = {
    "image_processor": ("image", OnePeaceImageProcessor),
    "tokenizer": ("text", OnePeaceTokenizer),
    "feature_extractor": ("audio", OnePeaceFeatureExtractor),
}
"""Modality and class of each attribute of a processor."""


def _refuse(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is not None and name not in IGNORED:
            raise UserError(f"{name} is not an option here; change the settings of the processor")


def _feature(batch: dict[str, Tensor], return_tensors: Any) -> BatchFeature:
    return BatchFeature({name: list(value.numpy()) for name, value in batch.items()}, tensor_type=return_tensors)
