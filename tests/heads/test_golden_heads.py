"""Classification heads, their losses and gradients, and the vision branch equal the original's."""

import pytest
import torch
from support.golden_cases import LOSS, TOKENS, assert_gradients_match, assert_near, case, golden_model, head_batch

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


def backward(task):
    """The model, its logits and its loss, whose gradients the model has then."""
    batch = head_batch(task)
    head, loss_of = TASKS[task]
    types = {}
    if "inputs" in head:
        types = {"text": {"num_types": 1}, "image": {"num_types": 2}}
    model = golden_model(
        " ".join(batch),
        bias_per_block=True,
        logit_scale=False,
        options=types,
        extra=case(task).weights,
        heads={"classifier": {"kind": "classifier", **head}},
    )
    logits = model.predict(batch)
    loss = loss_of(logits, case(task).inputs["target"])
    loss.backward()
    return model, logits.detach(), loss.detach()


@pytest.mark.parametrize("task", TASKS)
def test_head_matches_golden(task):
    model, logits, loss = backward(task)
    golden = case(task)
    assert_near(logits, golden.outputs["logits"], TOKENS)
    assert_near(loss.reshape(1), golden.outputs["loss"], LOSS)
    assert_gradients_match(model, golden.grads, golden.info["grad_norm"])


@pytest.mark.parametrize("task", TASKS)
def test_every_head_gradient_matches_golden(shared, task):
    model, _, _ = backward(task)
    golden = case(task, shared / "golden")
    assert_gradients_match(model, golden.grads, golden.info["grad_norm"])


@torch.no_grad()
def test_vision_branch_of_larger_pictures_matches_golden():
    """Mean of the patches, no final norm of the encoder; the bias table grows with the picture."""
    golden = case("vision_classify")
    head = {"kind": "classifier", "on": "image", "num_classes": 9, "pool": "mean", "hidden_ratio": 0}
    model = golden_model(
        "image",
        final_norm=False,
        logit_scale=False,
        heads={"classifier": head},
        options={"image": {"bias_grid": 6}},
        extra=golden.weights,
    ).eval()
    batch = {"image": {"pixels": golden.inputs["image_96"].float()}}
    assert_near(model.features(batch)["image"], golden.outputs["features_96"], TOKENS)
    assert_near(model.predict(batch), golden.outputs["logits_96"], TOKENS)
