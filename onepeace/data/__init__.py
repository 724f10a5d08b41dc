"""From shards to the batches of a training step.

shard_cache.py fetches a shard and finds its samples, shards.py says what a sample is; reader.py orders samples,
steps.py shares them out, builder.py assembles batches. masking.py draws the masks, augment.py varies the media. Nothing
here knows the model.
"""
