"""Data loading, from shards to the batches of a training step; independent of the model.

A shard is indexed (index.py), opened (shard.py) and, if it is compressed or elsewhere, copied (shard_cache.py). Sources
(shards.py) list their samples; order.py, lane.py and reader.py say which of them a process has in a step. A sample is
parsed (parsing.py) and decoded (decoder.py) when it is drawn, and builder.py assembles batches, with masks (masking.py)
and augmentation (augment.py). steps.py builds them ahead, and report.py is what processes tell each other.
"""
