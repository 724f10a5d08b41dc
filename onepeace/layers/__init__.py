"""Parts of Transformer blocks, shared by all architectures: torch only."""
