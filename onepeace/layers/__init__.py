"""Parts of Transformer blocks, shared by all architectures: torch only. Read attention.py, then feedforward.py."""
