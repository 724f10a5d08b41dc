"""tests/reference.py reproduces the original, its defects too when asked; the package equals it without them.

So the numbers of padded batches, in which the original lets padding act, still check everything else.
"""

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
from support.reference import Reference, denoising, info_nce
from support.training import terms
from test_golden_pretrain import STAGES, step, students

from onepeace.train.objective import Objective


def reference(defects=False, tensors=None):
    return Reference(tensors or weights(), 4, decoder_heads=3, strides=(5, 2, 2, 2), groups=4, defects=defects)


def pretrain(model: Reference, found, stage: str):
    """Predictions (lists over items, by the original's names) and losses of a step, item by item."""
    together, batch = STAGES[stage]["joint"], found.batch()
    raw = {"text": "ids", "image": "pixels", "audio": "waveform"}
    real = {"text": lambda i: int((batch["text"]["ids"][i] != 1).sum()), "image": lambda i: 16}
    real["audio"] = lambda i: (int(batch["audio"]["lengths"][i]) - FIELD) // HOP + 1
    embeddings = {key: [] for key in batch}
    kept: dict[str, dict[str, list]] = {}
    for i in range(len(found.inputs["src_tokens"])):
        count = {key: real[key](i) for key in batch}
        stems = {}
        for key in batch:
            item = batch[key][raw[key]][i]
            if key == "audio" and not model.defects:
                item = item[: int(batch["audio"]["lengths"][i])]
            if key == "text" and not model.defects:
                item = item[: count[key]]
            stems[key] = model.stem(key, item)
        whole = {key: model.place(key, stems[key], real=count[key]) for key in batch}
        alone = {key: model.encode([whole[key]])[key] for key in batch}
        joint = model.encode(list(whole.values()))
        for key in batch:
            embeddings[key].append(model.embed(key, alone[key]))
        for name, keys in {**{key: [key] for key in batch}, together: list(batch)}.items():
            prefix = {key: key if len(keys) == 1 else f"{together}_{key}" for key in keys}
            if f"{prefix[keys[0]]}_preserve_ids" not in found.inputs:
                continue
            items = []
            for key in keys:
                keep = found.inputs[f"{prefix[key]}_preserve_ids"][i].tolist()
                keep = keep if model.defects else [place for place in keep if place >= 0]
                items.append(model.place(key, stems[key], keep))
            lengths = {key: len(stems[key]) + 1 for key in keys}
            predicted = model.decode(items, model.encode(items), lengths, {key: count[key] + 1 for key in keys})
            # Stage 2 compares sound alone with its features in the joint pass.
            teacher = joint if name == together or stage == "audio_text" else alone
            for key in keys:
                cut = count[key] + 1
                lists = kept.setdefault(prefix[key], {"student": [], "teacher": [], "masked": []})
                lists["student"].append(predicted[key][:cut])
                lists["teacher"].append(teacher[key][:cut])
                lists["masked"].append(found.inputs[f"{prefix[key]}_mask_indices"][i, :cut].tolist())
    letter = stage[0]
    text, other = embeddings["text"], embeddings[stage.partition("_")[0]]
    losses = {f"{letter}tc_loss": info_nce(other, text, model.w["logit_scale"].clamp(0, 4.605170186).exp())}
    losses |= {f"dcl_{name}_loss": denoising(*lists.values()) for name, lists in kept.items()}
    return {f"student_{name}": lists["student"] for name, lists in kept.items()}, losses


@torch.no_grad()
def test_reference_matches_the_original_alone():
    model, found = reference(), case("embed")
    ids = found.inputs["text"][1]
    for key, raw, name in (
        ("text", ids[ids != 1], "text_alone_1"),
        ("image", found.inputs["image"][0].float(), "image"),
        ("audio", found.inputs["audio_padded"][2, : int(found.inputs["audio_lengths"][2])], "audio_alone_2"),
    ):
        tokens = model.encode([model.place(key, model.stem(key, raw))])[key]
        assert_near(tokens, found.outputs[f"{name}_tokens"][0], TOKENS)
        assert_near(model.embed(key, tokens), found.outputs[f"{name}_embed"][0], UNIT)


@torch.no_grad()
def test_reference_with_defects_matches_the_original_padded_audio():
    model, found = reference(defects=True), case("embed")
    for i, length in enumerate(found.inputs["audio_lengths"].tolist()):
        frames = (length - FIELD) // HOP + 1
        stem = model.stem("audio", found.inputs["audio_padded"][i])
        tokens = model.encode([model.place("audio", stem, real=frames)])["audio"][: frames + 1]
        assert_near(tokens, found.outputs["audio_padded_batch_tokens"][i, : frames + 1], TOKENS)
        assert_near(model.embed("audio", tokens), found.outputs["audio_padded_batch_embed"][i], UNIT)


@torch.no_grad()
@pytest.mark.parametrize("stage", STAGES)
def test_reference_with_defects_matches_the_original_padded_pretraining(stage):
    found = case(f"pretrain_{stage}_padded")
    predictions, losses = pretrain(reference(defects=True), found, stage)
    assert set(losses) == set(STAGES[stage]["names"])
    for name, loss in losses.items():
        assert_near(loss.reshape(1), found.outputs[name], LOSS)
    for name, items in predictions.items():
        for i, tokens in enumerate(items):
            assert_near(tokens, found.outputs[name][i, : len(tokens)], TOKENS)


@pytest.mark.parametrize("stage", STAGES)
def test_padded_pretrain_loss_and_grads_match_the_reference(stage):
    """The padded cases without the defects, gradients included, which no golden case has."""
    model, batch, found = step(stage, padded=True)
    computed = Objective(model, terms(STAGES[stage]["terms"]), {})(batch)
    predictions = students(model, batch, stage)
    computed["loss"].backward()
    tensors = {name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in weights().items()}
    items, losses = pretrain(reference(tensors=tensors), found, stage)
    ours, options = STAGES[stage]["names"], STAGES[stage]["terms"]
    total = 0.0
    for name, loss in losses.items():
        assert_near(computed[ours[name]], loss, LOSS)
        term = ours[name].partition(":")[0]
        total = total + options.get(term, options["contrastive"])["weight"] * loss
    assert_near(computed["loss"], total, LOSS)
    for name, tokens in predictions.items():
        for i, expected in enumerate(items[name]):
            assert_near(tokens[i, : len(expected)], expected, TOKENS)
    total.backward()
    grads = {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}
    used = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert used == {place(name)[0] for name in grads}
    norm = torch.stack([grad.norm() for grad in grads.values()]).norm().item()
    assert_gradients_match(model, grads, norm)
