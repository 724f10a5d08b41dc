"""The terms of an objective, one file each. ``TERMS["mine"] = Mine`` adds one from outside.

Names in a recipe's ``objective`` are ``kind/modalities``, as "denoising/image+text"; a label tells two terms of one
kind and modality apart: "distillation:captions/image".
"""

from collections.abc import Mapping
from typing import Any

from onepeace.config import build
from onepeace.errors import UserError
from onepeace.train.terms.box import Box
from onepeace.train.terms.captioning import Captioning
from onepeace.train.terms.choice import Choice
from onepeace.train.terms.classification import Classification
from onepeace.train.terms.contrastive import Contrastive
from onepeace.train.terms.denoising import Denoising
from onepeace.train.terms.detection import Detection
from onepeace.train.terms.distillation import Distillation
from onepeace.train.terms.events import Events
from onepeace.train.terms.generation import Generation
from onepeace.train.terms.multi_label import Answers, MultiLabel
from onepeace.train.terms.names import Names
from onepeace.train.terms.regression import Regression
from onepeace.train.terms.relations import Relations
from onepeace.train.terms.segmentation import Segmentation
from onepeace.train.terms.self_critical import SelfCritical
from onepeace.train.terms.term import Term, TermName, TermOptions

TERMS: dict[str, type[Term]] = {
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
    "regression": Regression,
    "relations": Relations,
    "segmentation": Segmentation,
    "self_critical": SelfCritical,
}


def read_term(text: str, options: Mapping[str, Any]) -> tuple[TermName, TermOptions, type[Term]]:
    """The name, the options and the class of a term; UserError for one that does not exist or wrong options."""
    name = TermName.parse(text)
    if name.kind not in TERMS:
        raise UserError(f"objective.{text} is not a term; known: {', '.join(TERMS)}")
    term = TERMS[name.kind]
    return name, build(term.Options, options, f"objective.{text}"), term


__all__ = ["TERMS", "Term", "TermName", "TermOptions", "read_term"]
