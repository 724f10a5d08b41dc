"""What models of the transformers plug-in compute, against our embedder and the module that they hold."""

import pytest
import torch
from support.embedding import assert_same
from torch.nn.functional import cross_entropy, pad

from onepeace.errors import UserError
from onepeace.plugins.transformers import OnePeaceModel

EMBEDS = ("text_embeds", "image_embeds", "audio_embeds")


@pytest.fixture(scope="module")
def outputs(hf_model, inputs):
    with torch.no_grad():
        return hf_model(**inputs, return_loss=True)


def test_vectors_are_those_of_the_embedder(outputs, pictures, texts, sounds, model):
    assert_same(outputs.text_embeds, model.encode_text(texts))
    assert_same(outputs.image_embeds, model.encode_image(pictures))
    assert_same(outputs.audio_embeds, model.encode_audio([(sound, 16000) for sound in sounds]))


def test_features_of_one_modality(hf_model, outputs, inputs):
    text = hf_model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    image = hf_model.get_image_features(inputs["pixel_values"])
    audio = hf_model.get_audio_features(inputs["input_values"], inputs["padding_mask"])

    assert_same(text.pooler_output, outputs.text_embeds)
    assert_same(image.pooler_output, outputs.image_embeds)
    assert_same(audio.pooler_output, outputs.audio_embeds)
    for features in (text, image, audio):
        assert features.last_hidden_state.shape[::2] == (3, 32)


def test_logits_and_loss_equal_plain_formulas(outputs, model):
    images = model.logit_scale * outputs.image_embeds @ outputs.text_embeds.T
    sounds = model.logit_scale * outputs.audio_embeds @ outputs.text_embeds.T

    assert_same(outputs.logits_per_image, images, atol=1e-4)
    assert_same(outputs.logits_per_audio, sounds, atol=1e-4)
    assert_same(outputs.logits_per_text, images.T, atol=1e-4)
    logits = torch.cat([images, images.T, sounds, sounds.T])
    assert_same(outputs.loss, cross_entropy(logits, torch.arange(3).repeat(4)))


def test_padding_changes_no_vector(hf_model, inputs, outputs):
    padded = {
        "input_ids": pad(inputs["input_ids"], (0, 3), value=5),
        "attention_mask": pad(inputs["attention_mask"], (0, 3)),
        "input_values": pad(inputs["input_values"], (0, 3000), value=7.0),
        "padding_mask": pad(inputs["padding_mask"], (0, 3000)),
    }
    padded_outputs = hf_model(**{**inputs, **padded})
    for name in EMBEDS:
        assert_same(padded_outputs[name], outputs[name])


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_what_blocks_give_is_refused(hf_model, inputs, name):
    with pytest.raises(UserError, match=name):
        hf_model(**inputs, **{name: True})


def test_padding_on_the_left_is_refused(hf_model):
    ids = torch.tensor([[1, 5, 2], [5, 7, 2]])
    with pytest.raises(UserError, match="on the right"):
        hf_model(ids, (ids != 1).long())


def test_gradient_checkpointing_changes_no_gradient(random_name, inputs):
    gradients = []
    for is_checkpointed in (False, True):
        model = OnePeaceModel.from_onepeace(random_name)
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        model.train()(**inputs, return_loss=True).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])

    assert model.is_gradient_checkpointing
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_same(checkpointed, plain)
