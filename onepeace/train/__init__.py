"""Training: recipe.py says what, objective.py what is computed, loop.py in which order, checkpoint.py what survives."""
