"""Public test sets by name, on made-up files in the layouts they are downloaded in."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.downloads import DOWNLOADS, fill, lines
from support.evaluation import KnownEmbedder, recipe_of

import onepeace
from onepeace.cli import main
from onepeace.embed.zero_shot import TEMPLATES
from onepeace.errors import UserError
from onepeace.evaluate.named import SETS, named_set
from onepeace.evaluate.run import recipe_from, run


class Reader(KnownEmbedder):
    """A file, at a path or as bytes, means the words that occur in it."""

    def encode_image(self, items):
        contents = [item.read_bytes() if isinstance(item, Path) else item for item in items]
        return self._encode([content.decode(errors="replace") for content in contents], self.shift)

    encode_audio = encode_image


def karpathy(name, files, more=()):
    """Two pictures of the test split, a dog and a cat with their captions, and one of another split."""
    rows = [
        {
            "filename": file,
            "filepath": "val2014",
            "split": split,
            "sentences": [{"raw": caption} for caption in captions],
        }
        for file, split, captions in (
            (files[0], "test", ["A dog .", "the  dog", "a dog", "my dog", "one dog", "cat, the sixth caption"]),
            (files[1], "test", ["a cat", " ", "the cat"]),
            (files[2], "train", ["rain"]),
            *more,
        )
    ]
    pictures = {f"val2014/{file}": word for file, word in zip(files, ("dog", "cat", "rain"), strict=True)}
    return {f"caption_datasets/dataset_{name}.json": {"images": rows, "dataset": name}, **pictures}


def esc50():
    """Two classes in five folds; the sounds are words that `Reader` knows."""
    content = {0: "dog", 5: "cat"}
    return {f"audio/{f}-{10 * f + t}-A-{t}.wav": content[t] for f in range(1, 6) for t in (0, 5)}


def words(files, texts):
    """The files with texts in place of pictures and sounds."""
    return {**files, **texts}


FOLDERS = {
    "coco": karpathy("coco", [f"COCO_val2014_00000000000{i}.jpg" for i in (1, 2, 3)]),
    "flickr8k": karpathy("flickr8k", ["1_a.jpg", "2_b.jpg", "3_c.jpg"]),
    "flickr30k": karpathy("flickr30k", ["1.jpg", "2.jpg", "3.jpg"]),
    "imagenet": DOWNLOADS["imagenet"](),
    "audiocaps": words(DOWNLOADS["audiocaps"](), {"sounds/test/ttttttttttt.wav": "test 3"}),
    "clotho": words(DOWNLOADS["clotho"](), {"evaluation/c.wav": "rain"}),
    "esc50": esc50(),
    "urbansound8k": DOWNLOADS["urbansound8k"](),
    "vggsound": DOWNLOADS["vggsound"](),
    "fsd50k": DOWNLOADS["fsd50k"](),
}


def measured(name, root, embedder, *overrides):
    content = {"sets": {name: named_set(name)}, "data": {"root": str(root)}}
    recipe = recipe_from(content, overrides, name)
    return {(row.set, row.metric): row for row in run(embedder, recipe.sets, root)}


def test_every_name_has_a_made_up_download_here():
    assert set(FOLDERS) == set(SETS)


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_retrieval_on_karpathys_test_split(name, tmp_path):
    fill(tmp_path, FOLDERS[name])
    embedder = Reader()
    rows = measured(name, tmp_path, embedder)
    assert embedder.seen == ["A dog .", "the dog", "a dog", "my dog", "one dog", "a cat", "the cat"]
    directions = ("text to image", "image to text")
    figures = [f"R@{k}" for k in (1, 5, 10)]
    assert list(rows) == [(name, f"{direction} {figure}") for direction in directions for figure in figures]
    assert all(row.value == 1 for row in rows.values())
    assert [row.n for row in rows.values()] == [7] * 3 + [2] * 3
    wrong = measured(name, tmp_path, Reader(shift=1))
    assert wrong[name, "text to image R@1"].value == 0


def test_a_picture_or_a_split_of_karpathy_that_is_not_there_is_named(tmp_path, caplog):
    files = karpathy("coco", ["1.jpg", "2.jpg", "3.jpg"], more=[("4.jpg", "test", ["a dog"])])
    fill(tmp_path, files)
    assert measured("coco", tmp_path, Reader())["coco", "image to text R@1"].n == 2
    assert "karpathy_coco test: 1 left out: " in caplog.text
    assert "4.jpg is not below" in caplog.text
    with pytest.raises(UserError, match=r"has no split 'tset'; it has test, train"):
        measured("coco", tmp_path, Reader(), "sets.coco.split=tset")
    with pytest.raises(UserError, match=r"set flickr8k: .*holds no dataset_flickr8k\.json"):
        measured("flickr8k", tmp_path, Reader())


def test_esc50_over_all_five_folds_and_a_probe_of_the_last(tmp_path):
    fill(tmp_path, FOLDERS["esc50"])
    embedder = Reader()
    items = "modality: audio, layout: esc50"
    own = f"sets.probe={{protocol: probe, {items}, split: val, train: {{{items}, split: train}}}}"
    rows = measured("esc50", tmp_path, embedder, own)
    top = rows["esc50", "top-1 of 50"]
    assert (top.value, top.n, top.chance) == (1.0, 10, pytest.approx(1 / 50))
    assert top.about["prompts"] == list(TEMPLATES["audio"])
    assert len(embedder.seen) == 50 * len(TEMPLATES["audio"])
    row = rows["probe", "linear probe top-1 of 2"]
    assert (row.value, row.n) == (1.0, 2)


@pytest.mark.slow
def test_imagenet_with_openais_names_and_sentences(tmp_path):
    """Two classes of one name have equal scores: neither is ever the first."""
    fill(tmp_path, FOLDERS["imagenet"])
    seen = []

    class Names:
        def encode_text(self, texts):
            seen.extend(texts)
            return np.array([["tench" in text, "missile" in text, 0.1] for text in texts], dtype=np.float32)

        def encode_image(self, items):
            order = ("tench", "missile", "missile")
            found = [order[("n01440764", "n03773504", "n04008634").index(item.parent.name)] for item in items]
            return np.array([[name == "tench", name == "missile", 0] for name in found], dtype=np.float32)

    rows = measured("imagenet", tmp_path, Names())
    assert (len(seen), seen[0]) == (80_000, "a bad photo of a tench.")
    assert rows["imagenet", "top-1 of 1000"].value == pytest.approx(1 / 3)
    assert rows["imagenet", "top-5 of 1000"].value == 1
    assert len(rows["imagenet", "top-1 of 1000"].about["prompts"]) == 80


def test_fsd50k_has_several_labels(tmp_path, model):
    fill(tmp_path, FOLDERS["fsd50k"])
    (row,) = measured("fsd50k", tmp_path, model).values()
    assert (row.metric, row.value, row.n) == ("mAP of 1 classes", 1.0, 1)


def test_retrieval_of_sounds(tmp_path):
    fill(tmp_path, FOLDERS["clotho"])
    rows = measured("clotho", tmp_path, Reader())
    assert (rows["clotho", "text to audio R@1"].n, rows["clotho", "audio to text R@1"].n) == (5, 1)
    head = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    fill(tmp_path, {**FOLDERS["clotho"], "clotho_captions_evaluation.csv": lines(head, "c.wav,a,b,,d,e")})
    with pytest.raises(UserError, match=r"evaluation\.csv:2: no caption_3"):
        measured("clotho", tmp_path, Reader())


@pytest.mark.parametrize(
    ("layout", "split", "message"),
    [
        ("karpathy", "test", "no layout 'karpathy'; there are tiny_imagenet, .*karpathy_coco"),
        ("esc50", "test", "layout esc50 has no split 'test'; there are val, train, all"),
        ("coco", "val", "holds no captions_val2017.json"),
    ],
)
def test_a_layout_that_is_not_there_is_named(layout, split, message, tmp_path):
    recipe = f"""sets: {{a: {{protocol: retrieval, modality: image, layout: {layout}, split: {split}}}}}"""
    with pytest.raises(UserError, match=message):
        list(run(Reader(), recipe_of(tmp_path, recipe).sets, tmp_path))


def test_the_data_hash_is_of_the_content_and_not_of_the_place(tmp_path):
    hashes = []
    for folder, changes in (
        ("a", {}),
        ("b", {}),
        ("c", {"audio/1-10-A-0.wav": "dog and more"}),
    ):
        files = {**FOLDERS["esc50"], **changes}
        fill(tmp_path / folder, files)
        rows = measured("esc50", tmp_path / folder, Reader())
        hashes.append(rows["esc50", "top-1 of 50"].about["data_hash"])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(vars(onepeace), "load", lambda name, device=None: Reader())


def test_the_command_measures_a_name(known, tmp_path, capsys):
    fill(tmp_path, FOLDERS["esc50"])
    arguments = ["evaluate", "esc50", "sets.esc50.at=[1]", "--data", str(tmp_path), "--json"]
    assert main([*arguments, "-o", str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["metric"] for row in rows] == ["top-1 of 50"]
    saved = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.pop("per_query") for row in saved] == [[1] * 10]
    assert saved == rows
    assert rows[0]["protocol"] == "zero_shot"
    assert (rows[0]["options"]["layout"], rows[0]["options"]["split"]) == ("esc50", "all")
    assert (rows[0]["interval"], rows[0]["n"], rows[0]["dtype"]) == ([1.0, 1.0], 10, "float32")
    assert rows[0]["version"] == onepeace.__version__
    assert (len(rows[0]["model_hash"]), len(rows[0]["data_hash"])) == (16, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to measure"),
        (["esc60"], "esc60: "),
        (["esc50", "sets.esc50.one_caption=true"], "one_caption"),
        (["esc50", "-o", "nowhere/x.jsonl"], "nowhere"),
        (["esc50", "--compare", "a", "b"], "--compare"),
    ],
)
def test_a_wrong_command_line_is_named(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments, "--data", str(tmp_path)]) in (1, 2)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
