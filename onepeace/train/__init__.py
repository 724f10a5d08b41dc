"""Training: recipe.py (options), build.py (what a step needs), run.py (state of a run), loop.py (the steps)."""
