"""The two stages of pretraining whose golden numbers are in tests/golden/model."""

from typing import NamedTuple

import torch
from support.golden_cases import Case, case, golden_model
from support.training import terms

from onepeace.data.batch import Batch, make_mask
from onepeace.model import OnePeace
from onepeace.train.objective import Objective, Passes

DENOISING = {"scale": 2.5, "label_smoothing": 0.1}


class Stage(NamedTuple):
    joint: str
    """The original's prefix of the joint pass."""
    terms: dict[str, dict]
    loss_names: dict[str, str]
    """Our name of each of the original's losses."""


STAGES = {
    "image_text": Stage(
        joint="vl",
        terms={
            "contrastive": {"weight": 1.0, "detach_keys": True},
            "denoising/text": {"weight": 0.5, **DENOISING},
            "denoising/image": {"weight": 1.0, **DENOISING},
            "denoising/text+image": {"weight": 0.5, **DENOISING},
        },
        loss_names={
            "itc_loss": "contrastive/text+image",
            "dcl_text_loss": "denoising/text",
            "dcl_image_loss": "denoising/image",
            "dcl_vl_text_loss": "denoising/text+image:text",
            "dcl_vl_image_loss": "denoising/text+image:image",
        },
    ),
    "audio_text": Stage(
        joint="al",
        terms={
            "contrastive": {"weight": 1.0, "detach_keys": True},
            "denoising/audio": {"weight": 1.0, "teacher": "joint", **DENOISING},
            "denoising/text+audio": {"weight": 0.5, **DENOISING},
        },
        loss_names={
            "atc_loss": "contrastive/text+audio",
            "dcl_audio_loss": "denoising/audio",
            "dcl_al_text_loss": "denoising/text+audio:text",
            "dcl_al_audio_loss": "denoising/text+audio:audio",
        },
    ),
}


class Step(NamedTuple):
    """Our model with the original's weights, the batch with its masks, and the original's numbers."""

    model: OnePeace
    batch: Batch
    golden: Case

    def losses(self, stage: str) -> dict[str, torch.Tensor]:
        objective = Objective(self.model, terms(STAGES[stage].terms))
        return objective(self.batch)

    def gradients(self) -> dict[str, torch.Tensor]:
        """By our names, of the parameters that have one."""
        gradients = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad
        return gradients

    def predictions(self, stage: str) -> dict[str, torch.Tensor]:
        """By the original's names."""
        passes = Passes(self.model, self.batch)
        predictions = {}
        for key in passes.keys:
            if "unimodal" in self.batch.masks[key]:
                predictions[f"student_{key}"] = passes.unimodal_masked(key)
        for key, tokens in passes.joint_masked.items():
            predictions[f"student_{STAGES[stage].joint}_{key}"] = tokens
        return predictions


def golden_step(stage: str, *, padded: bool = False) -> Step:
    golden = case(f"pretrain_{stage}_padded" if padded else f"pretrain_{stage}")
    inputs = golden.batch()
    model = golden_model(" ".join(inputs), decoder=True, projections=True)
    masks: dict[str, dict] = {}
    for key in inputs:
        masks[key] = {}
        lengths = model.adapters[key].token_lengths(inputs[key]).numpy()
        for pass_name, prefix in (("unimodal", key), ("joint", f"{STAGES[stage].joint}_{key}")):
            if f"{prefix}_preserve_ids" in golden.inputs:
                mask = make_mask(golden.inputs[f"{prefix}_mask_indices"][:, 1:], lengths)
                assert torch.equal(mask.keep, golden.inputs[f"{prefix}_preserve_ids"])
                masks[key][pass_name] = mask
    return Step(model, Batch(inputs, masks=masks), golden)
