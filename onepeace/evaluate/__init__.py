"""Measures a model on held-out data with the field's protocols.

Read in this order: metrics.py (numbers from scores), retrieval.py and zero_shot.py (scores from an embedder),
benchmarks.py (shard sets named in a recipe, and the table of results).
"""
