"""From shards to the batches of a training step: shards.py and streams.py read, steps.py orders, builder.py assembles.

masking.py draws the masks, augment.py varies the media. Nothing here knows the model.
"""
