"""Intra-modal denoising contrastive loss: predictions for masked tokens must match features of the unmasked item."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.term import Term, TermContext, TermOptions


class MaskedTokens(NamedTuple):
    """Tokens of one modality in one masked pass; see ``losses.masked_tokens``."""

    queries: Tensor
    """(M, D): predictions for the masked tokens."""
    keys: Tensor
    """(N, D): features of the teacher for all real tokens."""
    is_target: Tensor
    """(N,) bool: whether a key belongs to a query; both are in the same order."""


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions(TermOptions):
    scale: float = 2.5
    label_smoothing: float = 0.0
    teacher: Literal["unimodal", "joint"] | None = None
    """Unmasked pass of the teacher; null = the same kind as the student's."""
    keys: Literal["local", "global"] = "local"
    """Candidates: those of this process, or of all processes."""


class Denoising(Term[DenoisingOptions]):
    """Denoising contrastive loss.

    For one modality, the item is encoded alone with masked tokens; the teacher is the unmasked item, encoded alone or
    (``teacher: joint``) jointly. For several, tokens of all are masked in a joint pass, and the teacher has no masks.
    """

    Options = DenoisingOptions
    uses_masks = True

    @classmethod
    def check(cls, options: DenoisingOptions, context: TermContext) -> None:
        for source in context.sources:
            keys = options.on or source.pair
            student = "joint" if len(keys) > 1 else "unimodal"
            # A joint pass masks tokens of all its modalities.
            masked = source.pair if student == "joint" else keys
            for key in masked:
                if getattr(context.mask.get(key), student, None) is None:
                    raise UserError(f"{options.where} needs mask.{key}.{student}, the share of the masked tokens")
            dropped = [key for key in keys if context.data.token_dropout.get(key)]
            if dropped and (options.teacher or student) == "unimodal":
                field = f"data.token_dropout.{dropped[0]}"
                raise UserError(f"{options.where} needs all tokens of {dropped[0]}; take {field} out")

    def outputs(self, passes: Passes) -> dict[str, MaskedTokens]:
        """Masked tokens by modality."""
        modalities = self.options.on or passes.keys
        own = "joint" if len(modalities) > 1 else "unimodal"
        found = {}
        for key in modalities:
            teacher = passes.joint[key] if (self.options.teacher or own) == "joint" else passes.unimodal(key)
            student = passes.joint_masked[key] if own == "joint" else passes.unimodal_masked(key)
            # A part of the batch may be shorter than the batch for which the masks were drawn.
            masked = passes.batch.masks[key][own].masked[:, 1 : student.shape[1]]
            padding = None if teacher.padding_mask is None else teacher.padding_mask[:, 1:]
            queries, keys, targets = losses.masked_tokens(student[:, 1:], teacher.tokens[:, 1:], masked, padding)
            is_target = torch.zeros(len(keys), dtype=torch.bool, device=keys.device).index_fill(0, targets, True)
            found[key] = MaskedTokens(queries, keys, is_target)
        return found

    def loss(self, outputs: dict[str, MaskedTokens], batch: Batch, model: Trained) -> dict[str, Tensor]:
        return {
            self.options.name if len(outputs) == 1 else f"{self.options.name}:{key}": self._loss(tokens)
            for key, tokens in outputs.items()
        }

    def _loss(self, tokens: MaskedTokens) -> Tensor:
        keys, targets, count = tokens.keys, tokens.is_target.nonzero().squeeze(1), None
        if self.options.keys == "global":
            keys, first = parallel.gather_ragged(keys)
            targets = targets + first
            count = sum(parallel.gather_objects(len(tokens.queries))) / parallel.world_size() or 1
        scale, label_smoothing = self.options.scale, self.options.label_smoothing
        return losses.denoising(tokens.queries, keys, targets, scale, label_smoothing, count)
