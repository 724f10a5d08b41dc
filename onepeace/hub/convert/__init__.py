"""Conversion of checkpoints to model folders: no code in them is run, and every tensor must be known."""
