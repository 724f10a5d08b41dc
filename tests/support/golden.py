"""The small files in tests/golden: what the original or another library computed."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"


def golden_json(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def golden_tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(str(GOLDEN / name))
