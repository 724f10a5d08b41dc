"""What models of the transformers plug-in compute, against our embedder and the module that they hold."""

import pytest
import torch
import transformers
from support.embedding import assert_same
from support.transformers_classes import arguments_of, check_same_outputs
from torch.ao.quantization import quantize_dynamic
from torch.nn.functional import cross_entropy, pad

import onepeace
import onepeace.plugins.transformers as plugin
from onepeace.errors import UserError

EMBEDS = ("text_embeds", "image_embeds", "audio_embeds")


def class_name(cls):
    return cls.__name__


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


def test_outputs_of_texts_alone(hf_model, inputs):
    ids = inputs["input_ids"]
    outputs = hf_model(ids)

    assert list(outputs) == ["text_embeds"]
    assert torch.equal(hf_model(ids, return_dict=False)[0], outputs[0])
    with pytest.raises(UserError, match="return_loss"):
        hf_model(ids, return_loss=True)


def test_logits_of_texts_without_pictures(hf_model, inputs):
    outputs = hf_model(**{name: inputs[name] for name in inputs if name != "pixel_values"})
    assert torch.equal(outputs.logits_per_text, outputs.logits_per_audio.T)


def test_vector_alone_is_that_of_a_batch(hf_model, processor, outputs, pictures, texts, sounds):
    for row in range(3):
        item = processor(
            images=pictures[row],
            text=texts[row],
            audio=sounds[row],
            sampling_rate=16000,
            return_tensors="pt",
        )
        alone = hf_model(**item)
        for name in EMBEDS:
            assert_same(outputs[name][row : row + 1], alone[name])


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


@pytest.mark.parametrize(
    ("values", "mask"),
    [
        ("input_ids", "attention_mask"),
        ("input_values", "padding_mask"),
    ],
)
def test_padding_on_the_left(hf_model, inputs, outputs, values, mask):
    padding = (inputs[mask] == 0).sum(1).tolist()
    assert any(padding)
    moved = dict(inputs)
    for name in (values, mask):
        rows = zip(inputs[name], padding, strict=True)
        moved[name] = torch.stack([row.roll(count) for row, count in rows])

    moved_outputs = hf_model(**moved)

    for name in EMBEDS:
        assert_same(moved_outputs[name], outputs[name])


def test_hidden_states_of_each_modality(hf_model, inputs, outputs):
    with_states = hf_model(**inputs, output_hidden_states=True)

    assert_same(with_states.logits_per_image, outputs.logits_per_image, atol=1e-4)
    for name in ("text", "vision", "audio"):
        assert len(with_states[f"{name}_model_output"].hidden_states) == 3
    image = hf_model.get_image_features(inputs["pixel_values"], output_hidden_states=True)
    assert_same(with_states.vision_model_output.hidden_states[1], image.hidden_states[1])


def test_last_hidden_state_is_before_the_final_norm(hf_model, inputs):
    text = hf_model.get_text_features(inputs["input_ids"], inputs["attention_mask"], output_hidden_states=True)

    assert len(text.hidden_states) == 3
    normed = hf_model.onepeace.norms["text"](text.hidden_states[-1])
    assert_same(normed[:, 0], text.last_hidden_state[:, 0])


@pytest.mark.parametrize(
    "cls",
    [plugin.OnePeaceVisionModel, plugin.OnePeaceAudioModel, plugin.OnePeaceForImageClassification],
    ids=class_name,
)
def test_hidden_states_lie_on_the_path_to_the_output(cls, saved, inputs):
    model = cls.from_pretrained(saved)
    outputs = model(**arguments_of(model, inputs), output_hidden_states=True)
    for state in outputs.hidden_states:
        state.retain_grad()

    outputs[0].square().sum().backward()

    assert len(outputs.hidden_states) == 3
    for state in outputs.hidden_states:
        assert state.grad.any()


def test_attentions_are_refused(hf_model, inputs):
    with pytest.raises(UserError, match="output_attentions"):
        hf_model(**inputs, output_attentions=True)


def test_new_model_is_initialised_as_ours(random_name):
    config = plugin.OnePeaceConfig.from_onepeace(random_name)
    torch.manual_seed(3)
    module = onepeace.OnePeace(config.to_onepeace().model)
    torch.manual_seed(3)
    model = transformers.AutoModel.from_config(config)

    tensors = model.onepeace.state_dict()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


def test_vocabulary_grows(saved, inputs, tmp_path):
    model = plugin.OnePeaceModel.from_pretrained(saved).eval()
    vectors = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    size = model.config.vocab_size + 3
    model.resize_token_embeddings(size)
    model.save_pretrained(tmp_path)

    assert model.get_input_embeddings().weight.shape == (size, 32)
    assert torch.equal(
        model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output,
        vectors,
    )
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == size
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", ["random", "tiny"])
@pytest.mark.parametrize("cls", [plugin.OnePeaceVisionModel, plugin.OnePeaceAudioModel], ids=class_name)
def test_input_embeddings_without_text_are_the_stem(cls, name, random_name, inputs):
    """Adapters in frozen blocks get gradients under checkpointing."""
    model = cls.from_onepeace(random_name if name == "random" else name).requires_grad_(False)
    model.enable_input_require_grads()

    outputs = model(**arguments_of(model, inputs), output_hidden_states=True)

    assert outputs.hidden_states[0].requires_grad


@pytest.mark.parametrize("cls", [plugin.OnePeaceModel, plugin.OnePeaceVisionModel], ids=class_name)
def test_input_embeddings_can_be_replaced(cls, random_name):
    model = cls.from_onepeace(random_name)
    replacement = torch.nn.Linear(1, 1)
    model.set_input_embeddings(replacement)
    assert model.get_input_embeddings() is replacement


def test_text_config_has_the_sizes_of_the_text_branch(hf_model, random_name):
    assert hf_model.config.text_config.hidden_size == 32
    assert hf_model.config.text_config.vocab_size == hf_model.config.vocab_size
    assert plugin.OnePeaceVisionConfig.from_onepeace(random_name).text_config is None


@pytest.mark.parametrize("cls", [plugin.OnePeaceModel, plugin.OnePeaceVisionModel], ids=class_name)
def test_smaller_depth_is_a_field_of_the_configuration(cls, saved, inputs, tmp_path):
    model = cls.from_pretrained(saved, num_hidden_layers=1)
    model.save_pretrained(tmp_path)

    assert len(model.onepeace.blocks) == 1
    assert model.config.num_hidden_layers == 1
    check_same_outputs(cls.from_pretrained(tmp_path), model, inputs)


def test_fields_of_the_configuration_reach_ours(saved):
    config = transformers.AutoConfig.from_pretrained(saved, num_hidden_layers=1, hidden_size=16)
    assert config.to_onepeace().model.depth == 1
    assert config.to_onepeace().model.dim == 16


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["random", "tiny"])
def test_products_in_int8(name, random_name, pictures, texts, sounds):
    folder = random_name if name == "random" else name
    model = plugin.OnePeaceModel.from_onepeace(folder).eval()
    processor = plugin.OnePeaceProcessor.from_onepeace(folder)
    inputs = processor(images=pictures, text=texts, audio=sounds, return_tensors="pt")

    quantized = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    outputs = model(**inputs)
    quantized_outputs = quantized(**inputs)
    for name in EMBEDS:
        cosines = (quantized_outputs[name] * outputs[name]).sum(1)
        assert cosines.min() > 0.99


@pytest.mark.skipif(
    not hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable"),
    reason="an older transformers",
)
def test_gradient_checkpointing_reaches_the_blocks(random_name, inputs):
    model = plugin.OnePeaceModel.from_onepeace(random_name).train()
    model(**inputs, return_loss=True).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    model.activation_checkpointing_enable(every_n_layers=2)
    model(**inputs, return_loss=True).loss.backward()

    assert [block.gradient_checkpointing for block in model.onepeace.blocks] == [True, False]
    assert model.is_activation_checkpointing
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None)
        if parameter.grad is not None:
            assert_same(parameter.grad, gradients[name], atol=1e-4)
    model.activation_checkpointing_disable()
    assert not any(block.gradient_checkpointing for block in model.onepeace.blocks)
