"""Evaluation on held-out shards: run.py reads a recipe and runs its protocols, report.py formats their figures."""
