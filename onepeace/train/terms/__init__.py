"""Registry of terms by name; ``TERMS["mine"] = Mine`` adds one."""

from collections.abc import Mapping, Sequence
from typing import Any

from onepeace.config import build
from onepeace.config.reader import nearest
from onepeace.errors import UserError
from onepeace.extensions import HINT, Table
from onepeace.train.term import Term, TermOptions
from onepeace.train.terms.contrastive import Contrastive
from onepeace.train.terms.denoising import Denoising
from onepeace.train.terms.distillation import Distillation
from onepeace.train.terms.heads import Answers, Box, Choice, Classification, MultiLabel
from onepeace.train.terms.sigmoid import Sigmoid

TERMS: Table[type[Term[Any]]] = Table(
    {
        "answers": Answers,
        "box": Box,
        "captioning": "onepeace.generative.terms.Captioning",
        "choice": Choice,
        "classification": Classification,
        "contrastive": Contrastive,
        "denoising": Denoising,
        "distillation": Distillation,
        "generation": "onepeace.generative.terms.Generation",
        "multi_label": MultiLabel,
        "sigmoid": Sigmoid,
    }
)


def read_terms(content: Sequence[Mapping[str, Any] | TermOptions]) -> tuple[TermOptions, ...]:
    """Options of the terms in a recipe's ``objective``; UserError for an unknown term or wrong options."""
    terms: dict[str, TermOptions] = {}
    for index, entry in enumerate(content):
        options = entry if isinstance(entry, TermOptions) else _read(entry, index)
        if options.name in terms:
            raise UserError(f"objective has two terms named {options.name}; give one of them another name")
        terms[options.name] = options
    return tuple(terms.values())


def _read(entry: Mapping[str, Any], index: int) -> TermOptions:
    where = f"objective.{index}"
    if not isinstance(entry, Mapping) or "term" not in entry:
        raise UserError(f"{where} is {entry!r}; write it as {{term: contrastive}}")
    key = str(entry["term"])
    if key not in TERMS:
        raise UserError(f"{where}.term {key!r} is not known; {nearest(key, TERMS)}; {HINT}")
    return build(TERMS[key].Options, entry, f"objective.{entry.get('name') or key}")
