"""What the parts of a recipe ask of each other: pairs, model, objective and masks.

`make_config` calls it, before any data is read. What a part can tell by itself is in recipe.py. Next file: build.py.
"""

from itertools import combinations

from onepeace.config import Config
from onepeace.data.masking import TEXT_UNITS, UNITS
from onepeace.errors import UserError
from onepeace.train.recipe import Distillation, Recipe, read_term, split_term
from onepeace.train.teachers import TEACHERS


def check(recipe: Recipe, config: Config) -> None:
    """UserError in one line for whatever would break later, or have no effect."""
    pairs = {source.name: source.pair for source in recipe.data.train}
    for name, pair in pairs.items():
        if unknown := [key for key in pair if key not in config.model.adapters]:
            raise UserError(
                f"data.train: the pair {name} has {unknown[0]!r}, the model does not; it has "
                f"{', '.join(config.model.adapters)}"
            )
    by_modality = {f"data.{name}": getattr(recipe.data, name) for name in ("token_dropout", "augment", "templates")}
    for place, options in {"mask": recipe.mask, **by_modality}.items():
        if unused := [key for key in options if not any(key in pair for pair in pairs.values())]:
            raise UserError(f"{place}.{unused[0]}: no pair of data.train has {unused[0]}; there are {', '.join(pairs)}")
    for key, rates in recipe.mask.items():
        fitting = [unit for unit in UNITS if (unit in TEXT_UNITS) == (key == "text")]
        if rates.unit not in fitting:
            raise UserError(f"mask.{key}.unit {rates.unit!r} is not for {key}; known: {', '.join(fitting)}")
    fed = {name: _fed(name, pairs) for name in recipe.objective}
    if idle := [name for name in pairs if not any(name in own for own in fed.values())]:
        raise UserError(
            f"data.train: no term of the objective is of the pair {idle[0]}; add one, or take its sources out"
        )
    _check_contrastive(recipe, config, fed)
    _check_denoising(recipe, fed)
    _check_distillation(recipe)


def _fed(name: str, pairs: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The pairs whose batches a term is computed of."""
    kind, listed = split_term(name)
    if kind == "contrastive" and len(listed) == 1:
        raise UserError(f"objective.{name} compares modalities and has one; write it as contrastive/{listed[0]}+OTHER")
    if kind == "distillation" and len(listed) != 1:
        raise UserError(f"objective.{name} has {len(listed)} modalities; give it one, as distillation/image")
    fewest = 2 if kind == "contrastive" else 1
    fed = {pair: keys for pair, keys in pairs.items() if set(listed) <= set(keys) and len(keys) >= fewest}
    if not fed:
        raise UserError(
            f"objective.{name} is not a term that a pair of data.train can feed; there are {', '.join(pairs)}"
        )
    return fed


def _check_contrastive(recipe: Recipe, config: Config, fed: dict[str, dict[str, tuple[str, ...]]]) -> None:
    first: dict[frozenset[str], str] = {}
    for name in recipe.objective:
        kind, listed = split_term(name)
        if kind != "contrastive":
            continue
        for pair in fed[name].values():
            if bare := [key for key in listed or pair if key not in config.model.projections]:
                raise UserError(f"objective.{name} needs a projection of {bare[0]}; add it to model.projections")
            for two in combinations(listed or pair, 2):
                other = first.setdefault(frozenset(two), name)
                if other != name:  # both would be logged by the same name
                    raise UserError(f"objective has {other} and {name}, both of {'+'.join(two)}; take one of them out")


def _check_denoising(recipe: Recipe, fed: dict[str, dict[str, tuple[str, ...]]]) -> None:
    for name in recipe.objective:
        kind, listed = split_term(name)
        if kind != "denoising":
            continue
        for pair in fed[name].values():
            keys = listed or list(pair)
            # A joint pass hides tokens of everything in it.
            rate, hidden = ("joint", pair) if len(keys) > 1 else ("unimodal", tuple(keys))
            for key in hidden:
                if getattr(recipe.mask.get(key), rate, None) is None:
                    raise UserError(f"objective.{name} needs mask.{key}.{rate}, the share of the tokens that is hidden")


def _check_distillation(recipe: Recipe) -> None:
    for name, options in recipe.objective.items():
        term = read_term(name, options)
        if not isinstance(term, Distillation):
            continue
        if term.teacher not in TEACHERS:
            raise UserError(f"objective.{name}: teacher {term.teacher!r} is not known; known: {', '.join(TEACHERS)}")
        if split_term(name)[1] == ["text"] and term.by != "captions":
            raise UserError(f"objective.{name}: a teacher of text reads captions; set by: captions")
