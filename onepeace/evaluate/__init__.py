"""Measures a model on held-out data with the field's protocols.

Read in this order: metrics.py (numbers from scores), rerank.py (other scores to rank by), retrieval.py, zero_shot.py,
same_class.py (scores from an embedder), benchmarks.py (shard sets named in a recipe, and the table of results).
"""
