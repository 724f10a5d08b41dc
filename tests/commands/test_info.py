"""What `onepeace info` tells is what the model is."""

import json
import os
import re
import shutil

import pytest

from onepeace.commands.info import parameters_by_part
from onepeace.config import SIZES, Config, ModelConfig, build
from onepeace.hub import weights
from onepeace.hub.tensors import expected


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parts_of_the_released_size_have_the_numbers_of_the_original():
    """Counted on the original's modules; of audio less an embedding of 1536 that nothing used."""
    parts = parameters_by_part(expected(Config(build(ModelConfig, SIZES["4b"], "4b"))))
    assert parts.pop("decoder")
    assert parts == {
        "adapter text": 78_008_880,
        "adapter image": 3_390_816,
        "adapter audio": 19_040_816 - 1536,
        "attention": 377_794_560,
        "FFN text": 1_133_015_040,
        "FFN image": 1_133_015_040,
        "FFN audio": 1_133_015_040,
        "norms and gains": 368_640 + 9_216,
        "projections": 3 * 2_360_832 + 1,
    }


def test_info_of_a_folder(run, random_folder):
    out, err = run("info", random_folder, "--json")
    assert err == ""
    about = json.loads(out)
    module = weights.load(random_folder)
    total = num_parameters(module)
    assert about["parameters"]["total"] == total
    assert about["parameters"]["attention"] == sum(num_parameters(block.attn) for block in module.blocks)
    assert about["file_bytes"] == (random_folder / "model.safetensors").stat().st_size
    assert about["dtype"] == "float32"
    assert about["modalities"] == ["text", "image", "audio"]
    assert about["memory_bytes"]["float32"] == 4 * total


@pytest.mark.parametrize(
    ("name", "code", "message"), [("one-peace", 1, "not on this machine"), ("one-paece", 2, "mean one-peace")]
)
def test_info_of_a_name_that_is_not_here_downloads_nothing(tmp_path, monkeypatch, run, name, code, message):
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path))
    assert message in run("info", name, code=code).err
    assert list(tmp_path.iterdir()) == []


def test_info_compares_all_of_the_weights_each_time(tmp_path, run, random_folder):
    folder = shutil.copytree(random_folder, tmp_path / "m")
    run("info", folder)
    file = folder / "model.safetensors"
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # a disk changes no time

    (line,) = run("info", folder, code=1).err.splitlines()
    assert f"{file}: damaged" in line


def test_report_says_how_texts_are_prepared(run):
    out, _ = run("info", "tiny")
    assert re.search("^text preparation +lower case", out, re.MULTILINE)
