"""The objective: a dictionary of named, weighted loss terms over the passes of passes.py.

Terms (names in a recipe's ``objective``; after the slash, the modalities concerned):

- ``contrastive``, or ``contrastive/image+text``: each pair of the batch's modalities, every item encoded alone.
- ``denoising/image``: tokens hidden, the item alone; the teacher is the same item seen whole, alone or (``teacher:
  together``) in the joint pass.
- ``denoising/image+text``: tokens of all of them hidden, in one joint pass; the teacher is the joint pass seen whole.
- ``distillation/image``: CLS features drawn towards an outside teacher's (train/teachers.py), of the item or, with
  ``by: captions``, of its caption.

A label tells two terms of one kind and modality apart: ``distillation:captions/image``.

A term has two halves. The first makes passes over a part of the batch and keeps the few tensors its loss needs; the
second is the loss over those of the whole batch, of all parts and all processes. So a batch larger than memory has the
same loss: its parts are computed one after another and once more in the backward pass (gradient caching, as in
GradCache, arXiv 2101.06983, here by ``torch.utils.checkpoint``). Next file: loop.py.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from onepeace import losses
from onepeace.config import to_plain
from onepeace.data.batches import groups, split
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.train import parallel
from onepeace.train.passes import Batch, Passes
from onepeace.train.recipe import read_term, split_term

TeacherTable = Mapping[str, Any]
Outputs = dict[str, Tensor]


class Objective(nn.Module):
    """Named losses of a batch.

    Args:
        model: the model to train.
        terms: name -> {"weight": w, ...options}; see the module's docstring, and TERMS of recipe.py.
        teachers: distillation term -> {"row": {name: row}, "features": (N, F)} as ``cached_features`` gives it.
        grad_cache_chunks: number of parts the batch is computed in; activations of one part are held at a time.
        max_padding: share of padding from which a pass is cut into groups of similar length.
        sharded: the model's blocks are gathered from shares of several processes.
    """

    def __init__(
        self,
        model: OnePeace,
        terms: Mapping[str, Mapping[str, Any]],
        teachers: Mapping[str, TeacherTable],
        grad_cache_chunks: int = 1,
        max_padding: float = 0.1,
        sharded: bool = False,
    ):
        super().__init__()
        self.model = model
        self.grad_cache_chunks, self.max_padding, self.sharded = grad_cache_chunks, max_padding, sharded
        self.kinds = {
            "contrastive": (self._embed, self._contrastive),
            "denoising": (self._hide, self._denoising),
            "distillation": (self._imitate, self._distillation),
        }
        self.terms: dict[str, dict[str, Any]] = {}
        self.teachers: dict[str, TeacherTable] = {}
        self.teacher_heads = nn.ModuleDict()
        for name, options in terms.items():
            kind, modalities = split_term(name)
            unknown = [key for key in modalities if key not in model.adapters]
            if kind not in self.kinds or unknown:
                known = f"{', '.join(self.kinds)}, of {', '.join(model.adapters)}"
                raise UserError(f"objective.{name} is not a term this model has; known: {known}")
            self.terms[name] = to_plain(read_term(name, options))
            if kind == "distillation":
                features = teachers[name]["features"].float()
                # Pooled network features share a large mean; without it cosines tell pictures apart.
                features = (features - features.mean(0)) / (features.std(0) + 1e-6)
                self.teachers[name] = {"row": teachers[name]["row"], "features": features}
                self.teacher_heads[name] = nn.Linear(model.config.dim, features.shape[1])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Every loss of the batch by name, unweighted; their weighted sum as "loss"; "padding", a share of the tokens.

        Over several processes each has its own part of the batch, and the mean over them is the whole batch's loss.
        """
        present = [key for key in self.model.adapters if key in batch]
        terms = {name: options for name, options in self.terms.items() if set(split_term(name)[1]) <= set(present)}
        if not terms:
            raise UserError(f"no term of the objective ({', '.join(self.terms)}) fits a batch of {present}")
        if self.grad_cache_chunks == 1:
            parts = [self._outputs(terms, batch)]
        else:
            pieces = split(batch, self.grad_cache_chunks, {key: self.model.adapters[key].take for key in present})
            parts = [checkpoint(self._outputs, terms, piece, use_reentrant=False) for piece in pieces]
        outputs = _join(parts)
        found: dict[str, Tensor] = {}
        total = torch.zeros((), device=outputs["tokens"].device)
        for name, options in terms.items():
            kind, modalities = split_term(name)
            options = {**options}
            weight = options.pop("weight")
            for part, loss in self.kinds[kind][1](name, modalities or present, outputs, batch, options).items():
                found[part] = loss
                total = total + weight * loss
        real, computed = outputs["tokens"].view(-1, 2).sum(0)
        return {"loss": total, **found, "padding": 1 - real / computed}

    def _outputs(self, terms: Mapping[str, Mapping[str, Any]], batch: Batch) -> Outputs:
        agreed = {"agree": parallel.all_reduce_max} if self.sharded else {}
        passes = Passes(self.model, batch, self.max_padding, **agreed)
        outputs: Outputs = {}
        for name, options in terms.items():
            kind, modalities = split_term(name)
            outputs.update(self.kinds[kind][0](name, modalities or passes.keys, passes, options))
        device = next(iter(outputs.values())).device
        return {**outputs, "tokens": torch.tensor([passes.real_tokens, passes.all_tokens], device=device)}

    def _embed(self, name: str, modalities: list[str], passes: Passes, options: Mapping[str, Any]) -> Outputs:
        return {f"embedding/{key}": passes.embedding(key) for key in modalities}

    def _contrastive(
        self, name: str, modalities: list[str], outputs: Outputs, batch: Batch, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        names = None
        if options.pop("multi_positive"):
            everyone = [names for part in parallel.gather_objects(batch["names"]) for names in part]
            names = groups(everyone).to(outputs["tokens"].device)
        scale, found = self.model.temperature(), {}
        searched = {key: parallel.gather(outputs[f"embedding/{key}"]) for key in modalities}
        for key, other in combinations(modalities, 2):
            a, b = outputs[f"embedding/{key}"], outputs[f"embedding/{other}"]
            keys = (searched[key], searched[other])
            first = len(a) * parallel.rank()
            found[f"contrastive/{key}+{other}"] = losses.contrastive(
                a, b, scale, names, keys=keys, first=first, **options
            )
        return found

    def _hide(self, name: str, modalities: list[str], passes: Passes, options: Mapping[str, Any]) -> Outputs:
        joint = len(modalities) > 1
        whole = options["teacher"] or ("joint" if joint else "unimodal")
        outputs: Outputs = {}
        for key in modalities:
            if whole == "unimodal" and key in passes.batch.get("token_dropout", ()):
                raise UserError(f"objective.{name} needs {key} seen whole; take data.token_dropout.{key} out")
            teacher = passes.joint[key] if whole == "joint" else passes.unimodal(key)
            student = passes.joint_masked[key] if joint else passes.unimodal_masked(key)
            # A part of the batch may be shorter than what its masks were drawn for.
            masked = passes.batch["masks"][key]["joint" if joint else "unimodal"][1][:, 1 : student.shape[1]]
            padding = None if teacher.padding_mask is None else teacher.padding_mask[:, 1:]
            tokens = losses.masked_tokens(student[:, 1:], teacher.tokens[:, 1:], masked, padding)
            part = f"{name}:{key}" if joint else name
            outputs.update(zip((f"{part} queries", f"{part} keys", f"{part} targets"), tokens, strict=True))
        return outputs

    def _denoising(
        self, name: str, modalities: list[str], outputs: Outputs, batch: Batch, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        options.pop("teacher")
        everyone = options.pop("keys") == "global"
        found = {}
        for part in [f"{name}:{key}" for key in modalities] if len(modalities) > 1 else [name]:
            queries, keys, targets = (outputs[f"{part} {what}"] for what in ("queries", "keys", "targets"))
            count = None
            if everyone:
                keys, first = parallel.gather_ragged(keys)
                targets = targets + first
                count = sum(parallel.gather_objects(len(queries))) / parallel.world_size() or 1
            found[part] = losses.denoising(queries, keys, targets, count=count, **options)
        return found

    def _imitate(self, name: str, modalities: list[str], passes: Passes, options: Mapping[str, Any]) -> Outputs:
        (key,) = modalities
        row = self.teachers[name]["row"]
        # Items the teacher never saw (two clips mixed, say) take no part.
        known = [(i, row[item]) for i, item in enumerate(self._names(name, passes.batch)) if item in row]
        items, rows = torch.tensor(known, dtype=torch.int64).reshape(-1, 2).unbind(1)
        cls = passes.unimodal(key).cls
        return {
            f"{name} student": self.teacher_heads[name](cls[items.to(cls.device)]),
            f"{name} teacher": self.teachers[name]["features"][rows].to(cls.device),
        }

    def _names(self, name: str, batch: Batch) -> list[str]:
        """What the teacher's table calls the items: a sample's key, or its caption as drawn."""
        return batch[self.terms[name]["by"]]

    def _distillation(
        self, name: str, modalities: list[str], outputs: Outputs, batch: Batch, options: dict[str, Any]
    ) -> dict[str, Tensor]:
        student, teacher = outputs[f"{name} student"], outputs[f"{name} teacher"]
        keys, _ = parallel.gather_ragged(teacher)
        count = max(len(keys), 1) / parallel.world_size()
        return {name: losses.distillation(student, teacher, options["scale"], keys, count)}


def _join(parts: list[Outputs]) -> Outputs:
    """Outputs of the parts of a batch, one after another; targets count on through the keys of all parts."""
    if len(parts) == 1:
        return parts[0]
    outputs: Outputs = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if name.endswith(" targets"):
            counts = [len(part[name.removesuffix("targets") + "keys"]) for part in parts]
            values = [value + sum(counts[:i]) for i, value in enumerate(values)]
        outputs[name] = torch.cat(values)
    return outputs
