"""What a conversion leaves on the disk: whole folders or none, shards, and how much memory it takes."""

import json
import resource
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from support.crash import on_a_full_disk
from support.golden_cases import assert_embeds_as_golden
from support.hub_layouts import (
    vision_branch,
)

from onepeace.cli import main
from onepeace.errors import UsageError, UserError
from onepeace.hub import tensors
from onepeace.hub import weights as weight_files
from onepeace.hub.convert.convert import convert
from onepeace.hub.folder import new_folder, put_back, read_config


@pytest.mark.slow  # the quick one: test_interrupted_saving_keeps_the_old_folder
def test_killed_conversion_leaves_nothing_that_loads(checkpoint, tmp_path, bpe):
    # A process that dies cannot clean up: what it wrote so far must not pass for a model.
    program = f"""
import os
from onepeace.hub.convert.convert import convert
from onepeace.hub.convert.unpickle import StoredTensor
StoredTensor.read = lambda self: os._exit(9)
convert({str(checkpoint)!r}, {str(tmp_path / "out")!r}, bpe={str(bpe)!r})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9

    assert not (tmp_path / "out").exists()
    (rest,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    with pytest.raises(UserError, match="no config"):
        weight_files.load(rest)
    assert convert(checkpoint, tmp_path / "out", bpe=bpe).is_dir()


def test_existing_folders_are_not_overwritten_by_accident(checkpoint, tmp_path):
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "a.jpg").write_text("picture")
    with pytest.raises(UserError, match="exists"):
        convert(tmp_path / "not read yet.pt", other, modalities=["audio"])
    for mark in ("config.yaml", "SHA256SUMS"):
        (other / mark).write_text("of another program")
        with pytest.raises(UsageError, match="it will not be replaced"):
            convert(checkpoint, other, modalities=["audio"], replace_existing=True)
        (other / mark).unlink()
    with pytest.raises(UserError, match="is a file"):
        convert(checkpoint, checkpoint, modalities=["audio"], replace_existing=True)
    assert [path.name for path in other.iterdir()] == ["a.jpg"]

    out = convert(checkpoint, tmp_path / "out", modalities=["audio"])
    convert(checkpoint, out, modalities=["image"], replace_existing=True)
    assert list(read_config(out).model.adapters) == ["image"]


def test_replaced_folder_keeps_what_was_not_written_by_us(checkpoint, tmp_path):
    out = convert(checkpoint, tmp_path / "out", modalities=["audio"])
    (out / "thesis.txt").write_text("three years of work")
    (out / "figures").mkdir()
    (out / "figures" / "1.txt").write_text("a figure")
    (out / "unlisted.safetensors").write_text("of another program")
    link = tmp_path / "link"
    link.symlink_to(out)

    convert(checkpoint, link, modalities=["image"], replace_existing=True)

    assert link.is_symlink()
    assert list(read_config(out).model.adapters) == ["image"]
    assert (out / "thesis.txt").read_text() == "three years of work"
    assert (out / "figures" / "1.txt").exists()
    assert (out / "unlisted.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "one-peace.pt", "out"]


def test_sums_are_those_that_sha256sum_checks(checkpoint, tmp_path):
    out = convert(checkpoint, tmp_path / "out", modalities=["image"])
    listed = {line.split()[1] for line in (out / "SHA256SUMS").read_text().splitlines()[1:]}
    assert listed == {path.name for path in out.iterdir()} - {"SHA256SUMS"}
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(command, cwd=out, check=False, stdout=subprocess.DEVNULL).returncode == 0


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


def test_replacing_killed_at_any_step_loses_nothing(tmp_path):
    contents = []
    for steps in range(50):
        out = tmp_path / str(steps) / "m"
        with new_folder(out) as folder:
            (folder / "config.yaml").write_text("old")
        (out / "thesis.txt").write_text("three years of work")

        code = subprocess.run([sys.executable, "-c", REPLACE, str(out), str(steps)], check=False).returncode
        assert put_back(out)

        contents.append((out / "config.yaml").read_text())
        assert (out / "thesis.txt").exists()
        assert [path.name for path in out.parent.iterdir()] == ["m"]
        if code == 0:
            break
    switch = contents.index("new")
    assert contents == ["old"] * switch + ["new"] * (len(contents) - switch)
    assert 0 < switch < len(contents) - 2


@pytest.mark.parametrize("limit", [100, 4000, 40_000])  # of the vocabulary, of its end, of the weights
def test_full_disk_is_one_line_and_leaves_nothing(checkpoint, tmp_path, bpe, limit):
    out = tmp_path / "models" / "m"
    code, err = on_a_full_disk(limit, "convert", checkpoint, "-o", out, "--bpe", bpe)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"onepeace: {out}: cannot be written (")
    assert not list(out.parent.iterdir())


def test_temporary_folder_of_a_running_process_stays(tmp_path):
    out = tmp_path / "m"
    with new_folder(out) as folder:
        put_back(out)
        (folder / "config.yaml").write_text("new")
    assert (out / "config.yaml").exists()


def test_large_models_are_written_in_shards(checkpoint, tmp_path, bpe, monkeypatch):
    monkeypatch.setattr(tensors, "SHARD_BYTES", 100_000)
    folder = convert(checkpoint, tmp_path / "out", bpe=bpe)

    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    total = 0
    for name in files:
        with safe_open(folder / name, framework="pt") as file:
            sizes = [file.get_tensor(key).nbytes for key in file.keys()]
            assert all(index["weight_map"][key] == name for key in file.keys())
        assert sum(sizes) <= 100_000
        total += sum(sizes)
    assert index["metadata"]["total_size"] == total
    assert_embeds_as_golden(weight_files.load(folder), ["text", "image", "audio"])

    (folder / files[1]).unlink()
    with pytest.raises(UserError, match=f"{files[1]}: missing"):
        weight_files.load(folder)


def test_command_converts_and_reports(checkpoint, tmp_path, bpe, capsys):
    out = tmp_path / "out"
    arguments = ["convert", str(checkpoint), "-o", str(out), "--bpe", str(bpe)]
    assert main([*arguments, "--modalities", "text, image"]) == 0
    output = capsys.readouterr()
    assert output.out == f"{out}\n"
    assert list(read_config(out).model.adapters) == ["text", "image"]

    assert main(arguments) == 2
    assert main([*arguments, "--force"]) == 0
    assert main(["convert", str(tmp_path / "absent.pt"), "-o", str(tmp_path / "x")]) == 2
    assert main(["convert", str(out), "-o", str(tmp_path / "x"), "--bpe", str(bpe)]) == 2
    assert main(["convert"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("onepeace:") for line in lines)


MEASURE = """
import resource, sys
import torch
from onepeace.hub.convert.convert import convert
from onepeace.hub import tensors
tensors.SHARD_BYTES = 8_000_000
convert(sys.argv[1], sys.argv[2], modalities=["image"])  # once small: imports and warm-up are not counted
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[3], sys.argv[4])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="peak memory is not measured here")
def test_conversion_takes_the_memory_of_one_file_of_weights(checkpoint, tmp_path):
    width, ffn, depth = 512, 2048, 13
    large = {}
    for name, tensor in vision_branch().items():
        if tensor.dtype == torch.int64:
            continue
        shape = [{32: width, 64: ffn, 8: width // 4}.get(size, size) for size in tensor.shape]
        numbers = [*range(depth)] if ".layers.0." in name else [0] if ".layers." not in name else []
        for i in numbers:
            large[name.replace(".layers.0.", f".layers.{i}.")] = torch.zeros(shape)
    path = tmp_path / "large.pt"
    torch.save({"model": large}, path)
    biggest = max(tensor.nbytes for tensor in large.values())
    size = path.stat().st_size
    assert size > 36 * biggest > 140_000_000
    del large

    arguments = [checkpoint, tmp_path / "small", path, tmp_path / "out"]
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024

    assert sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")) > 0.99 * size
    assert growth < 6 * biggest < size / 5
