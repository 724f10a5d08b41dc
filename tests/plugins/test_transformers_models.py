"""Models of the transformers plug-in, against the module they hold and against the library's own loading."""

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open

import onepeace
import onepeace.plugins.transformers as plugin
from onepeace.errors import UserError

CLASSES = {
    plugin.OnePeaceModel: transformers.AutoModel,
    plugin.OnePeaceVisionModel: transformers.AutoModel,
    plugin.OnePeaceAudioModel: transformers.AutoModel,
    plugin.OnePeaceForImageClassification: transformers.AutoModelForImageClassification,
    plugin.OnePeaceForAudioClassification: transformers.AutoModelForAudioClassification,
    plugin.OnePeaceForVisualQuestionAnswering: transformers.AutoModelForVisualQuestionAnswering,
    plugin.OnePeaceImageBackbone: transformers.AutoBackbone,
}
"""Every class, and the Auto class that finds it."""
TEXTS = ["a dog barking", "", "two cats on a very long and very wide sofa, and a third one"]


@pytest.fixture(scope="module")
def whole(random_folder):
    return plugin.OnePeaceModel.from_onepeace(str(random_folder)).eval()


@pytest.fixture(scope="module")
def processor(random_folder):
    return plugin.OnePeaceProcessor.from_onepeace(str(random_folder))


@pytest.fixture(scope="module")
def saved(whole, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    whole.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def media():
    random = np.random.default_rng(0)
    return {
        "text": TEXTS,
        "image": [Image.fromarray(random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)) for i in range(3)],
        "audio": [random.normal(0, 0.1, 8000 + 5000 * i).astype(np.float32) for i in range(3)],
    }


@pytest.fixture(scope="module")
def inputs(processor, media):
    return processor(
        images=media["image"], text=media["text"], audio=media["audio"], sampling_rate=16000, return_tensors="pt"
    )


def close(got, want, atol=1e-5):
    assert tuple(got.shape) == tuple(want.shape)
    torch.testing.assert_close(got.detach().float(), torch.as_tensor(want).float(), atol=atol, rtol=0)


def arguments(model, inputs):
    """Those of `inputs` that the model's modalities are about."""
    names = {
        "text": ("input_ids", "attention_mask"),
        "image": ("pixel_values",),
        "audio": ("input_values", "padding_mask"),
    }
    return {name: inputs[name] for key in model.onepeace.adapters for name in names[key]}


def tensors_of(output):
    return [t for value in output.to_tuple() for t in (value if isinstance(value, tuple) else [value])]


def test_vectors_and_logits_are_those_of_the_embedder(whole, inputs, media, model):
    want = {
        "text": model.encode_text(media["text"]),
        "image": model.encode_image(media["image"]),
        "audio": model.encode_audio([(sound, 16000) for sound in media["audio"]]),
    }
    with torch.no_grad():
        got = whole(**inputs, return_loss=True)
        text = whole.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        image = whole.get_image_features(inputs["pixel_values"])
        audio = whole.get_audio_features(inputs["input_values"], inputs["padding_mask"])
    for key, features in {"text": text, "image": image, "audio": audio}.items():
        close(got[f"{key}_embeds"], want[key])
        close(features.pooler_output, want[key])
        assert features.last_hidden_state.shape[::2] == (3, 32)
    scale = model.logit_scale
    close(got.logits_per_image, scale * want["image"] @ want["text"].T, 1e-4)
    close(got.logits_per_audio, scale * want["audio"] @ want["text"].T, 1e-4)
    close(got.logits_per_text, got.logits_per_image.T)
    pairs = [torch.stack([x, x.T]) for x in (got.logits_per_image, got.logits_per_audio)]
    rows = torch.cat(pairs).flatten(0, 1)
    close(got.loss, torch.nn.functional.cross_entropy(rows, torch.arange(3).repeat(4)))


def test_what_is_not_given_is_not_there(whole, inputs):
    with torch.no_grad():
        texts = whole(inputs["input_ids"], inputs["attention_mask"])
        sounds = whole(**{name: inputs[name] for name in inputs if name != "pixel_values"})
    assert list(texts) == ["text_embeds"]
    assert whole(inputs["input_ids"], return_dict=False)[0].shape == (3, 16)
    close(sounds.logits_per_text, sounds.logits_per_audio.T)
    with pytest.raises(UserError, match="return_loss needs texts"):
        whole(inputs["input_ids"], return_loss=True)


def test_a_vector_does_not_depend_on_its_batch(whole, processor, inputs, media):
    with torch.no_grad():
        together = whole(**inputs)
        longer = {
            **inputs,
            "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 3), value=5),
            "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 3)),
            "input_values": torch.nn.functional.pad(inputs["input_values"], (0, 3000), value=7.0),
            "padding_mask": torch.nn.functional.pad(inputs["padding_mask"], (0, 3000)),
        }
        padded = whole(**longer)
        for i in range(3):
            one = processor(
                images=media["image"][i],
                text=media["text"][i],
                audio=media["audio"][i],
                sampling_rate=16000,
                return_tensors="pt",
            )
            alone = whole(**one)
            for name in ("text_embeds", "image_embeds", "audio_embeds"):
                close(together[name][i : i + 1], alone[name])
                close(padded[name][i : i + 1], alone[name])


@pytest.mark.parametrize(("values", "mask"), [("input_ids", "attention_mask"), ("input_values", "padding_mask")])
def test_padding_on_the_left_changes_no_vector(whole, inputs, values, mask):
    missing = (inputs[mask] == 0).sum(1).tolist()
    assert any(missing)
    left = {
        name: torch.stack([row.roll(count) for row, count in zip(inputs[name], missing, strict=True)])
        for name in (values, mask)
    }
    with torch.no_grad():
        expected, found = whole(**inputs), whole(**{**inputs, **left})
    for name in ("text_embeds", "audio_embeds"):
        close(found[name], expected[name])


def test_the_whole_model_gives_the_hidden_states_of_each_part(whole, inputs):
    with torch.no_grad():
        found, expected = whole(**inputs, output_hidden_states=True), whole(**inputs)
        alone = whole.get_image_features(inputs["pixel_values"], output_hidden_states=True)
    close(found.logits_per_image, expected.logits_per_image, 1e-4)
    assert [len(found[f"{name}_model_output"].hidden_states) for name in ("text", "vision", "audio")] == [3, 3, 3]
    close(found.vision_model_output.hidden_states[1], alone.hidden_states[1])


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_round_trip(cls, random_folder, inputs, tmp_path, monkeypatch):
    # AutoBackbone of 5.24 first asks the Hub for a repository, also about a folder.
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_exists", lambda *_: True)
    model = cls.from_onepeace(str(random_folder))
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".yaml", ".md"}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {f"onepeace.{name}" for name in model.onepeace.state_dict()}
    for again in (cls.from_pretrained(tmp_path), CLASSES[cls].from_pretrained(str(tmp_path))):
        assert type(again) is cls
        assert again.onepeace.config == model.onepeace.config
        assert list(again.onepeace.adapters) == list(model.onepeace.adapters)  # config.json is sorted by name
        assert not again.training
        got, want = again(**arguments(model, inputs)), model(**arguments(model, inputs))
        assert list(got) == list(want)
        for a, b in zip(tensors_of(got), tensors_of(want), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_part_loads_from_the_files_of_the_whole(cls, saved, whole):
    model, report = cls.from_pretrained(saved, output_loading_info=True)
    head = {name for name in model.state_dict() if "classifier" in name}
    assert set(report["missing_keys"]) == head
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    for name, value in model.state_dict().items():
        assert name in head or torch.equal(value, whole.state_dict()[name])
    if head:
        weights = model.onepeace.heads["classifier"].hidden.weight
        assert 0 < weights.std() < 0.02
        assert weights.abs().max() <= 0.02
        norm = model.onepeace.heads["classifier"].norm
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


def test_a_new_model_is_filled_as_ours(random_folder):
    config = plugin.OnePeaceConfig.from_onepeace(str(random_folder))
    torch.manual_seed(3)
    own = onepeace.OnePeace(config.to_onepeace().model)
    torch.manual_seed(3)
    model = transformers.AutoModel.from_config(config)
    for name, value in own.state_dict().items():
        assert torch.equal(model.onepeace.state_dict()[name], value), name


def test_a_saved_folder_says_what_it_needs_and_is_a_model_folder(saved, model):
    assert "import onepeace.plugins.transformers" in (saved / "README.md").read_text(encoding="utf-8")
    again = onepeace.load(saved, device="cpu", dtype="float32")
    assert again.modalities == model.modalities
    assert again.module.config == model.module.config
    assert again.processors["text"].settings == model.processors["text"].settings
    texts = [*TEXTS, "the letters </s> and <pad>"]
    close(again.encode_text(texts), model.encode_text(texts), 0)


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
def test_dtype_and_device_map(saved, inputs, whole, argument):
    model = transformers.AutoModel.from_pretrained(saved, **{argument: torch.bfloat16}, device_map="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.device.type == "cpu"
    got, want = model(**inputs), whole(**inputs)
    close(got.image_embeds, want.image_embeds.detach(), 0.1)
    assert model._no_split_modules >= {"OnePeaceBlock", "TextAdapter"}


@torch.no_grad()
@pytest.mark.parametrize("cls", list(CLASSES)[:4], ids=lambda cls: cls.__name__)
def test_offloading_finds_every_parameter(cls, saved, inputs):
    accelerate = pytest.importorskip("accelerate")
    model = cls.from_pretrained(saved).eval()
    want = tensors_of(model(**arguments(model, inputs)))
    accelerate.cpu_offload(model, execution_device="cpu")
    assert all(parameter.is_meta for parameter in model.parameters())
    for got, tensor in zip(tensors_of(model(**arguments(model, inputs))), want, strict=True):
        assert torch.equal(got, tensor)


@torch.no_grad()
def test_a_device_map_may_leave_most_of_the_model_on_disk(saved, inputs, whole, tmp_path):
    memory = {"cpu": sum(parameter.nbytes for parameter in whole.parameters()) // 2}
    model = transformers.AutoModel.from_pretrained(saved, device_map="auto", max_memory=memory, offload_folder=tmp_path)
    assert "disk" in model.hf_device_map.values()
    for got, want in zip(tensors_of(model(**inputs)), tensors_of(whole(**inputs)), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("cls", list(CLASSES)[1:4], ids=lambda cls: cls.__name__)
def test_hidden_states_lie_on_the_path_to_the_output(cls, saved, inputs):
    model = cls.from_pretrained(saved)
    output = model(**arguments(model, inputs), output_hidden_states=True)
    assert len(output.hidden_states) == 3
    for state in output.hidden_states:
        state.retain_grad()
    first = output[0]
    (first[-1] if isinstance(first, tuple) else first).square().sum().backward()
    assert all(state.grad.abs().sum() > 0 for state in output.hidden_states)


def test_the_last_hidden_state_is_before_the_final_norm(whole, inputs):
    found = whole.get_text_features(inputs["input_ids"], inputs["attention_mask"], output_hidden_states=True)
    assert len(found.hidden_states) == 3
    close(whole.onepeace.norms["text"](found.hidden_states[-1])[:, 0], found.last_hidden_state[:, 0])


def test_attentions_are_refused(whole, inputs):
    with pytest.raises(UserError, match="output_attentions"):
        whole(**inputs, output_attentions=True)


def test_the_vocabulary_grows(saved, inputs, processor, tmp_path):
    model = plugin.OnePeaceModel.from_pretrained(saved).eval()
    want = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 3)
    assert model.get_input_embeddings().weight.shape == (size + 3, 32)
    close(model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output, want.detach(), 0)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path)
    assert again.config.vocab_size == size + 3
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
    fresh = torch.nn.Embedding(size, 32)
    again.set_input_embeddings(fresh)
    assert again.get_input_embeddings() is fresh


@pytest.mark.parametrize("name", ["random", "tiny"])
@pytest.mark.parametrize("cls", list(CLASSES)[1:3], ids=lambda cls: cls.__name__)
def test_input_embeddings_of_a_model_without_text_are_its_stem(cls, name, random_folder, inputs):
    model = cls.from_onepeace(str(random_folder) if name == "random" else name).requires_grad_(False)
    model.enable_input_require_grads()  # so that adapters in frozen blocks have gradients under checkpointing
    output = model(**arguments(model, inputs), output_hidden_states=True)
    assert output.hidden_states[0].requires_grad
    fresh = torch.nn.Linear(1, 1)
    model.set_input_embeddings(fresh)
    assert model.get_input_embeddings() is fresh


def test_text_config_has_the_sizes_of_a_model_that_reads_text(whole, random_folder):
    assert whole.config.text_config.hidden_size == 32
    assert whole.config.text_config.vocab_size == whole.config.vocab_size
    assert plugin.OnePeaceVisionConfig.from_onepeace(str(random_folder)).text_config is None


@pytest.mark.parametrize("cls", list(CLASSES)[:2], ids=lambda cls: cls.__name__)
def test_a_smaller_depth_is_a_field_of_the_configuration(cls, saved, inputs, tmp_path):
    model = cls.from_pretrained(saved, num_hidden_layers=1)
    assert len(model.onepeace.blocks) == model.config.num_hidden_layers == 1
    want = model(**arguments(model, inputs))
    model.save_pretrained(tmp_path)
    for one, other in zip(
        tensors_of(cls.from_pretrained(tmp_path)(**arguments(model, inputs))), tensors_of(want), strict=True
    ):
        assert torch.equal(one, other)
    config = transformers.AutoConfig.from_pretrained(saved, num_hidden_layers=1, hidden_size=16)
    assert config.to_onepeace().model.depth == 1
    assert config.to_onepeace().model.dim == 16


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["random", "tiny"])
def test_products_in_int8(name, whole, processor, media):
    model = whole if name == "random" else plugin.OnePeaceModel.from_onepeace(name).eval()
    processor = processor if name == "random" else plugin.OnePeaceProcessor.from_onepeace(name)
    inputs = processor(images=media["image"], text=media["text"], audio=media["audio"], return_tensors="pt")
    products_in_int8 = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    got, want = products_in_int8(**inputs), model(**inputs)
    for name in ("text_embeds", "image_embeds", "audio_embeds"):
        assert ((got[name] * want[name]).sum(1) > 0.99).all()


@pytest.mark.skipif(
    not hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable"), reason="an older transformers"
)
def test_gradient_checkpointing_reaches_the_blocks(random_folder, inputs):
    model = plugin.OnePeaceModel.from_onepeace(str(random_folder)).train()
    model(**inputs, return_loss=True).loss.backward()
    want = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable(every_n_layers=2)
    assert [block.gradient_checkpointing for block in model.onepeace.blocks] == [True, False]
    assert model.is_activation_checkpointing
    model(**inputs, return_loss=True).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (want[name] is None)
        if parameter.grad is not None:
            close(parameter.grad, want[name], 1e-4)
    model.activation_checkpointing_disable()
    assert not any(block.gradient_checkpointing for block in model.onepeace.blocks)


def test_pushing_to_the_hub_uploads_the_saved_files(whole, processor, monkeypatch):
    uploaded = {}

    def create_commit(self, repo_id, operations, **_):
        uploaded.setdefault(repo_id, set()).update(operation.path_in_repo for operation in operations)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "create_repo",
        lambda self, repo_id, **_: huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}"),
    )
    card = huggingface_hub.ModelCard("---\ntags: []\n---\n")
    monkeypatch.setattr(transformers.utils.hub, "create_and_tag_model_card", lambda *_, **__: card)
    whole.push_to_hub("someone/model")
    processor.push_to_hub("someone/model")
    assert uploaded["someone/model"] >= {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"}
