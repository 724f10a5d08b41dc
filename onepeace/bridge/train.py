"""Training of a bridge, by the Trainer of transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onepeace.errors import UserError, need

from .conversations import Conversation
from .model import Bridge

DEFAULTS = {"learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.03, "num_train_epochs": 1,
            "per_device_train_batch_size": 32, "save_strategy": "no", "report_to": "none"}  # fmt: skip
"""The first stage of LLaVA (arXiv 2310.03744), with a batch that one device holds."""


def fit(
    bridge: Bridge, conversations: Sequence[Conversation], folder: str | Path, *, lora: int = 0, **arguments: Any
) -> None:
    """Train the projector, and write the Llava folder.

    Args:
        lora: rank of adapters on all linear layers of the language model, merged at the end; 0 leaves it frozen.
        arguments: of transformers' TrainingArguments, in place of `DEFAULTS`.

    Raises:
        UserError: no conversations; accelerate or peft is not installed.
    """
    need("accelerate", "bridge")
    from transformers import Trainer, TrainingArguments

    if not conversations:
        raise UserError("there are no conversations to train on")
    llama = bridge.llava.requires_grad_(False).model
    llama.multi_modal_projector.requires_grad_(True)
    if lora:
        peft = need("peft", "bridge")
        config = peft.LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear")
        adapted = peft.get_peft_model(llama.language_model, config)
    options = TrainingArguments(output_dir=str(folder), remove_unused_columns=False, **{**DEFAULTS, **arguments})
    Trainer(bridge, options, train_dataset=conversations, data_collator=bridge.collate).train()
    if lora:
        llama.language_model = adapted.merge_and_unload()
    bridge.eval().save(folder)
