"""Training: recipe.py (options), run.py (state of a run), loop.py (training loop), objective.py (losses)."""
