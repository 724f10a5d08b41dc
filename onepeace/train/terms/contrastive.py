"""Cross-modal contrastive loss for every pair of the batch's modalities, each encoded alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

from torch import Tensor

from onepeace import losses
from onepeace.config.reader import Share
from onepeace.data.batch import Batch
from onepeace.data.builder import multi_positive_ids
from onepeace.device import upload
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.term import Term, TermContext, TermOptions, check_projections


@dataclass(frozen=True, kw_only=True)
class PairsOptions(TermOptions):
    """Options of a term that compares modalities."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.on) == 1:
            raise UserError(f"{self.name} compares modalities, and `on` has only {self.on[0]}; add another")

    def reads(self, source: str, present: Sequence[str]) -> bool:
        return super().reads(source, present) and len(present) > 1


@dataclass(frozen=True, kw_only=True)
class ContrastiveOptions(PairsOptions):
    multi_positive: bool = False
    """Whether items with the same caption or class are positives of each other."""
    label_smoothing: Share = 0.0
    detach_keys: bool = False
    """Whether keys have no gradient, as in the released code."""


P = TypeVar("P", bound=PairsOptions)


class Pairs(Term[P], Generic[P]):
    """Base class: the vectors of the modalities are compared, in pairs."""

    @classmethod
    def check(cls, options: P, context: TermContext) -> None:
        for source in context.sources:
            check_projections(options, options.on or source.modalities, context.config)

    def outputs(self, passes: Passes) -> dict[str, Tensor]:
        """Unit vectors (B, E) by modality."""
        return {key: passes.embedding(key) for key in self.options.on or passes.keys}

    def scale_of(self, batch: Batch, model: Trained) -> Tensor:
        """The learned scale of the cosines; UserError if there is none, or if items have several inputs."""
        if batch.rows > 1:
            raise UserError(
                f"it compares one input with one other, and items of {batch.source} have {batch.rows} pictures, sounds "
                "or candidates; name other sources",
                where=self.options.where,
            )
        if model.logit_scale is None:
            raise UserError(f"{self.options.where} needs a learned temperature; set model.logit_scale: true")
        return model.logit_scale.exp()


class Contrastive(Pairs[ContrastiveOptions]):
    """InfoNCE over the batch; see onepeace/losses/contrastive.py."""

    Options = ContrastiveOptions

    def loss(self, outputs: dict[str, Tensor], batch: Batch, model: Trained) -> dict[str, Tensor]:
        scale = self.scale_of(batch, model)
        positives = None
        if self.options.multi_positive:
            names = [item_names for part in parallel.gather_objects(batch.names) for item_names in part]
            positives = upload(multi_positive_ids(names), scale.device)
        keys = {key: parallel.gather(vectors) for key, vectors in outputs.items()}
        return {
            f"contrastive/{a}+{b}": losses.contrastive(
                outputs[a],
                outputs[b],
                scale,
                positives,
                keys=(keys[a], keys[b]),
                first=len(outputs[a]) * parallel.rank(),
                label_smoothing=self.options.label_smoothing,
                detach_keys=self.options.detach_keys,
            )
            for a, b in combinations(outputs, 2)
        }
