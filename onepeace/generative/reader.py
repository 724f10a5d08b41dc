"""Readers, which encode the input of a generative model: prompts and pictures for OFA, token features of an item for a
caption head of ONE-PEACE."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onepeace.config import Options, merge
from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError, expect
from onepeace.generative.model import OFA
from onepeace.generative.tasks import Task
from onepeace.generative.text_decoder import EncoderOutput
from onepeace.heads import Caption
from onepeace.processors import ImageProcessor
from onepeace.processors.processor import Processor
from onepeace.processors.tokenizer import PAD

PICTURES: Options = {"size": 480, "mean": [0.5] * 3, "std": [0.5] * 3}
"""Picture settings of the released OFA models; config.yaml overrides them."""


class PromptReader:
    """Reader of OFA: a prompt, with or without a picture before it.

    Args:
        image: settings of the picture processor that all tasks share.
    """

    reads_words = True
    """Whether it reads the prompts of tasks."""

    def __init__(self, module: OFA, image: Options) -> None:
        self.module, self.image = module, merge(PICTURES, image)
        self.decoder, self.num_positions = module.decoder, module.config.num_positions

    def processors(self, task: Task) -> Mapping[str, Processor]:
        """Processors by modality, of which each item has exactly one; empty if the task only reads text.

        UserError for a task that the model does not support.
        """
        return {} if task.image is None else {"image": ImageProcessor.from_config(merge(self.image, task.image))}

    def encode(self, ids: Sequence[Sequence[int]], key: str | None, samples: Sequence[Tensor]) -> EncoderOutput:
        """Encode prompts, with bos and eos, and a decoded sample of modality `key` for each, if there are any."""
        weight = self.decoder.token_embed.weight
        padded = pad_sequence([torch.tensor(each) for each in ids], batch_first=True, padding_value=PAD)
        pixels = torch.stack(list(samples)).to(weight.device, weight.dtype) if samples else None
        return self.module.encode(padded.to(weight.device), pixels)


class FeatureReader:
    """Reader of a caption head: an item of a modality of the head, and no words; methods as in `PromptReader`."""

    reads_words = False

    def __init__(self, embedder: Embedder, name: str) -> None:
        self.embedder, self.module = embedder, embedder.module
        self.head = expect(embedder.module.heads[name], Caption)
        self.decoder, self.num_positions = self.head.decoder, self.head.options.max_tokens
        self.keys = embedder.module.config.heads[name]["on"]

    def processors(self, task: Task) -> Mapping[str, Processor]:
        if task.image is None or task.fields:
            raise UserError(f"this model describes {' and '.join(self.keys)} files, and reads no words")
        if task.image:
            raise UserError(f"image {task.image} of the task has no effect on this model; leave it out")
        return {key: self.embedder.processors[key] for key in self.keys}

    def encode(self, ids: Sequence[Sequence[int]], key: str | None, samples: Sequence[Tensor]) -> EncoderOutput:
        key = expect(key, str)
        stems = self.module.stems({key: self.embedder.inputs(key, list(samples))})
        features = self.module.encode(stems)[key]
        known = "text" in self.embedder.modalities and {key, "text"} <= {*self.module.config.projections}
        vectors = self.module.embed(key, features) if known else None
        return self.head.encoded(features)._replace(vectors=vectors)

    def agreement(self, vectors: Tensor, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Cosine of each source (B, E) with each of its texts."""
        words = expect(self.embedder.encode_text([text for own in texts for text in own], progress=False), Tensor)
        parts = words.split([len(own) for own in texts])
        return [(part @ vector).tolist() for part, vector in zip(parts, vectors.float().cpu(), strict=True)]


Reader: TypeAlias = PromptReader | FeatureReader
