"""Terms of an objective for generative models, one per module; asking.py applies a task to a batch."""
