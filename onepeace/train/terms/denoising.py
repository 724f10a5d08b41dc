"""Intra-modal denoising contrast: a masked token must find its own feature among those of the item seen whole."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.terms.term import Term, TermOptions


class MaskedTokens(NamedTuple):
    """Tokens of one modality in one masked pass; see ``losses.masked_tokens``."""

    queries: Tensor
    """(M, D): predictions of the masked tokens."""
    keys: Tensor
    """(N, D): the teacher's features of all real tokens."""
    is_target: Tensor
    """(N,) bool: which keys are those of the queries, in order."""


class Denoising(Term):
    """``denoising/image``: tokens masked, the item encoded alone; the teacher is the same item seen whole, alone or
    (``teacher: joint``) in the joint pass. ``denoising/image+text``: tokens of all of them masked in one joint pass;
    the teacher is the joint pass seen whole.
    """

    uses_masks = True

    @dataclass(frozen=True, kw_only=True)
    class Options(TermOptions):
        scale: float = 2.5
        label_smoothing: float = 0.0
        teacher: str | None = None
        """The pass seen whole, unimodal or joint; null = as the student's."""
        keys: str = "local"
        """Candidates: local, of this process, or global, of all."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.teacher not in (None, "unimodal", "joint"):
                raise UserError(f"teacher {self.teacher!r} is not known; known: unimodal, joint")
            if self.keys not in ("local", "global"):
                raise UserError(f"keys {self.keys!r} is not known; known: local, global")

    options: Options

    @classmethod
    def check(cls, name, options, recipe, config) -> None:
        for pair in cls.pairs(name, recipe).values():
            keys = name.modalities or pair
            # A joint pass masks tokens of everything in it.
            rate, masked = ("joint", pair) if len(keys) > 1 else ("unimodal", keys)
            for key in masked:
                if getattr(recipe.mask.get(key), rate, None) is None:
                    raise UserError(f"objective.{name.text} needs mask.{key}.{rate}, the share of the masked tokens")

    def outputs(self, passes: Passes) -> dict[str, MaskedTokens]:
        """Masked tokens by modality."""
        modalities = self.name.modalities or passes.keys
        joint = len(modalities) > 1
        found = {}
        for key in modalities:
            if (self.options.teacher or ("joint" if joint else "unimodal")) == "joint":
                teacher = passes.joint[key]
            elif key in passes.batch.token_dropout:
                raise UserError(f"objective.{self.name.text} needs {key} seen whole; take data.token_dropout.{key} out")
            else:
                teacher = passes.unimodal(key)
            student = passes.joint_masked[key] if joint else passes.unimodal_masked(key)
            # A part of the batch may be shorter than what its masks were drawn for.
            masked = passes.batch.masks[key]["joint" if joint else "unimodal"].masked[:, 1 : student.shape[1]]
            padding = None if teacher.padding_mask is None else teacher.padding_mask[:, 1:]
            queries, keys, targets = losses.masked_tokens(student[:, 1:], teacher.tokens[:, 1:], masked, padding)
            is_target = torch.zeros(len(keys), dtype=torch.bool, device=keys.device).index_fill(0, targets, True)
            found[key] = MaskedTokens(queries, keys, is_target)
        return found

    def loss(self, outputs: dict[str, MaskedTokens], batch: Batch, model: OnePeace) -> dict[str, Tensor]:
        return {
            self.name.text if len(outputs) == 1 else f"{self.name.text}:{key}": self._loss(tokens)
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
