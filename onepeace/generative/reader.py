"""From decoded items to what the decoder reads: OFA encodes prompts and pictures; a caption head gets the token
features of an item.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onepeace.config import Options, merge
from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError, expect
from onepeace.generative.decoder import Caption, EncoderOutput
from onepeace.generative.model import OFA
from onepeace.generative.tasks import Task
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
        self.module = module
        self.image = merge(PICTURES, image)
        self.decoder = module.decoder
        self.num_positions = module.config.num_positions

    def processors(self, task: Task) -> Mapping[str, Processor]:
        """Processors by modality, of which each item has exactly one; empty if the task only reads text.

        UserError for a task that the model does not support.
        """
        if task.image is None:
            return {}
        return {"image": ImageProcessor.from_config(merge(self.image, task.image))}

    def encode(self, ids: Sequence[Sequence[int]], modality: str | None, samples: Sequence[Tensor]) -> EncoderOutput:
        """Encode prompts, with bos and eos, and a decoded sample of a modality for each, if there are any."""
        weight = self.decoder.token_embed.weight
        rows = list(map(torch.tensor, ids))
        prompts = pad_sequence(rows, batch_first=True, padding_value=PAD)
        pixels = None
        if samples:
            pixels = torch.stack(list(samples)).to(weight.device, weight.dtype)
        return self.module.encode(prompts.to(weight.device), pixels)


class FeatureReader:
    """Reader of a caption head: an item of a modality of the head, and no words; methods as in `PromptReader`."""

    reads_words = False

    def __init__(self, embedder: Embedder, name: str) -> None:
        self.embedder = embedder
        self.module = embedder.encoder
        self.head = expect(self.module.heads[name], Caption)
        self.decoder = self.head.decoder
        self.num_positions = self.head.options.max_tokens
        self.modalities = self.module.config.heads[name]["on"]

    def processors(self, task: Task) -> Mapping[str, Processor]:
        if task.image is None or task.fields:
            raise UserError(f"this model describes {' and '.join(self.modalities)} files, and reads no words")
        if task.image:
            raise UserError(f"image {task.image} of the task has no effect on this model; leave it out")
        return {modality: self.embedder.processors[modality] for modality in self.modalities}

    def encode(self, ids: Sequence[Sequence[int]], modality: str | None, samples: Sequence[Tensor]) -> EncoderOutput:
        modality = expect(modality, str)
        inputs = self.embedder.inputs(modality, list(samples))
        stems = self.module.stems({modality: inputs})
        features = self.module.encode(stems)[modality]
        encoded = self.head.encoded(features)
        projections = self.module.config.projections
        is_comparable = "text" in self.embedder.modalities and "text" in projections and modality in projections
        if is_comparable:
            encoded = encoded._replace(vectors=self.module.embed(modality, features))
        return encoded

    def agreement(self, vector: Tensor, texts: Sequence[str]) -> list[float]:
        """Cosine of a source (E,) with each of its texts."""
        text_vectors = expect(self.embedder.encode_text(texts, progress=False), Tensor)
        return (text_vectors @ vector.float().cpu()).tolist()


Reader: TypeAlias = PromptReader | FeatureReader
