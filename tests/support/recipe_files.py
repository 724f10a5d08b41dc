"""The recipes that train, and the Python files that they import, as modules."""

import sys
from pathlib import Path

from onepeace.config import read_yaml
from onepeace.extensions import import_extension

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def recipe_file(name, folder="finetune"):
    """The module of recipes/FOLDER/NAME.py, which then has its entries in the registries."""
    import_extension(str(RECIPES / folder / f"{name}.py"))
    return sys.modules[name]


def training_recipes():
    """Files of all recipes that train by their name, such as pretrain/tiny."""
    paths = {}
    for path in sorted(RECIPES.rglob("*.yaml")):
        content = read_yaml(path)
        base = read_yaml(path.parent / content["base"]) if "base" in content else {}
        is_study = "variants" in content
        if "objective" in {**base, **content} and not is_study:
            paths[path.relative_to(RECIPES).with_suffix("").as_posix()] = path
    return paths
