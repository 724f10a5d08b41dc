"""Model folders: written at once, read strictly, without a second copy in memory."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_models import small_model

from onepeace.config import Config, MaskedDecoderConfig, read_yaml
from onepeace.errors import UserError
from onepeace.files import sums
from onepeace.hub import weights
from onepeace.hub.convert.unpickle import read_checkpoint
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import resolve
from onepeace.hub.tensors import open_weights
from onepeace.model import OnePeace
from onepeace.train.folder import model_folder

KEYS = ("text", "image", "audio")
CLASSIFIER = {"classifier": {"kind": "classifier", "on": "image", "num_classes": 5}}


def random_model(*keys: str, **changes) -> tuple[OnePeace, Config]:
    """A model of these modalities, all by default, and its configuration."""
    decoder = MaskedDecoderConfig(16, 1, 2, 24, {"text": {"num_positions": 12}, "image": {"grid": 2}})
    variants = [{"audio": "audio with mel stem"}.get(key, key) for key in keys or KEYS]
    module = small_model(*variants, **{"decoder": None if keys else decoder, **changes})
    return module, Config(module.config, {"image": {"size": 48}})


@pytest.fixture
def folder(tmp_path):
    return weights.save(tmp_path / "model", *random_model(), card="a card\n")


def rewrite(folder, change) -> None:
    """Change the content of a folder's config.yaml."""
    content = read_yaml(folder / "config.yaml")
    change(content)
    (folder / "config.yaml").write_text(json.dumps(content))


def edit(folder, change) -> None:
    """Rewrite the tensors of a folder, which then has no checksums."""
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_saved_model_loads_bit_equal(tmp_path):
    module, config = random_model(heads=CLASSIFIER)
    tokenizer = tmp_path / "t.json"
    tokenizer.write_text("{}")

    folder = weights.save(tmp_path / "deep" / "model", module, config, tokenizer=tokenizer, card="# Card\n")
    loaded = weights.load(folder)

    assert loaded.config == config.model
    assert not loaded.training
    state = module.state_dict()
    assert list(loaded.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert (folder / "MODEL_CARD.md").read_text() == "# Card\n"
    assert (folder / "tokenizer.json").read_text() == "{}"


def test_missing_unexpected_and_misshapen_tensors_are_named_in_one_line(folder):
    def change(tensors):
        tensors["extra.weight"] = torch.zeros(2)
        tensors["heads.text.bias"] = torch.zeros(17)
        for name in [name for name in tensors if ".ffn.audio." in name and name.startswith("blocks.1")]:
            del tensors[name]

    edit(folder, change)
    with pytest.raises(UserError) as error:
        weights.load(folder)
    for part in (str(folder), "blocks.1.ffn.audio.", "extra.weight", "heads.text.bias", "(17,)", "(24,)"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_only_the_requested_modalities_are_read(folder, monkeypatch):
    read = []

    def spied(folder):
        def spy(name, tensor):
            return tensor._replace(read=lambda: read.append(name) or tensor.read())

        return {name: spy(name, tensor) for name, tensor in open_weights(folder).items()}

    monkeypatch.setattr(weights, "open_weights", spied)

    module = weights.load(folder, modalities=["image"])

    assert read
    assert not [name for name in read if ".text." in name or ".audio." in name]
    assert set(read) == set(module.state_dict())
    assert (list(module.config.adapters), module.config.projections) == (["image"], ("image",))
    assert list(module.config.decoder.options) == ["image"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_loaded_weights_are_the_mapped_file(folder):
    module = weights.load(folder)

    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if str(folder / "model.safetensors") in line]
    places = [(int(start, 16), int(end, 16)) for start, end in spans]
    outside = [
        name
        for name, parameter in module.named_parameters()
        if not any(start <= parameter.data_ptr() < end for start, end in places)
    ]
    assert outside == []


def test_saving_again_replaces_all_that_was_saved(tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    folder = weights.save(tmp_path / "models" / "m", *random_model(), tokenizer=tokenizer)
    (folder / "calibration.safetensors").write_text("of somebody")
    module, config = random_model("image")

    weights.save(folder, module, config)

    assert weights.load(folder).config == config.model
    assert not (folder / "tokenizer.json").exists()
    assert (folder / "calibration.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


@pytest.mark.parametrize("find", [weights.load, resolve, lambda folder: model_folder(str(folder.parent))])
def test_model_comes_back_when_its_replacement_was_cut_off(folder, find):
    """A killed process left it between its two renames."""
    folder.rename(folder.with_name(".model.77.old"))
    find(folder)
    assert (folder / "model.safetensors").exists()


def test_folder_holds_a_model_if_configuration_and_weights_are_equal(tmp_path):
    module, config = random_model()
    folder = weights.save(tmp_path / "model", module, config)
    assert weights.holds(folder, module, config)
    assert not weights.holds(tmp_path / "none", module, config)
    assert not weights.holds(folder, *random_model("image"))
    with torch.no_grad():
        module.logit_scale += 1e-6
    assert not weights.holds(folder, module, config)


def test_saving_over_the_file_one_has_loaded_is_safe(folder):
    module = weights.load(folder)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    weights.save(folder, module, read_config(folder))

    again = weights.load(folder).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_interrupted_saving_keeps_the_old_folder(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("onepeace.hub.contents.write_config", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.save(folder, *random_model("image"))

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saving_the_wrong_tensors_is_refused(tmp_path):
    module, config = random_model()
    state = module.state_dict()
    state.pop("logit_scale")

    with pytest.raises(UserError, match="weights lack 1"):
        weights.save(tmp_path / "model", state, config)
    with pytest.raises(UserError, match="dtype 'int8' is not known"):
        weights.save(tmp_path / "model", module, config, dtype="int8")
    assert not (tmp_path / "model").exists()


def test_incomplete_and_damaged_folders_are_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="no such model folder"):
        weights.load(tmp_path / "absent")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="it is empty"):
        weights.load(tmp_path / "other")
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no config\.yaml, so this is no model folder \(it has notes\.txt\)"):
        weights.load(tmp_path / "other")

    (folder / "SHA256SUMS").unlink()
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 5, 8, 200, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged or cut off"):
            weights.load(folder)
    file.write_bytes(b"<html>" * 1000)
    with pytest.raises(UserError, match="damaged or cut off"):
        weights.load(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: missing"):
        weights.load(folder)
    (folder / "model.safetensors.index.json").write_text("[1")
    with pytest.raises(UserError, match="not an index"):
        weights.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("place", [0, 0.37, 0.99])
def test_one_changed_bit_is_refused(tmp_path, name, place):
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}" + 100 * " ")
    folder = weights.save(tmp_path / "m", *random_model("image"), tokenizer=tokenizer)
    content = bytearray((folder / name).read_bytes())
    content[int(place * len(content))] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: damaged"):
        weights.load(folder)


def test_weights_are_read_once_to_compare_them(folder, monkeypatch):
    compared = []
    real = sums.sha256_of
    monkeypatch.setattr(sums, "sha256_of", lambda path: compared.append(path.name) or real(path))
    for _ in range(2):
        weights.load(folder)
    assert compared == ["model.safetensors"]
    os.utime(folder / "model.safetensors", (1, 1))
    weights.load(folder)
    assert compared == 2 * ["model.safetensors"]


def test_changed_settings_are_no_damage(folder):
    rewrite(folder, lambda content: content["processors"]["image"].update(size=32))
    weights.load(folder)


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("", {"depth": 1_000_000_000}, r"model\.depth is 1000000000; it should be from 1 to 1,000"),
        ("", {"depth": -1}, r"model\.depth is -1; it should be"),
        ("", {"num_heads": 0}, r"model\.num_heads is 0; it should be 1 or more"),
        ("", {"embed_dim": 0}, r"model\.embed_dim is 0"),
        ("audio", {"num_mel": 16}, "cannot be built .*'num_mel'"),
        ("audio", {"stem": "mell"}, "no stem 'mell'"),
        ("audio", {"num_mels": "x"}, "cannot be built"),
        ("image", {"patch_size": 0}, "patches of 16, not 0"),
        ("text", {"vocab_size": -1}, "cannot be built"),
    ],
)
def test_settings_of_no_model_are_one_line(folder, section, changes, said):
    rewrite(folder, lambda content: _part(content["model"], section).update(changes))
    with pytest.raises(UserError, match=said) as error:
        weights.load(folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


def _part(model, section):
    return model["adapters"][section] if section else model


def test_index_cannot_point_outside_its_folder(folder, tmp_path):
    (tmp_path / "elsewhere.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    index = '{"weight_map": {"logit_scale": "../elsewhere.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)

    with pytest.raises(UserError, match=r"model/elsewhere\.safetensors: missing"):
        weights.load(folder)


def test_description_needs_no_tensor(folder, tmp_path, monkeypatch):
    found = weights.describe(folder)
    assert (found.layout, found.config) == ("model folder", read_config(folder))
    assert found.tensors["logit_scale"][:2] == ((), torch.float32)
    assert sum(math.prod(shape) for shape in found.shapes.values()) == sum(
        parameter.numel() for parameter in weights.load(folder).parameters()
    )

    from support.hub_layouts import cfg, released, wrapper

    from onepeace.hub.convert.unpickle import StoredTensor

    torch.save(wrapper(released(), cfg()), tmp_path / "one-peace.pt")
    monkeypatch.setattr(StoredTensor, "read", lambda self: pytest.fail("a tensor was read"))
    found = weights.describe(tmp_path / "one-peace.pt")
    assert found.layout == "original layout"
    assert found.tensors["adapters.text.token_embed.weight"][:2] == ((160, 32), torch.float32)
    assert list(found.config.model.adapters) == ["text", "image", "audio"]
    assert len(read_checkpoint(tmp_path / "one-peace.pt")["model"]) > len(found.tensors)


@pytest.mark.parametrize("name", ["twopeace", ["onepeace"], 3])
def test_unknown_architecture_lists_the_known(folder, name):
    rewrite(folder, lambda content: content.update(architecture=name))

    with pytest.raises(UserError, match=r"config\.yaml: architecture .* is not known; known: onepeace"):
        weights.load(folder)
