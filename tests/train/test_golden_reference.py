"""support/reference.py reproduces the original, its defects too when asked; the package equals it without them.

So the numbers of padded batches, in which the original lets padding act, still check everything else.
"""

from collections import defaultdict

import pytest
import torch
from support.golden_cases import (
    FIELD,
    HOP,
    LOSS,
    TOKENS,
    UNIT,
    assert_gradients_match,
    assert_near,
    case,
    place,
    weights,
)
from support.golden_stages import STAGES, golden_step
from support.reference import Reference, denoising, info_nce

RAW = {"text": "ids", "image": "pixels", "audio": "waveform"}


def make_reference(*, defects=False, tensors=None):
    return Reference(
        tensors or weights(),
        heads=4,
        decoder_heads=3,
        strides=(5, 2, 2, 2),
        groups=4,
        defects=defects,
    )


def num_frames(length):
    return (length - FIELD) // HOP + 1


class ReferenceStep:
    """A step of pretraining by the reference, item by item.

    Predictions, their teachers, and the flags of what was hidden are lists over items, without padding and with CLS
    first, by the original's names.
    """

    def __init__(self, reference, golden, stage):
        self.reference = reference
        self.golden = golden
        self.stage = stage
        self.batch = golden.batch()
        self.vectors = defaultdict(list)
        self.predictions = defaultdict(list)
        self.teachers = defaultdict(list)
        self.hidden = defaultdict(list)
        for index in range(len(golden.inputs["src_tokens"])):
            self.add_item(index)

    def raw_item(self, key, index):
        """Ids, pixels or samples; with padding where it acts as in the original."""
        inputs = self.batch[key]
        item = inputs[RAW[key]][index]
        if key == "image" or self.reference.defects:
            return item
        return item[: int(inputs["lengths"][index])]

    def num_tokens(self, key, index):
        """Without CLS and padding."""
        if key == "image":
            return 16
        length = int(self.batch[key]["lengths"][index])
        return length if key == "text" else num_frames(length)

    def add_item(self, index):
        stems = {}
        whole = {}
        alone = {}
        for key in self.batch:
            stems[key] = self.reference.stem(key, self.raw_item(key, index))
            count = self.num_tokens(key, index)
            whole[key] = self.reference.place(key, stems[key], real=count)
            alone[key] = self.reference.encode([whole[key]])[key]
            self.vectors[key].append(self.reference.embed(key, alone[key]))
        joint = self.reference.encode(list(whole.values()))

        # Stage 2 compares sound alone with its features in the joint pass.
        unimodal_teachers = joint if self.stage == "audio_text" else alone
        for key in self.batch:
            self.add_masked_pass(index, {key: key}, stems, unimodal_teachers)
        prefix = STAGES[self.stage].joint
        self.add_masked_pass(index, {key: f"{prefix}_{key}" for key in self.batch}, stems, joint)

    def add_masked_pass(self, index, names, stems, teachers):
        """``names``: the original's name of the prediction of each modality of the pass."""
        inputs = self.golden.inputs
        visible = []
        for key, name in names.items():
            if f"{name}_preserve_ids" not in inputs:
                return
            keep = inputs[f"{name}_preserve_ids"][index].tolist()
            if not self.reference.defects:
                keep = [position for position in keep if position >= 0]
            visible.append(self.reference.place(key, stems[key], keep))

        lengths = {key: len(stems[key]) + 1 for key in names}
        num_real = {key: self.num_tokens(key, index) + 1 for key in names}
        decoded = self.reference.decode(visible, self.reference.encode(visible), lengths, num_real)
        for key, name in names.items():
            real = slice(num_real[key])
            self.predictions[name].append(decoded[key][real])
            self.teachers[name].append(teachers[key][real])
            self.hidden[name].append(inputs[f"{name}_mask_indices"][index, real].tolist())

    def losses(self):
        """The losses under the names of the original code."""
        letter = self.stage[0]
        other = self.stage.partition("_")[0]
        scale = self.reference.w["logit_scale"].clamp(0, 4.605170186).exp()
        losses = {f"{letter}tc_loss": info_nce(self.vectors[other], self.vectors["text"], scale)}
        for name, predictions in self.predictions.items():
            losses[f"dcl_{name}_loss"] = denoising(predictions, self.teachers[name], self.hidden[name])
        return losses


@torch.no_grad()
def test_reference_matches_original_alone():
    reference = make_reference()
    golden = case("embed")
    ids = golden.inputs["text"][1]
    length = int(golden.inputs["audio_lengths"][2])
    items = {
        "text_alone_1": ("text", ids[ids != 1]),
        "image": ("image", golden.inputs["image"][0].float()),
        "audio_alone_2": ("audio", golden.inputs["audio_padded"][2, :length]),
    }

    for name, (key, raw) in items.items():
        item = reference.place(key, reference.stem(key, raw))
        tokens = reference.encode([item])[key]
        assert_near(tokens, golden.outputs[f"{name}_tokens"][0], TOKENS)
        assert_near(reference.embed(key, tokens), golden.outputs[f"{name}_embed"][0], UNIT)


@torch.no_grad()
def test_reference_with_defects_matches_padded_audio():
    reference = make_reference(defects=True)
    golden = case("embed")

    for index, length in enumerate(golden.inputs["audio_lengths"].tolist()):
        frames = num_frames(length)
        stem = reference.stem("audio", golden.inputs["audio_padded"][index])
        features = reference.encode([reference.place("audio", stem, real=frames)])["audio"]
        tokens = features[: frames + 1]
        assert_near(tokens, golden.outputs["audio_padded_batch_tokens"][index, : frames + 1], TOKENS)
        assert_near(reference.embed("audio", tokens), golden.outputs["audio_padded_batch_embed"][index], UNIT)


@torch.no_grad()
@pytest.mark.parametrize("stage", STAGES)
def test_reference_with_defects_matches_padded_pretraining(stage):
    golden = case(f"pretrain_{stage}_padded")

    step = ReferenceStep(make_reference(defects=True), golden, stage)

    losses = step.losses()
    assert set(losses) == set(STAGES[stage].loss_names)
    for name, loss in losses.items():
        assert_near(loss.reshape(1), golden.outputs[name], LOSS)
    for name, predictions in step.predictions.items():
        for index, tokens in enumerate(predictions):
            assert_near(tokens, golden.outputs[f"student_{name}"][index, : len(tokens)], TOKENS)


def weighted_sum(losses, stage):
    """The loss of the step, of losses by the original's names."""
    options_by_term = STAGES[stage].terms
    total = 0.0
    for name, loss in losses.items():
        term = STAGES[stage].loss_names[name].partition(":")[0]
        options = options_by_term.get(term, options_by_term["contrastive"])
        total = total + options["weight"] * loss
    return total


@pytest.mark.parametrize("stage", STAGES)
def test_padded_pretrain_matches_reference(stage):
    """The padded cases without the defects, gradients included, which no golden case has."""
    step = golden_step(stage, padded=True)
    leaves = {}
    for name, tensor in weights().items():
        leaves[name] = tensor.clone().requires_grad_(tensor.is_floating_point())
    expected = ReferenceStep(make_reference(tensors=leaves), step.golden, stage).losses()
    total = weighted_sum(expected, stage)
    total.backward()

    losses = step.losses(stage)
    losses["loss"].backward()

    assert_near(losses["loss"], total, LOSS)
    for original, name in STAGES[stage].loss_names.items():
        assert_near(losses[name], expected[original], LOSS)
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    assert set(step.gradients()) == {place(name)[0] for name in gradients}
    norms = [gradient.norm() for gradient in gradients.values()]
    assert_gradients_match(step.model, gradients, torch.stack(norms).norm().item())
