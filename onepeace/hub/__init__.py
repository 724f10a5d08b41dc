"""Weights on disk: our model folders, the released checkpoints, and where they are downloaded from.

Read `keys` (names) first, then `weights` (our format), `unpickle` and `convert` (theirs), `resolve` (from a name).
"""
