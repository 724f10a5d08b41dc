"""Cross-field validation of a recipe: its pairs, model, objective and masks must fit together.

`make_config` calls it, before any data is read. What a section can tell by itself is checked where it is defined, what
a term of the objective needs in its own file.
"""

from typing import get_args

from onepeace.config import Config
from onepeace.config.reader import nearest
from onepeace.data.augment import make_augments
from onepeace.data.masking import TEXT_UNITS, Unit
from onepeace.errors import UserError, need
from onepeace.processors import PROCESSORS
from onepeace.train.recipe import Recipe
from onepeace.train.terms.known import TERMS


def check(recipe: Recipe, config: Config) -> None:
    """UserError in one line for whatever would break later, or have no effect."""
    if recipe.lora is not None:
        need("peft", "lora")
    if unknown := [key for key in recipe.processors if key not in PROCESSORS]:
        raise UserError(f"processors.{unknown[0]}: no such modality; there are {', '.join(PROCESSORS)}")
    pairs = recipe.data.modalities
    for name, pair in pairs.items():
        if unknown := [key for key in pair if key not in config.model.adapters]:
            there = nearest(unknown[0], config.model.adapters)
            raise UserError(f"data.train: {name} has {unknown[0]!r}, the model does not; {there}")
    sections = ("token_dropout", "augment", "templates", "stem_views")
    by_modality = {"mask": recipe.mask, **{f"data.{name}": getattr(recipe.data, name) for name in sections}}
    for place, options in by_modality.items():
        if unused := [key for key in options if not any(key in pair for pair in pairs.values())]:
            raise UserError(f"{place}.{unused[0]}: no pair of data.train has {unused[0]}; there are {', '.join(pairs)}")
    for key, rates in recipe.mask.items():
        fitting = [unit for unit in get_args(Unit) if (unit in TEXT_UNITS) == (key == "text")]
        if rates.unit not in fitting:
            raise UserError(f"mask.{key}.unit {rates.unit!r} is not for {key}; known: {', '.join(fitting)}")
    fed = {name for options in recipe.terms for name in recipe.fed(options)}
    if idle := [name for name in pairs if name not in fed]:
        raise UserError(f"data.train: no term of the objective reads {idle[0]}; add one, or take its sources out")
    mixing = [key for key, augment in make_augments(recipe.data.augment).items() if augment.mixes_batch]
    for options in recipe.terms:
        term = TERMS[options.term]
        if mixing and not term.takes_mixed and any(mixing[0] in keys for keys in recipe.fed(options).values()):
            raise UserError(
                f"data.augment.{mixing[0]} has mixup or cutmix, and {options.where} cannot read mixed items; set both "
                "to 0"
            )
        term.check(options, recipe, config)
