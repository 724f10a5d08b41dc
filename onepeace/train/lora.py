"""Training of low-rank adapters (LoRA, arXiv 2106.09685) of frozen layers, with peft.

peft injects the adapters into the model's modules: ``blocks.0.attn.q.base_layer.weight`` is the frozen weight,
``blocks.0.attn.q.lora_A.default.weight`` and ``lora_B`` are trained. Checkpoints hold all of them; for evaluation and
in the written model, adapters are merged into the weights, under the original names.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.config import Config
from onepeace.errors import need
from onepeace.hub.architectures import build_module
from onepeace.model import Trained
from onepeace.train.optim import freeze, matching
from onepeace.train.recipe import Recipe
from onepeace.train.sections import LoraConfig

ADAPTERS = "*.lora_[AB].*"
"""Pattern of the added parameters."""


def add_lora_and_freeze(model: nn.Module, recipe: Recipe) -> None:
    """Add the recipe's adapters to a model and freeze parameters.

    With adapters all other parameters are frozen, except those of ``freeze: {except: patterns}``.

    Raises:
        UserError: a pattern matches nothing, nothing is left to train, or peft is not installed.
    """
    if recipe.lora is None:
        if recipe.freeze:
            freeze(model, recipe.freeze)
        return
    need("peft", "lora").inject_adapter_in_model(_peft_config(model, recipe.lora), model)
    exceptions: tuple[str, ...] = ()
    if isinstance(recipe.freeze, Mapping):
        exceptions = recipe.freeze.get("except", ())
    freeze(model, {"except": (ADAPTERS, *exceptions)})


def trained_module(
    config: Config, weights: Mapping[str, Tensor], lora: LoraConfig | None, lora_folder: Path | None = None
) -> Trained:
    """Module with the weights of a run, in evaluation mode, with the low-rank adapters merged.

    Args:
        config: configuration of the model without them.
        weights: weights by parameter name in training; adapted ones are changed in place.
        lora_folder: folder in which to save the low-rank adapters for peft's PeftModel.from_pretrained.
    """
    with torch.device("meta"):
        model = build_module(config)
    if lora is None:
        model.load_state_dict(weights, assign=True)
        return model.eval()
    with torch.device("meta"):
        adapted = need("peft", "lora").get_peft_model(model, _peft_config(model, lora))
    model.load_state_dict(weights, assign=True)
    if lora_folder is not None:
        adapted.save_pretrained(str(lora_folder))
        (lora_folder / "README.md").unlink()  # an empty template
    return adapted.merge_and_unload().eval()


def _peft_config(model: nn.Module, lora: LoraConfig) -> Any:
    # Subclasses of nn.Linear do more than a product, and the low-rank adapter would be added after all of it.
    linear_layers = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    targets: list[str] = []
    for pattern in lora.targets:
        targets += matching(pattern, linear_layers, "lora.targets")
    return need("peft", "lora").LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # A regular expression, as peft matches a list by suffix: blocks.0 would match decoder.blocks.0 too.
        target_modules="|".join(map(re.escape, dict.fromkeys(targets))),
    )
