"""The objective: a dictionary of named, weighted loss terms over passes that are made once, when a term first asks.

Terms (names in a recipe's ``objective``; after the slash, the modalities concerned):

- ``contrastive``, or ``contrastive/image+text``: each pair of the batch's modalities, every item encoded alone.
- ``denoising/image``: tokens hidden, the item alone; the teacher is the same item seen whole, alone or (``teacher:
  together``) in the joint pass.
- ``denoising/image+text``: tokens of all of them hidden, in one joint pass; the teacher is the joint pass seen whole.
- ``distillation/image``: CLS features drawn towards an outside teacher's (train/teachers.py).

A recipe without denoising terms makes no masked pass and pays for no decoder. Next file: loop.py.
"""

from collections.abc import Mapping
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from onepeace import losses
from onepeace.errors import UserError
from onepeace.model import Features, OnePeace, Stem

Batch = Mapping[str, Any]
TeacherTable = Mapping[str, Any]


class Passes:
    """The passes of one step over one batch, each made at most once.

    Args:
        model: in training mode.
        batch: model inputs by modality; ``drop`` and ``masks`` as onepeace/data/batches.py makes them.
    """

    def __init__(self, model: OnePeace, batch: Batch):
        self.model, self.batch = model, batch
        self.keys = [key for key in model.adapters if key in batch]
        self._alone: dict[str, Features] = {}
        self._embedding: dict[str, Tensor] = {}
        self._alone_masked: dict[str, Tensor] = {}

    @cached_property
    def stems(self) -> dict[str, Stem]:
        return self.model.stems({key: self.batch[key] for key in self.keys})

    def alone(self, key: str) -> Features:
        """One modality on its own, seen whole (or what ``drop`` leaves of it)."""
        if key not in self._alone:
            keep = {key: self.batch["drop"][key]} if key in self.batch.get("drop", ()) else None
            self._alone[key] = self.model.encode({key: self.stems[key]}, keep)[key]
        return self._alone[key]

    def embedding(self, key: str) -> Tensor:
        """Unit vectors (B, E) of one modality."""
        if key not in self._embedding:
            self._embedding[key] = self.model.embed(key, self.alone(key))
        return self._embedding[key]

    @cached_property
    def together(self) -> dict[str, Features]:
        """The joint pass seen whole, a teacher only: no gradient."""
        with torch.no_grad():
            return self.model.encode(self.stems)

    def alone_masked(self, key: str) -> Tensor:
        """Predictions (B, L + 1, D) for one modality on its own with tokens hidden."""
        if key not in self._alone_masked:
            keep = {key: self.batch["masks"][key]["alone"][0]}
            self._alone_masked[key] = self.model.reconstruct({key: self.stems[key]}, keep)[key]
        return self._alone_masked[key]

    @cached_property
    def together_masked(self) -> dict[str, Tensor]:
        """Predictions (B, L_m + 1, D) of the joint pass with tokens of every modality hidden."""
        return self.model.reconstruct(self.stems, {key: self.batch["masks"][key]["together"][0] for key in self.keys})


class Objective(nn.Module):
    """Named losses of a batch.

    Args:
        model: the model to train.
        terms: name -> {"weight": w, ...options}; see the module's docstring.
        teachers: distillation term -> {"row": {name: row}, "features": (N, F)} as ``cached_features`` gives it.
    """

    def __init__(self, model: OnePeace, terms: Mapping[str, Mapping[str, Any]], teachers: Mapping[str, TeacherTable]):
        super().__init__()
        self.model = model
        self.kinds = {
            "contrastive": self._contrastive,
            "denoising": self._denoising,
            "distillation": self._distillation,
        }
        self.terms = {name: dict(options) for name, options in terms.items()}
        self.teachers: dict[str, TeacherTable] = {}
        self.teacher_heads = nn.ModuleDict()
        for name in self.terms:
            kind, modalities = _split(name)
            unknown = [key for key in modalities if key not in model.adapters]
            if kind not in self.kinds or unknown:
                known = f"{', '.join(self.kinds)}, of {', '.join(model.adapters)}"
                raise UserError(f"objective.{name} is not a term this model has; known: {known}")
            if kind == "distillation":
                features = teachers[name]["features"].float()
                # Pooled network features share a large mean; without it cosines tell pictures apart.
                features = (features - features.mean(0)) / (features.std(0) + 1e-6)
                self.teachers[name] = {"row": teachers[name]["row"], "features": features}
                self.teacher_heads[name] = nn.Linear(model.config.dim, features.shape[1])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Every loss of the batch by name, unweighted, and their weighted sum as "loss"."""
        passes = Passes(self.model, batch)
        found: dict[str, Tensor] = {}
        total = torch.zeros(())
        for name, options in self.terms.items():
            kind, modalities = _split(name)
            if not set(modalities) <= set(passes.keys):
                continue
            options = {**options}
            weight = options.pop("weight", 1.0)
            for part, loss in self.kinds[kind](name, modalities, passes, options).items():
                found[part] = loss
                total = total.to(loss.device) + weight * loss
        if not found:
            raise UserError(f"no term of the objective ({', '.join(self.terms)}) fits a batch of {passes.keys}")
        return {"loss": total, **found}

    def _contrastive(self, name: str, modalities: list[str], passes: Passes, options: dict) -> dict[str, Tensor]:
        equal_captions = options.pop("equal_captions", False)
        groups = passes.batch["group"] if equal_captions else None
        scale = self.model.temperature()
        return {
            f"contrastive/{a}+{b}": losses.contrastive(
                passes.embedding(a), passes.embedding(b), scale, groups=groups, **options
            )
            for a, b in combinations(modalities or passes.keys, 2)
        }

    def _denoising(self, name: str, modalities: list[str], passes: Passes, options: dict) -> dict[str, Tensor]:
        joint = len(modalities) > 1
        whole = options.pop("teacher", "together" if joint else "alone")
        found = {}
        for key in modalities:
            if whole == "alone" and key in passes.batch.get("drop", ()):
                raise UserError(f"objective.{name} needs {key} seen whole; take data.drop.{key} out")
            teacher = passes.together[key] if whole == "together" else passes.alone(key)
            student = passes.together_masked[key] if joint else passes.alone_masked(key)
            masked = passes.batch["masks"][key]["together" if joint else "alone"][1]
            padding = teacher.padding_mask
            found[f"{name}:{key}" if joint else name] = losses.denoising(
                student[:, 1:],
                teacher.tokens[:, 1:],
                masked[:, 1:],
                None if padding is None else padding[:, 1:],
                **options,
            )
        return found

    def _distillation(self, name: str, modalities: list[str], passes: Passes, options: dict) -> dict[str, Tensor]:
        options = {key: value for key, value in options.items() if key not in ("teacher", "by", "cache")}
        (key,) = modalities
        table = self.teachers[name]
        names = passes.batch[self.terms[name].get("by", "keys")]  # a sample's key, or its caption as drawn
        # Items the teacher never saw (two clips mixed, say) take no part.
        rows = [(i, table["row"][item]) for i, item in enumerate(names) if item in table["row"]]
        cls = passes.alone(key).cls
        if not rows:
            return {name: cls.sum() * 0.0}
        items, places = (torch.tensor(column) for column in zip(*rows, strict=True))
        teacher = table["features"][places].to(cls.device)
        return {name: losses.distillation(self.teacher_heads[name](cls[items.to(cls.device)]), teacher, **options)}


def _split(name: str) -> tuple[str, list[str]]:
    """ "denoising/image+text" -> ("denoising", ["image", "text"])."""
    kind, _, modalities = name.partition("/")
    return kind, [key for key in modalities.split("+") if key]
