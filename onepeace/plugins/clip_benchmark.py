"""Loader for CLIP_benchmark (pip install "onepeace[eval]"), which evaluates models of images and texts.

Its command line has no plug-ins; this module registers the model type "onepeace" and runs it:

    python -m onepeace.plugins.clip_benchmark eval --model_type onepeace --model tiny --pretrained - \\
        --dataset wds/cifar10 --dataset_root cifar10 --no_amp

--model is as for `onepeace.load`; --pretrained is only used in the name of the output file. From Python, call
`register()` before clip_benchmark.cli parses its arguments, or give `load` the arguments of a CLIP_benchmark loader.
--no_amp computes in float32, as `onepeace evaluate` does. Nothing in a data set is executed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from onepeace.errors import need
from onepeace.plugins.open_clip import ClipModel, Tokenizer, Transform, create_model_and_transforms, get_tokenizer

MODEL_TYPE = "onepeace"


def load(
    model_name: str = "tiny", pretrained: str = "", cache_dir: str | None = None, device: str | torch.device = "cpu"
) -> tuple[ClipModel, Transform, Tokenizer]:
    """Load (model, transform, tokenizer), as CLIP_benchmark's loaders do."""
    model, _, transform = create_model_and_transforms(model_name, device=device, cache_dir=cache_dir)
    return model, transform, get_tokenizer(model_name, cache_dir=cache_dir)


def register() -> None:
    """Add "onepeace" to CLIP_benchmark's model types."""
    models = need("clip_benchmark.models", "eval")
    models.TYPE2FUNC[MODEL_TYPE] = load
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)
    # The library decodes whatever lies in a shard; what would be unpickled stays bytes.
    decoders: Any = need("webdataset.autodecode", "eval").decoders
    decoders.update(dict.fromkeys(("pkl", "pickle", "pyd", "pth"), bytes))
    # Version 1.6.2 converts an array of one element to a float, which numpy 2.4 refuses.
    metrics: Any = need("clip_benchmark.metrics.zeroshot_classification", "eval")
    metrics.accuracy = _accuracy


def _accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[float]:
    """Top-k accuracies of logits (N, C) for class numbers (N,), replacing CLIP_benchmark's function."""
    correct = output.topk(max(topk), 1).indices == target.view(-1, 1)
    accuracies = []
    for k in topk:
        is_found = correct[:, :k].any(dim=1)
        accuracies.append(is_found.double().mean().item())
    return accuracies


if __name__ == "__main__":
    register()
    need("clip_benchmark.cli", "eval").main()
