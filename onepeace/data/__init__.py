"""Data loading, from shards to the batches of a training step; independent of the model.

A shard is a tar that is whole (shard.py); a source (source.py) has the shards of a pattern and lists their samples.
order.py and reader.py say which of them a process has in a step. A sample (sample.py) is parsed when it is drawn;
builder.py decodes it with augmentation (augment.py) and assembles batches (batch.py), with masks (masking.py),
and steps.py builds them ahead and keeps account of what is lost. write.py writes shards.
"""
