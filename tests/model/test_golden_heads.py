"""Classification heads, their losses and gradients, and the vision branch equal the original's."""

import pytest
import torch
from support.golden_cases import LOSS, TOKENS, assert_gradients_match, assert_near, case, golden_model, head_passes

from onepeace.losses.box import box
from onepeace.losses.classification import classification, multilabel
from onepeace.losses.hinge import hinge


def summed(loss, **options):
    """The original's sum over items of our mean."""
    return lambda logits, target: len(target) * loss(logits, target, **options)


def choice(logits, target):
    """Four answers to each question; the original adds the right one's own margin of 1."""
    return summed(hinge)(logits.view(-1, 4), target) + len(target)


TASKS = {
    "classify_audio": ({"num_classes": 7, "on": "audio"}, summed(classification)),
    "classify_audio_multilabel": ({"num_classes": 7, "on": "audio"}, summed(multilabel)),
    "classify_image": ({"num_classes": 7, "on": "image"}, summed(classification, label_smoothing=0.1)),
    "vqa": ({"num_classes": 11, "on": "text", "pooler": True}, summed(multilabel)),
    "nlvr2": ({"num_classes": 2, "on": "text", "inputs": 2}, summed(classification)),
    "grounding": ({"num_classes": 4, "on": "image"}, box),
    "grounding_text_features": ({"num_classes": 4, "on": "text"}, box),
    "avqa": ({"num_classes": 1, "on": "text"}, choice),
}


def run(task):
    """The model, its logits and its loss, backward done."""
    found = case(task)
    passes, (head, loss_of) = head_passes(task), TASKS[task]
    types = {"text": {"num_types": 1}, "image": {"num_types": 2}} if len(passes) > 1 else {}
    model = golden_model(
        " ".join(passes[0]), bias_per_block=True, logit_scale=False, options=types, extra=found.weights,
        heads={"classifier": {"kind": "classifier", **head}},
    )  # fmt: skip
    logits = model.predict(*passes)
    loss = loss_of(logits, found.inputs["target"])
    loss.backward()
    return model, logits.detach(), loss


@pytest.mark.parametrize("task", TASKS)
def test_head_matches_golden(task):
    found = case(task)
    model, logits, loss = run(task)
    assert_near(logits, found.outputs["logits"], TOKENS)
    assert_near(loss.reshape(1), found.outputs["loss"], LOSS)
    assert_gradients_match(model, found.grads, found.info["grad_norm"])


@pytest.mark.parametrize("task", TASKS)
def test_every_head_gradient_matches_golden(shared, task):
    found = case(task, shared / "golden")
    model, _, _ = run(task)
    assert_gradients_match(model, found.grads, found.info["grad_norm"])


@torch.no_grad()
@pytest.mark.parametrize("size", [64, 96])
def test_vision_branch_matches_golden(size):
    """Mean of the patches, no final norm of the encoder; the bias table grows with the picture."""
    folder = case("vision_classify")
    found, pixels = folder.outputs, folder.inputs[f"image_{size}"].float()
    head = {"kind": "classifier", "on": "image", "num_classes": 9, "pool": "mean", "hidden_ratio": 0}
    options = {"image": {"bias_grid": size // 16}}
    model = golden_model(
        "image", final_norm=False, logit_scale=False, heads={"classifier": head}, options=options, extra=folder.weights
    ).eval()
    assert_near(model.features({"image": {"pixels": pixels}})["image"], found[f"features_{size}"], TOKENS)
    assert_near(model.predict({"image": {"pixels": pixels}}), found[f"logits_{size}"], TOKENS)
