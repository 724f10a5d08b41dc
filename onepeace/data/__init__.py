"""Data loading, from shards to the batches of a training step; independent of the model.

shard_cache.py fetches and indexes shards, shards.py parses their samples, reader.py orders the samples, steps.py
assigns them to steps and processes, builder.py assembles batches. masking.py draws masks, augment.py augments media.
"""
