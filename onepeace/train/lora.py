"""Training of low-rank adapters (LoRA, arXiv 2106.09685) beside frozen layers, by peft.

The adapters lie in the model's own modules, under peft's names: ``blocks.0.attn.q.base_layer.weight`` is the frozen
weight, ``blocks.0.attn.q.lora_A.default.weight`` and ``lora_B`` are what trains. Checkpoints hold all of them; the
model that is measured and written has them merged, and the names it always had.
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
from onepeace.train.recipe import LoraConfig, Recipe

ADAPTERS = "*.lora_[AB].*"
"""Pattern of the parameters that are added."""


def choose_trained(model: nn.Module, recipe: Recipe) -> None:
    """Add the recipe's adapters to a model, and freeze what does not train.

    With adapters all else is frozen, but for ``freeze: {except: patterns}``.

    Raises:
        UserError: a pattern that matches nothing, or nothing left to train; peft is not installed.
    """
    patterns = recipe.freeze
    if recipe.lora is not None:
        need("peft", "lora").inject_adapter_in_model(_peft_config(model, recipe.lora), model)
        given = patterns if isinstance(patterns, Mapping) else {}
        patterns = {**given, "except": (ADAPTERS, *given.get("except", ()))}
    if patterns:
        freeze(model, patterns)


def trained_module(
    config: Config, weights: Mapping[str, Tensor], lora: LoraConfig | None, adapter: Path | None = None
) -> Trained:
    """A module of a run's weights, in evaluation mode, with the adapters merged.

    Args:
        config: of the model without adapters.
        weights: by parameter name of the model that trains; adapted ones change in place.
        adapter: folder for the adapters alone, as peft's PeftModel.from_pretrained reads them.
    """
    with torch.device("meta"):
        model = build_module(config)
        adapted = need("peft", "lora").get_peft_model(model, _peft_config(model, lora)) if lora else None
    model.load_state_dict(weights, assign=True)
    if adapted is None:
        return model.eval()
    if adapter is not None:
        adapted.save_pretrained(str(adapter))
        (adapter / "README.md").unlink()  # a form with nothing filled in
    return adapted.merge_and_unload().eval()


def _peft_config(model: nn.Module, lora: LoraConfig) -> Any:
    # What only inherits from nn.Linear does more than a product, as projections: an adapter would come behind that.
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    found = dict.fromkeys(name for one in lora.targets for name in matching(one, linear, "lora.targets"))
    return need("peft", "lora").LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # Of a list peft would take the endings of names: blocks.0 is one of decoder.blocks.0 too.
        target_modules="|".join(map(re.escape, found)),
    )
