"""From shards to the batches of a training step: shards.py reads, batches.py orders and assembles.

masking.py draws what is hidden, augment.py varies the media. Nothing here knows the model.
"""
