"""What `onepeace info` tells is what the model is."""

import json
import os
import shutil

import pytest
import torch
from support.hub_layouts import cfg, released, vision_branch, wrapper

from onepeace.cli import main
from onepeace.commands.info import parameters_by_part
from onepeace.config import SIZES, Config, ModelConfig, build
from onepeace.files.sums import read_sums
from onepeace.hub import weights
from onepeace.hub.folder import check_content
from onepeace.hub.resolve import BUNDLED_NAMES, resolve


def info(capsys, path) -> dict:
    assert main(["info", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_parts_of_the_released_size_have_the_numbers_of_the_original():
    """Counted on the original's modules; of audio less an embedding of 1536 that nothing used."""
    parts = parameters_by_part(weights.expected(Config(build(ModelConfig, SIZES["4b"], "4b"))))
    assert parts["adapter text"] == 78_008_880
    assert parts["adapter image"] == 3_390_816
    assert parts["adapter audio"] == 19_040_816 - 1536
    assert parts["attention"] == 377_794_560
    assert [parts[f"FFN {key}"] for key in ("text", "image", "audio")] == [1_133_015_040] * 3
    assert parts["norms and gains"] == 368_640 + 9_216
    assert parts["projections"] == 3 * 2_360_832 + 1
    assert set(parts) == {"adapter text", "adapter image", "adapter audio", "attention", "FFN text", "FFN image",
                          "FFN audio", "norms and gains", "projections", "decoder"}  # fmt: skip
    assert parameters_by_part({"blocks.1.clips.video.time.up.bias": (32,)}) == {"adapters between frames": 32}


def test_info_of_a_folder(capsys, random_folder):
    report = info(capsys, random_folder)
    module = weights.load(random_folder)
    assert report["parameters"]["total"] == sum(p.numel() for p in module.parameters())
    assert report["parameters"]["attention"] == sum(p.numel() for b in module.blocks for p in b.attn.parameters())
    assert report["file_bytes"] == (random_folder / "model.safetensors").stat().st_size
    assert report["dtype"] == "float32"
    assert report["modalities"] == ["text", "image", "audio"]
    assert report["memory_bytes"]["float32"] == 4 * report["parameters"]["total"]


def test_info_for_people_names_what_matters(capsys, random_folder):
    assert main(["info", str(random_folder)]) == 0
    out = capsys.readouterr().out
    total = sum(parameter.numel() for parameter in weights.load(random_folder).parameters())
    for text in ("model folder", "float32", "dim 32, embed_dim 16, depth 2, num_heads 4, ffn_dim 48", "adapter audio",
                 "FFN text", "memory, bfloat16", f"{total:,} parameters"):  # fmt: skip
        assert text in out


@pytest.mark.parametrize(
    ("content", "layout", "modalities"),
    [
        (lambda: wrapper(released(), cfg()), "original layout", ["text", "image", "audio"]),
        (lambda: {"model": vision_branch()}, "without cfg", ["image"]),
    ],
)
def test_info_of_an_original_checkpoint_counts_its_tensors(tmp_path, capsys, content, layout, modalities):
    path = tmp_path / "released.pt"
    torch.save(content(), path)
    report = info(capsys, path)
    assert layout in report["layout"]
    assert report["modalities"] == modalities
    stored = {k: v for k, v in content()["model"].items() if "rp_bucket" not in k and "version" not in k}
    dropped = sum(t.numel() for k, t in stored.items()) - report["parameters"]["total"]
    assert 0 <= dropped < 0.02 * report["parameters"]["total"]  # what the original stores and never uses
    assert report["file_bytes"] == path.stat().st_size


def test_info_of_a_name_that_is_not_here_downloads_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path))
    for name, message in (("one-peace", "is not on this machine"), ("one-paece", "did you mean one-peace")):
        assert main(["info", name]) == 1
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_info_of_a_folder_without_weights_says_so(tmp_path, capsys, random_folder):
    (tmp_path / "config.yaml").write_text((random_folder / "config.yaml").read_text())
    assert main(["info", str(tmp_path)]) == 1
    assert "model.safetensors: missing" in capsys.readouterr().err


def test_info_compares_all_of_the_weights_each_time(tmp_path, capsys, random_folder):
    folder = shutil.copytree(random_folder, tmp_path / "m")
    assert main(["info", str(folder)]) == 0
    file = folder / "model.safetensors"
    times, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # a disk changes no time
    capsys.readouterr()
    assert main(["info", str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file}: damaged" in line


@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_bundled_models_are_what_their_checksums_say(name):
    folder = resolve(name)
    assert {"model.safetensors", "tokenizer.json"} <= read_sums(folder).digests.keys()
    check_content(folder, again=True)
