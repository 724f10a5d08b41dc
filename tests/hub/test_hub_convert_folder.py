"""What a conversion leaves on the disk: whole folders or none, shards, and how much memory it takes."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from support.crash import on_a_full_disk
from support.golden_cases import assert_embeds_as_golden

from onepeace.cli import main
from onepeace.errors import UsageError, UserError
from onepeace.hub import tensors
from onepeace.hub import weights as weight_files
from onepeace.hub.folder import finish_replacement, new_folder, read_config
from onepeace.hub.weights import convert


@pytest.fixture
def out(checkpoint, tmp_path):
    """The folder of its sounds."""
    return convert(checkpoint, tmp_path / "out", modalities=["audio"])


@pytest.fixture
def holiday(tmp_path):
    """A folder that is no model folder."""
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "a.jpg").write_text("picture")
    return folder


@pytest.mark.parametrize("mark", ["config.yaml", "SHA256SUMS"])
def test_other_folder_is_not_replaced(checkpoint, holiday, mark):
    (holiday / mark).write_text("of another program")

    with pytest.raises(UsageError, match="replaced"):
        convert(checkpoint, holiday, modalities=["audio"], replace_existing=True)

    assert {path.name for path in holiday.iterdir()} == {"a.jpg", mark}


def test_replaced_folder_keeps_other_files(checkpoint, tmp_path, out):
    (out / "figures").mkdir()
    other_files = [out / "thesis.txt", out / "figures" / "1.txt", out / "unlisted.safetensors"]
    for path in other_files:
        path.write_text("three years of work")
    link = tmp_path / "link"
    link.symlink_to(out)

    convert(checkpoint, link, modalities=["image"], replace_existing=True)

    assert link.is_symlink()
    assert list(read_config(out).model.adapters) == ["image"]
    for path in other_files:
        assert path.read_text() == "three years of work"
    assert {path.name for path in tmp_path.iterdir()} == {"link", "one-peace.pt", "out"}


def test_sums_are_those_that_sha256sum_checks(out):
    lines = (out / "SHA256SUMS").read_text().splitlines()
    listed = {line.split()[1] for line in lines[1:]}
    assert listed == {path.name for path in out.iterdir()} - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True)


REPLACE = """
import os, pathlib, sys
from onepeace.hub.folder import new_folder
count = 0
def counted(function):
    def call(*arguments, **options):
        global count
        count += 1
        if count > int(sys.argv[2]):
            os._exit(9)
        return function(*arguments, **options)
    return call
for name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
with new_folder(pathlib.Path(sys.argv[1]), replace=True) as folder:
    (folder / "config.yaml").write_text("new")
os._exit(0)
"""
"""Replaces a folder by another, and ends at a step."""


def test_replacing_killed_at_any_step_loses_nothing(tmp_path):
    contents = []
    code = 9
    while code != 0:
        step = len(contents)
        folder = tmp_path / str(step) / "m"
        with new_folder(folder) as temporary:
            (temporary / "config.yaml").write_text("old")
        (folder / "thesis.txt").write_text("three years of work")

        command = [sys.executable, "-c", REPLACE, str(folder), str(step)]
        code = subprocess.run(command, check=False).returncode
        if not folder.exists():
            with pytest.raises(UserError, match=r"rename .*\.m\.onepeace-\w+\.old to it"):
                read_config(folder)
        for path in folder.parent.glob(".m.onepeace-*.new"):  # killed before it was locked
            os.utime(path, (1, 1))
        finish_replacement(folder)

        contents.append((folder / "config.yaml").read_text())
        assert (folder / "thesis.txt").exists()
        assert [path.name for path in folder.parent.iterdir()] == ["m"]
    num_old = contents.count("old")
    assert contents == ["old"] * num_old + ["new"] * (len(contents) - num_old)
    assert 0 < num_old < len(contents) - 2


@pytest.mark.parametrize("limit", [pytest.param(100, marks=pytest.mark.slow), 40_000])
def test_full_disk_is_one_line_and_leaves_nothing(checkpoint, tmp_path, bpe, limit):
    """Full within the vocabulary, and within the weights."""
    folder = tmp_path / "models" / "m"

    code, err = on_a_full_disk(limit, "convert", checkpoint, "-o", folder, "--bpe", bpe)

    assert code == 1
    assert err.startswith(f"onepeace: {folder}: ")
    assert err.count("\n") == 1
    assert not list(folder.parent.iterdir())


def test_temporary_folder_of_a_running_process_stays(tmp_path):
    folder = tmp_path / "m"
    with new_folder(folder) as temporary:
        finish_replacement(folder)
        (temporary / "config.yaml").write_text("new")
    assert (folder / "config.yaml").exists()


@pytest.fixture
def sharded(checkpoint, tmp_path, bpe, monkeypatch):
    monkeypatch.setattr(tensors, "SHARD_BYTES", 100_000)
    return convert(checkpoint, tmp_path / "sharded", bpe=bpe)


def test_large_models_are_written_in_shards(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shard_names = sorted(set(index["weight_map"].values()))
    assert len(shard_names) > 3
    assert shard_names[0] == f"model-00001-of-{len(shard_names):05d}.safetensors"

    total = 0
    for shard_name in shard_names:
        shard = load_file(sharded / shard_name)
        num_bytes = sum(tensor.nbytes for tensor in shard.values())
        assert num_bytes <= 100_000
        assert {index["weight_map"][name] for name in shard} == {shard_name}
        total += num_bytes
    assert index["metadata"]["total_size"] == total
    assert_embeds_as_golden(weight_files.load(sharded), ["text", "image", "audio"])


def test_command_prints_the_folder(checkpoint, tmp_path, bpe, capsys):
    out = tmp_path / "out"
    command = ["convert", str(checkpoint), "-o", str(out), "--bpe", str(bpe)]

    assert main([*command, "--modalities", "text, image"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert list(read_config(out).model.adapters) == ["text", "image"]
    assert main(command) == 2
    assert main([*command, "--force"]) == 0
