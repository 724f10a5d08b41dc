"""Models on disk: their architectures, our model folders, and the released checkpoints, downloaded and converted."""
