"""Every number of a recipe, and of every table that a recipe chooses from, has a range; values are of their kind."""

import dataclasses
import typing
from pathlib import Path

import pytest

from onepeace.config.reader import Range, build
from onepeace.data.augment import AUGMENTS, ImageAugment
from onepeace.datasets.layout import load_layout
from onepeace.errors import UserError
from onepeace.evaluate.protocols import PROTOCOLS
from onepeace.extensions import import_extension
from onepeace.generative.tasks import Task
from onepeace.heads import HEADS
from onepeace.hub.architectures import ARCHITECTURES, build_module
from onepeace.model.adapters import ADAPTERS, AdapterOptions
from onepeace.model.stems import AUDIO_STEMS, TEXT_STEMS
from onepeace.train.model_config import make_config
from onepeace.train.recipe import Recipe, read_recipe
from onepeace.train.sections import StartConfig
from onepeace.train.terms import TERMS

RECIPES = Path(__file__).parents[2] / "recipes"
OTHERS = {"dim", "num_heads", "num_tables"}
"""Numbers that the model gives to its adapters and stems, whose ranges are those of its own fields."""


def configured():
    """Every class whose fields or arguments are read from YAML, but those of processors, which check themselves."""
    for folder in ("finetune", "generative", "pretrain"):
        for path in RECIPES.glob(f"{folder}/*.py"):
            import_extension(str(path))
    yield from (Recipe, StartConfig, Task, AdapterOptions, *AUGMENTS.values(), *PROTOCOLS.values())
    yield from (*ADAPTERS.values(), *AUDIO_STEMS.values(), *TEXT_STEMS.values())
    yield from (entry.Options for entry in (*TERMS.values(), *HEADS.values()))
    yield from (architecture.config for architecture in ARCHITECTURES.values())
    yield from (
        type(load_layout(str(path))) for path in RECIPES.glob("layouts/*.py") if "layout = " in path.read_text()
    )


def bare_numbers(declared, name, seen):
    """Names of the numbers without a range in a declared type, and in the dataclasses in it."""
    if declared in (int, float):
        yield name
    elif dataclasses.is_dataclass(declared):
        if declared not in seen:
            seen.add(declared)
            for field in dataclasses.fields(declared):
                hint = typing.get_type_hints(declared, include_extras=True)[field.name]
                yield from bare_numbers(hint, f"{declared.__name__}.{field.name}", seen)
    elif not any(isinstance(part, Range) for part in typing.get_args(declared)):
        for part in typing.get_args(declared):
            yield from bare_numbers(part, name, seen)


def test_every_number_has_a_range():
    seen = set()
    bare = []
    for cls in configured():
        bare += bare_numbers(cls, cls.__name__, seen)
        if not dataclasses.is_dataclass(cls):
            for name, hint in typing.get_type_hints(cls.__init__, include_extras=True).items():
                bare += bare_numbers(hint, f"{cls.__name__}.{name}", seen)

    assert len(seen) > 60
    assert not {name for name in bare if name.rpartition(".")[2] not in OTHERS}


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("model.drop_path", 1.5, "from 0 to below 1"),
        ("model.drop_path", 1.0, "from 0 to below 1"),
        ("model.init_std", ".nan", "a finite number"),
        ("optim.lr", ".inf", "a finite number"),
        ("model.adapters.image.cls_dropout", -1, "from 0 to below 1"),
        ("model.adapters.image.cls_hiden", 5, "is not a field; did you mean model.adapters.image.cls_hidden"),
        ("model.adapters.audio.num_mels", 0, "1 or more"),
        ("model.adapters.audio.stem", "mell", "did you mean mel?"),
        ("model.adapters.audio", 5, "should be a mapping"),
        ("model.adapters.text", "null", "'text', the model does not"),
        ("model.heads", "null", "should be a mapping"),
        ("model.heads.pets", 5, "should be a mapping"),
        ("processors.image", 5, "should be a mapping"),
        ("data.augment.audio.gain_db", -3, "from 0 to 100"),
        ("data.augment.image.rand_augment", "[2, 99]", "from 0 to 30"),
        ("objective.0.term", "[]", "is not known"),
        ("objective.contrastive.label_smoothing", 5, "from 0 to below 1"),
    ],
)
def test_what_is_out_of_range_or_of_another_kind_is_one_line(field, value, told):
    with pytest.raises(UserError) as error:
        build_module(make_config(read_recipe(RECIPES / "pretrain" / "tiny.yaml", [f"{field}={value}"])))

    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_values_of_a_pair_have_their_own_ranges():
    assert build(ImageAugment, {"rand_augment": [2, 0]}, "x").rand_augment == (2, 0)  # as documented: 0 to 30
