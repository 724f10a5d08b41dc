"""Training: recipe.py (options), setup.py (what a run needs), trainer.py (a run), step.py (a step), terms/ (losses)."""
