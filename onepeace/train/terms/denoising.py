"""Intra-modal denoising contrast: what is predicted for a masked token must match its feature in the unmasked item."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import Features, OnePeace
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
    """``denoising/image``: the item is encoded alone, with tokens masked; the teacher is the unmasked item, encoded
    alone or (``teacher: joint``) jointly. ``denoising/image+text``: a joint pass with tokens of all of them masked; the
    teacher is the unmasked joint pass.
    """

    uses_masks = True

    @dataclass(frozen=True, kw_only=True)
    class Options(TermOptions):
        scale: float = 2.5
        label_smoothing: float = 0.0
        teacher: str | None = None
        """The unmasked pass, unimodal or joint; null = as the student's."""
        average: bool = False
        """Whether the teacher has the run's averaged weights (run.ema), as in data2vec, in place of the student's."""
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
            if options.average and (recipe.run.ema is None or recipe.run.parallel != "ddp"):
                raise UserError(f"objective.{name.text}.average needs run.ema, and run.parallel: ddp")
            dropped = [key for key in keys if recipe.data.token_dropout.get(key)]
            if dropped and (options.teacher or rate) == "unimodal" and not options.average:
                place = f"data.token_dropout.{dropped[0]}"
                raise UserError(f"objective.{name.text} needs all tokens of {dropped[0]}; take {place} out")

    def outputs(self, passes: Passes) -> dict[str, MaskedTokens]:
        """Masked tokens by modality."""
        modalities = self.name.modalities or passes.keys
        own = "joint" if len(modalities) > 1 else "unimodal"
        found = {}
        for key in modalities:
            teacher = self._teacher(passes, key, self.options.teacher or own)
            student = passes.joint_masked[key] if own == "joint" else passes.unimodal_masked(key)
            # A part of the batch may be shorter than what its masks were drawn for.
            masked = passes.batch.masks[key][own].masked[:, 1 : student.shape[1]]
            padding = None if teacher.padding_mask is None else teacher.padding_mask[:, 1:]
            queries, keys, targets = losses.masked_tokens(student[:, 1:], teacher.tokens[:, 1:], masked, padding)
            is_target = torch.zeros(len(keys), dtype=torch.bool, device=keys.device).index_fill(0, targets, True)
            found[key] = MaskedTokens(queries, keys, is_target)
        return found

    def _teacher(self, passes: Passes, key: str, kind: str) -> Features:
        if self.options.average:
            return passes.averaged(tuple(passes.keys) if kind == "joint" else (key,))[key]
        return passes.joint[key] if kind == "joint" else passes.unimodal(key)

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
