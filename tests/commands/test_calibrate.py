"""`onepeace calibrate` on a table, shards and a folder: the same numbers every time, and one line for mistakes."""

import csv
import re

import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.numpy import load_file
from support.small_shards import COLOURS, square, write_shard

from onepeace.cli import main
from onepeace.data.sample import Sample
from onepeace.hub.fingerprint import fingerprint
from onepeace.index.calibration import FILE, Calibration
from onepeace.index.sampling import draw_samples, embed, read

COUNT = 130


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pictures and sounds, each with a caption of its own."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    with open(folder / "captions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "audio", "caption"])
        for i in range(COUNT):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.1, 8000), 16000)
            rows.writerow([f"{i}.png", "", f"picture {i}"])
            rows.writerow(["", f"{i}.wav", f"sound {i}"])
    return folder / "captions.csv"


def calibrate(*arguments):
    return main(["calibrate", *map(str, arguments), "--device", "cpu"])


def test_a_table_gives_banks_and_goes_into_the_model_folder(table, random_folder, tmp_path, capsys):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert calibrate(random_folder, table, "-o", first, "--prior", "0.02") == 0
    out, err = capsys.readouterr()
    counts = re.search(rf"banks of (\d+) image, (\d+) audio, 130 text in {re.escape(str(first))}", err)
    assert int(counts[1]) + int(counts[2]) == 130
    own = Calibration.load(first, embed_dim=16, model=fingerprint(random_folder))
    assert own.about["sources"] == ["captions.csv"]
    assert own.about["samples"] == 2 * COUNT
    assert all(fit.prior == pytest.approx(0.02) for fit in own.platt.values())
    assert all(" to ".join(pair) in out for pair in own.platt)
    assert calibrate(random_folder, table, "-o", second, "--prior", "0.02") == 0
    for name, tensor in load_file(first).items():
        assert tensor.tolist() == load_file(second)[name].tolist()
    assert calibrate(random_folder, table, "--samples", "70") == 0
    try:
        assert Calibration.load(random_folder).about["samples"] == 140
        assert calibrate(random_folder, "nothing.csv") == 2
        assert "give --force to replace it, or -o FILE" in capsys.readouterr().err
        assert calibrate(random_folder, table, "--samples", "80", "--force") == 0
        assert Calibration.load(random_folder).about["samples"] == 160
    finally:
        (random_folder / FILE).unlink()


def test_a_folder_gives_banks_alone_and_what_is_broken_is_listed(table, random_folder, tmp_path, capsys):
    folder = tmp_path / "own"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.png").write_bytes((table.parent / f"{i}.png").read_bytes())
    (folder / "questions.txt").write_text("\n\n".join(f"question {i}" for i in range(35)))
    (folder / "broken.png").write_bytes(b"no picture")
    output = tmp_path / "c.safetensors"
    assert calibrate(random_folder, folder, "-o", output, "--plot", tmp_path / "c.png") == 1
    err = capsys.readouterr().err
    assert "broken.png" in err
    assert "too few pairs for match probabilities" in err
    assert "c.png: not drawn" in err
    own = Calibration.load(output)
    assert {key: bank.count for key, bank in own.banks.items()} == {"image": 40, "text": 35}
    assert own.platt == {}


def test_shards_give_classes_that_match_and_a_diagram(random_folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    samples = {}
    for i in range(200):
        colour = list(COLOURS)[i % len(COLOURS)]
        about = {"captions": [f"{colour} square {i}", f"square {i}"], "label": colour}
        samples[f"s{i}"] = (square(COLOURS[colour], rng), about)
    write_shard(tmp_path / "squares-0.tar", samples)
    output = tmp_path / "c.safetensors"
    assert calibrate(random_folder, tmp_path / "squares-*.tar", "-o", output, "--plot", tmp_path / "c.png") == 0
    assert ("image", "image") in Calibration.load(output).platt
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_a_folder_that_cannot_be_written_is_said_before_the_work(random_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    assert calibrate(random_folder, "nothing.csv", "-o", tmp_path / "c.safetensors") == 1
    assert "c.safetensors: cannot be written" in capsys.readouterr().err


def test_samples_are_drawn_evenly_and_always_the_same(table):
    drawn = [[sample.captions[0] for sample in draw_samples(read(str(table), []), 20)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 40  # of pictures and of sounds
    assert sum(caption.startswith("picture") for caption in drawn[0]) == 20
    numbers = [int(caption.split()[1]) for caption in drawn[0][:20]]
    assert max(numbers) > 80  # not the first ones


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing.csv"], 2, "nothing.csv: no such file or folder"),
        (["nothing"], 2, "nothing: is no folder, and no table or shard by its ending"),
        (["none-*.tar"], 1, "no shard matches"),
        (["{table}", "--prior", "1"], 2, "'1' is not a number between 0 and 1"),
        (["{table}", "--samples", "20"], 1, "vectors is too small; give at least 30"),
        (["{table}", "-o", "{table}/x"], 2, "there is no folder"),
        (["{empty}"], 1, "nothing in it can be used"),
    ],
)
def test_mistakes_are_one_line(table, random_folder, tmp_path, capsys, arguments, code, message):
    known = {"{table}": str(table), "{empty}": str(tmp_path)}
    filled = [known.get(word, word.replace("{table}", str(table))) for word in arguments]
    assert calibrate(random_folder, *filled) == code
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (random_folder / FILE).exists()


def test_texts_about_pictures_and_about_sounds_weigh_the_same_and_equal_ones_are_one(model):
    rng = np.random.default_rng(0)
    wave = (rng.normal(0, 0.1, 8000).astype(np.float32), 16000)
    pictures = [Sample("", "", {"image": square((9, 9, 9), rng), "text": [f"a {i}", f"b {i}"]}, {}) for i in range(2)]
    sounds = [
        Sample("", "", {"audio": wave, "text": ["rain", f"rain {i}", f"the rain {i}"]}, {"label": "rain"})
        for i in range(5)
    ]
    found = embed(model, [*pictures, *sounds], 8, [])
    texts = found["text"]
    about_sounds = texts.samples >= 2
    assert texts.weights[about_sounds].sum() == pytest.approx(1)
    assert texts.weights[~about_sounds].tolist() == pytest.approx([0.25] * 4)
    assert texts.weights[about_sounds].max() >= 0.2  # "rain", of several sounds
    assert len(np.unique(texts.vectors, axis=0)) == len(texts.vectors)
    assert len(set(texts.groups[about_sounds]) | set(found["audio"].groups)) == 1
    assert found["image"].groups.tolist() == texts.groups[~about_sounds][::2].tolist()
    assert len(set(found["image"].groups)) == 2
