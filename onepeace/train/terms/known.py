"""Registry of terms by name; ``TERMS["mine"] = Mine`` adds one."""

from collections.abc import Mapping, Sequence
from typing import Any

from onepeace.config import build
from onepeace.config.reader import nearest
from onepeace.errors import UserError
from onepeace.generative.terms.captioning import Captioning
from onepeace.generative.terms.generation import Generation
from onepeace.generative.terms.self_critical import SelfCritical
from onepeace.train.term import Term, TermOptions
from onepeace.train.terms.contrastive import Contrastive
from onepeace.train.terms.denoising import Denoising
from onepeace.train.terms.dense import Detection, Events, Segmentation
from onepeace.train.terms.distillation import Distillation
from onepeace.train.terms.heads import Answers, Box, Choice, Classification, MultiLabel
from onepeace.train.terms.names import Names

TERMS: dict[str, type[Term[Any]]] = {
    "answers": Answers,
    "box": Box,
    "captioning": Captioning,
    "choice": Choice,
    "classification": Classification,
    "contrastive": Contrastive,
    "denoising": Denoising,
    "detection": Detection,
    "distillation": Distillation,
    "events": Events,
    "generation": Generation,
    "multi_label": MultiLabel,
    "names": Names,
    "segmentation": Segmentation,
    "self_critical": SelfCritical,
}


def read_terms(content: Sequence[Mapping[str, Any] | TermOptions]) -> tuple[TermOptions, ...]:
    """Options of the terms in a recipe's ``objective``; UserError for an unknown term or wrong options."""
    terms = [each if isinstance(each, TermOptions) else _read(each, place) for place, each in enumerate(content)]
    names = [options.name for options in terms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"objective has two terms of the name {twice[0]}; give one of them another name")
    return tuple(terms)


def _read(content: Mapping[str, Any], place: int) -> TermOptions:
    where = f"objective.{place}"
    if not isinstance(content, Mapping) or "term" not in content:
        raise UserError(f"{where} is {content!r}; write it as {{term: contrastive}}")
    kind = content["term"]
    if kind not in TERMS:
        raise UserError(f"{where}.term {kind!r} is not known; {nearest(kind, TERMS)}")
    return build(TERMS[kind].Options, content, f"objective.{content.get('name') or kind}")
