"""Training: recipe.py (options), setup.py (from a recipe to a run), loop.py (its steps), objective.py (its losses)."""
