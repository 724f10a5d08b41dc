"""Memory and FLOPs of a training step, from its recipe alone, without data, weights or a GPU."""
