"""Python files that recipes import, as modules."""

import sys
from pathlib import Path

from onepeace.extensions import import_extension

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def recipe_file(name, folder="finetune"):
    """The module of recipes/FOLDER/NAME.py, which then has its entries in the registries."""
    import_extension(str(RECIPES / folder / f"{name}.py"))
    return sys.modules[name]
