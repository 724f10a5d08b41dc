"""Model folders: written at once, read strictly, without a second copy in memory."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_models import small_model
from support.training import assert_same_tensors

from onepeace.config import Config, MaskedDecoderConfig, read_yaml
from onepeace.errors import UserError
from onepeace.files import sums
from onepeace.hub import weights
from onepeace.hub.folder import read_config
from onepeace.hub.tensors import open_weights


def make(*modalities, decoder=None, **changes):
    """A random model and its configuration."""
    module = small_model(*modalities, decoder=decoder, **changes)
    return module, Config(module.config, {"image": {"size": 48}})


def make_full():
    """One with everything that a model can have."""
    positions = {"text": {"num_positions": 12}, "image": {"grid": 2}}
    decoder = MaskedDecoderConfig(16, 1, 2, 24, positions)
    classifier = {"kind": "classifier", "on": "image", "num_classes": 5}
    return make("text", "image", "audio with mel stem", decoder=decoder, heads={"classifier": classifier})


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "a tokenizer.json"
    path.write_text("{}" + 100 * " ")
    return path


@pytest.fixture
def folder(tmp_path):
    return weights.save(tmp_path / "models" / "m", *make_full(), card="a card\n")


@pytest.fixture
def image_folder(tmp_path, tokenizer):
    """A small one, with a tokenizer."""
    return weights.save(tmp_path / "models" / "m", *make("image"), tokenizer=tokenizer)


def rewrite(folder, change):
    """Change the content of a folder's config.yaml."""
    content = read_yaml(folder / "config.yaml")
    change(content)
    (folder / "config.yaml").write_text(json.dumps(content))


def siblings(folder):
    return [path.name for path in folder.parent.iterdir()]


def test_saved_model_loads_bit_equal(tmp_path, tokenizer):
    module, config = make_full()

    folder = weights.save(tmp_path / "deep" / "model", module, config, tokenizer=tokenizer, card="# Card\n")
    loaded = weights.load(folder)

    assert loaded.config == config.model
    assert not loaded.training
    assert_same_tensors(loaded.state_dict(), module.state_dict())
    assert (folder / "MODEL_CARD.md").read_text() == "# Card\n"
    assert (folder / "tokenizer.json").read_text() == tokenizer.read_text()


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_of_new_files(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = weights.save(tmp_path / "m", *make("audio"))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


def test_wrong_tensors_are_named_in_one_line(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["extra.weight"] = torch.zeros(2)
    tensors["heads.text.bias"] = torch.zeros(17)
    del tensors["blocks.1.ffn.audio.norm.bias"]
    (folder / "SHA256SUMS").unlink()
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(UserError) as error:
        weights.load(folder)

    message = str(error.value)
    assert "\n" not in message
    for part in (
        str(folder),
        "blocks.1.ffn.audio.norm.bias",
        "extra.weight",
        "heads.text.bias",
        "(17,)",
        "(24,)",
    ):
        assert part in message


def test_only_the_requested_modalities_are_read(folder, monkeypatch):
    names_read = []

    def spied_weights(folder):
        spied = {}
        for name, tensor in open_weights(folder).items():

            def read(name=name, tensor=tensor):
                names_read.append(name)
                return tensor.read()

            spied[name] = tensor._replace(read=read)
        return spied

    monkeypatch.setattr(weights, "open_weights", spied_weights)

    module = weights.load(folder, modalities=["image"])

    assert set(names_read) == set(module.state_dict())
    assert "adapters.image.cls_token" in names_read
    assert not [name for name in names_read if ".text." in name or ".audio." in name]
    assert list(module.config.adapters) == ["image"]
    assert module.config.projections == ("image",)
    assert list(module.config.decoder.options) == ["image"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_loaded_weights_are_the_mapped_file(folder):
    module = weights.load(folder)

    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder / "model.safetensors") in line:
            start, end = line.split()[0].split("-")
            spans.append(range(int(start, 16), int(end, 16)))
    for name, parameter in module.named_parameters():
        assert any(parameter.data_ptr() in span for span in spans), name


def test_saving_again_replaces_all_that_was_saved(image_folder):
    (image_folder / "calibration.safetensors").write_text("of somebody")
    module, config = make("text")

    weights.save(image_folder, module, config)

    assert weights.load(image_folder).config == config.model
    assert not (image_folder / "tokenizer.json").exists()
    assert (image_folder / "calibration.safetensors").exists()
    assert siblings(image_folder) == ["m"]


def test_saving_over_the_loaded_file_is_safe(image_folder):
    module = weights.load(image_folder)
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    weights.save(image_folder, module, read_config(image_folder))

    assert_same_tensors(weights.load(image_folder).state_dict(), expected)
    assert_same_tensors(module.state_dict(), expected)


def test_interrupted_saving_keeps_the_old_folder(image_folder, monkeypatch):
    contents = {path.name: path.read_bytes() for path in image_folder.iterdir()}

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("onepeace.hub.tensors.write_config", interrupt)
    with pytest.raises(KeyboardInterrupt):
        weights.save(image_folder, *make("text"))

    assert {path.name: path.read_bytes() for path in image_folder.iterdir()} == contents
    assert siblings(image_folder) == ["m"]


def test_saving_the_wrong_tensors_is_refused(tmp_path):
    module, config = make("image")
    state = module.state_dict()
    state.pop("logit_scale")

    with pytest.raises(UserError, match="lack 1"):
        weights.save(tmp_path / "model", state, config)
    with pytest.raises(UserError, match="int8"):
        weights.save(tmp_path / "model", module, config, dtype="int8")
    assert not (tmp_path / "model").exists()


def test_damaged_weights_without_sums_are_refused(image_folder):
    (image_folder / "SHA256SUMS").unlink()
    file = image_folder / "model.safetensors"
    content = file.read_bytes()

    half = len(content) // 2
    cut = [content[:length] for length in (0, 5, 8, 200, half, -1)]
    for damaged in (*cut, b"<html>" * 1000):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged or cut off"):
            weights.load(image_folder)


def test_index_cannot_point_outside_its_folder(folder, tmp_path):
    (tmp_path / "elsewhere.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    index = {"weight_map": {"logit_scale": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(UserError, match=r"m/elsewhere\.safetensors: missing"):
        weights.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_changed_bit_is_refused(image_folder, name):
    content = bytearray((image_folder / name).read_bytes())
    content[len(content) // 3] ^= 1
    (image_folder / name).write_bytes(content)

    with pytest.raises(UserError, match=f"{name}: damaged"):
        weights.load(image_folder)


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files whose SHA-256 was computed."""
    names = []
    real_sha256_of = sums.sha256_of

    def sha256_of(path):
        names.append(path.name)
        return real_sha256_of(path)

    monkeypatch.setattr(sums, "sha256_of", sha256_of)
    return names


def test_weights_are_read_again_once_they_change(folder, hashed):
    """Also if the time is set back."""
    weights.load(folder)
    weights.load(folder)
    assert hashed == ["model.safetensors"]

    path = folder / "model.safetensors"
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match="damaged"):
        weights.load(folder)


def test_changed_settings_are_no_damage(image_folder):
    state = weights.load(image_folder).state_dict()

    rewrite(image_folder, lambda content: content["processors"]["image"].update(size=32))

    assert_same_tensors(weights.load(image_folder).state_dict(), state)
    assert read_config(image_folder).processors["image"]["size"] == 32


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("format", 2, "format 2"),
        ("architecture", "twopeace", r"config\.yaml: architecture .*known: onepeace"),
        ("architecture", ["onepeace"], r"config\.yaml: architecture .*known: onepeace"),
        ("model.depth", 1_000_000_000, r"model\.depth is 1000000000"),
        ("model.num_heads", 0, r"model\.num_heads is 0"),
        ("model.adapters.audio.num_mel", 16, "num_mel"),
        ("model.adapters.audio.stem", "mell", "mell"),
        ("model.adapters.audio.num_mels", "x", "should be int"),
        ("model.adapters.image.patch_size", 0, "should be 1 or more"),
    ],
)
def test_settings_of_no_model_are_one_line(folder, field, value, words):
    def change(content):
        *sections, name = field.split(".")
        for section in sections:
            content = content[section]
        content[name] = value

    rewrite(folder, change)

    with pytest.raises(UserError, match=words) as error:
        weights.load(folder)

    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)
