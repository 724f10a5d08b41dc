"""Intra-modal denoising contrastive loss: predictions for masked tokens must match features of the unmasked item."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from onepeace import losses
from onepeace.config.reader import Positive, Share
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


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions(TermOptions):
    scale: Positive = 2.5
    label_smoothing: Share = 0.0
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
            keys = options.on or source.modalities
            student = "joint" if len(keys) > 1 else "unimodal"
            # A joint pass masks tokens of all its modalities.
            masked = source.modalities if student == "joint" else keys
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
        mask_name = _mask_name(modalities)
        tokens = {}
        for key in modalities:
            if (self.options.teacher or mask_name) == "joint":
                teacher = passes.joint[key]
            else:
                teacher = passes.unimodal(key)
            student = passes.joint_masked[key] if mask_name == "joint" else passes.unimodal_masked(key)
            mask = passes.batch.masks[key][mask_name]
            real = passes.batch.real[key]
            masked_tokens = losses.masked_tokens(student[:, 1:], teacher.tokens[:, 1:], mask.masked, real)
            tokens[key] = MaskedTokens(*masked_tokens)
        return tokens

    def loss(self, outputs: dict[str, MaskedTokens], batch: Batch, model: Trained) -> dict[str, Tensor]:
        mask_name = _mask_name(outputs)
        by_name = {}
        for key, tokens in outputs.items():
            name = self.options.name if len(outputs) == 1 else f"{self.options.name}:{key}"
            by_name[name] = self._loss(tokens, batch.masks[key][mask_name].masked_of_real)
        return by_name

    def _loss(self, tokens: MaskedTokens, targets: Tensor) -> Tensor:
        """Loss of one modality.

        Args:
            targets: (M,) int64, the key of each query.
        """
        keys = tokens.keys
        count = None
        if self.options.keys == "global":
            keys, first_key = parallel.gather_ragged(keys)
            targets = targets + first_key
            # The mean over all processes of their losses is then the mean over all queries.
            count = sum(parallel.gather_numbers(len(tokens.queries))) / parallel.world_size() or 1.0
        return losses.denoising(
            queries=tokens.queries,
            keys=keys,
            targets=targets,
            scale=self.options.scale,
            label_smoothing=self.options.label_smoothing,
            count=count,
        )


def _mask_name(modalities: Collection[str]) -> Literal["unimodal", "joint"]:
    """Name of the student's pass, and of its masks."""
    return "joint" if len(modalities) > 1 else "unimodal"
