"""Parameters by part of a model, told from their names."""

import re

PARTS = {
    r".*\.lora_[AB]\.": "LoRA adapters",
    r"adapters\.(\w+)\.": "adapter {}",
    r"encoder\.stem\.": "stem of pictures",
    r"decoder\.token_embed\.": "vocabulary",
    r"blocks\.\d+\.attn\.": "attention",
    r"blocks\.\d+\.ffn\.(\w+)\.": "FFN {}",
    r"blocks\.\d+\.clips\.": "adapters between frames",
    r"blocks\.\d+\.(?:norm|ls)|norms\.": "norms and gains",
    r"heads\.\w+\.(?:weight|bias)$|logit_scale": "projections",
    r"heads\.(\w+)\.": "head {}",
}
"""Pattern of names -> part; other names belong to the part that they begin with."""


def part_of(name: str) -> str:
    """The part of a model that a parameter of this name belongs to."""
    for pattern, part in PARTS.items():
        if match := re.match(pattern, name):
            return part.format(*match.groups())
    return name.partition(".")[0]
