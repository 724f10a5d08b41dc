"""Training: recipe.py (options), run.py (made of a recipe), loop.py (its steps), objective.py (its losses)."""
