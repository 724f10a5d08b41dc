"""Cross-modal contrast: every pair of the batch's modalities, each item encoded alone."""

from dataclasses import dataclass
from itertools import combinations, takewhile

from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.data.builder import multi_positive_ids
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.terms.term import Term, TermName, TermOptions


class Contrastive(Term):
    """``contrastive``, or ``contrastive/image+text`` of several pairs; see onepeace/losses/contrastive.py."""

    min_modalities = 2

    @dataclass(frozen=True, kw_only=True)
    class Options(TermOptions):
        multi_positive: bool = False
        """Items of equal caption or class are positives of each other."""
        label_smoothing: float = 0.0
        detach_keys: bool = False

    options: Options

    @classmethod
    def check(cls, name, options, recipe, config) -> None:
        if len(name.modalities) == 1:
            (one,) = name.modalities
            raise UserError(
                f"objective.{name.text} compares modalities and has one; write it as contrastive/{one}+OTHER"
            )
        for keys in cls.pairs(name, recipe).values():
            if bare := [key for key in name.modalities or keys if key not in config.model.projections]:
                raise UserError(f"objective.{name.text} needs a projection of {bare[0]}; add it to model.projections")
            for other in map(TermName.parse, takewhile(lambda text: text != name.text, recipe.objective)):
                both = set(name.modalities or keys) & set(other.modalities or keys)
                if other.kind == name.kind and cls.fits(other, keys) and len(both) > 1:  # logged by the same name
                    pair = "+".join([key for key in name.modalities or keys if key in both][:2])
                    raise UserError(f"objective has {other.text} and {name.text}, both of {pair}; take one of them out")

    def outputs(self, passes: Passes) -> dict[str, Tensor]:
        """Unit vectors (B, E) by modality."""
        return {key: passes.embedding(key) for key in self.name.modalities or passes.keys}

    def loss(self, outputs: dict[str, Tensor], batch: Batch, model: OnePeace) -> dict[str, Tensor]:
        if model.logit_scale is None:
            raise UserError(f"objective.{self.name.text} needs a learned temperature; set model.logit_scale: true")
        positives, scale = None, model.logit_scale.exp()
        if self.options.multi_positive:
            names = [own for part in parallel.gather_objects(batch.names) for own in part]
            positives = multi_positive_ids(names).to(next(iter(outputs.values())).device)
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
