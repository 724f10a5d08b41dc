"""Captioning: words of a caption are predicted one by one from the features of an item."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from onepeace.data.batch import Batch, real_tokens
from onepeace.device import upload
from onepeace.errors import UserError, expect
from onepeace.generative.asking import check_caption_head, read_task
from onepeace.generative.caption_head import Caption
from onepeace.generative.generation import mean_over_tokens
from onepeace.generative.losses import TokenLosses, token_losses
from onepeace.model import Trained
from onepeace.processors.tokenizer import BOS
from onepeace.train.passes import Passes
from onepeace.train.term import TermContext, TrainingData
from onepeace.train.terms.heads import Supervised, SupervisedOptions


@dataclass(frozen=True, kw_only=True)
class CaptioningOptions(SupervisedOptions):
    head: str = "caption"
    label_smoothing: float = 0.1
    changes: dict[str, Any] = field(default_factory=dict)
    """Changed fields of the task "caption", which is taken from the starting model or else built in."""

    def reads(self, source: str, present: Sequence[str]) -> bool:
        return super().reads(source, present) and "text" in present


class Captioning(Supervised[CaptioningOptions]):
    """Cross entropy of each word of the item's caption, given the ones before and the picture or sound.

    The caption is the text of the pair; the encoder does not read it. A caption that is longer than the head's
    max_tokens is cut.
    """

    Options = CaptioningOptions
    task = "caption"

    @classmethod
    def check(cls, options: CaptioningOptions, context: TermContext) -> None:
        head = check_caption_head(options, context.config)
        num_ids = context.config.model.adapters.get("text", {}).get("vocab_size")
        if num_ids is not None and num_ids > head["vocab_size"]:
            raise UserError(
                f"model.heads.{options.head}.vocab_size is {head['vocab_size']}, and texts have ids "
                f"up to {num_ids - 1}",
                where=options.where,
            )

    @classmethod
    def prepare(cls, options: CaptioningOptions, data: TrainingData) -> None:
        task = read_task(options, cls.task, options.changes, data.start_folder)
        data.keep_task(options, cls.task, task)

    def outputs(self, passes: Passes) -> TokenLosses:
        head = expect(passes.encoder.heads[self.options.head], Caption)
        ids = passes.batch.inputs["text"]["ids"][:, : head.options.max_tokens]
        written = F.pad(ids[:, :-1], (1, 0), value=BOS)
        logits = head(passes.unimodal(self.options.one_modality()), written)
        lengths = np.minimum(passes.batch.lengths["text"] - 1, head.options.max_tokens)
        real = upload(real_tokens(lengths), ids.device)
        return token_losses(logits, ids, real=real, label_smoothing=self.options.label_smoothing)

    def loss(self, outputs: TokenLosses, batch: Batch, model: Trained) -> Mapping[str, Tensor]:
        return {self.options.name: mean_over_tokens(outputs.loss)}
