"""Python files that recipes import, as modules."""

import sys
from pathlib import Path

from onepeace.extensions import import_extension

FINETUNE = Path(__file__).resolve().parents[2] / "recipes" / "finetune"


def recipe_file(name):
    """The module of recipes/finetune/NAME.py, which then has its entries in the registries."""
    import_extension(str(FINETUNE / f"{name}.py"))
    return sys.modules[name]
