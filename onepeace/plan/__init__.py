"""Memory, FLOPs, traffic and time of a training step, from its recipe alone, without data, weights or a GPU."""
