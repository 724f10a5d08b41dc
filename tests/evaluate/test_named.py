"""Public test sets by name, on made-up files in the layouts they are downloaded in, and in CLIP_benchmark's."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from support.clip_benchmark_folder import write_folder
from support.downloads import DOWNLOADS, fill, lines
from support.evaluation import KnownEmbedder, recipe_of

import onepeace
from onepeace.cli import main
from onepeace.embed.zero_shot import TEMPLATES
from onepeace.errors import UserError
from onepeace.evaluate.layouts import class_names
from onepeace.evaluate.named import SETS, named_sets
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
    "cifar10": DOWNLOADS["cifar10"](),
    "cifar100": DOWNLOADS["cifar100"](),
    "audiocaps": words(DOWNLOADS["audiocaps"](), {"sounds/test/ttttttttttt.wav": "test 3"}),
    "clotho": words(DOWNLOADS["clotho"](), {"evaluation/c.wav": "rain"}),
    "esc50": esc50(),
    "urbansound8k": DOWNLOADS["urbansound8k"](),
    "vggsound": DOWNLOADS["vggsound"](),
    "fsd50k": DOWNLOADS["fsd50k"](),
}


def measured(name, root, embedder, *overrides, **options):
    content = {"sets": named_sets(name, root, **options), "data": {"root": str(root)}}
    recipe = recipe_from(content, overrides, name)
    return {(row.set, row.metric): row for row in run(embedder, recipe.sets, root)}


def test_every_name_has_a_made_up_download_here():
    assert set(FOLDERS) == set(SETS)


@pytest.mark.parametrize("name", ["coco", "flickr8k", "flickr30k"])
def test_retrieval_on_karpathys_test_split(name, tmp_path):
    fill(tmp_path, FOLDERS[name])
    embedder = Reader()
    rows = measured(name, tmp_path, embedder)
    assert embedder.seen == ["A dog .", "the dog", "a dog", "my dog", "one dog", "a cat", "the cat"]
    directions = ("text to image", "image to text")
    figures = [*(f"R@{k}" for k in (1, 5, 10)), "mAP@10", "median rank"]
    assert list(rows) == [(name, f"{direction} {figure}") for direction in directions for figure in figures]
    assert all(row.value == 1 for row in rows.values())
    assert [row.n for row in rows.values()] == [7] * 5 + [2] * 5
    one = measured(name, tmp_path, Reader(), f"sets.{name}.one_caption=true")
    assert [row.n for row in one.values()] == [2] * 10
    wrong = measured(name, tmp_path, Reader(shift=1))
    assert wrong[name, "text to image R@1"].value == 0
    assert wrong[name, "image to text median rank"].value == pytest.approx((3 + 6) / 2)  # behind all wrong captions


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
    fill(tmp_path, {"caption_datasets/dataset_coco.json": {"images": [{"filename": "1.jpg", "split": "test"}]}})
    with pytest.raises(UserError, match=r"images, entry 1: expected filename, split and sentences"):
        measured("coco", tmp_path, Reader())


def test_esc50_over_all_five_folds(tmp_path):
    fill(tmp_path, FOLDERS["esc50"])
    embedder = Reader()
    rows = measured("esc50", tmp_path, embedder, probe=True)
    top = rows["esc50", "top-1 of 50"]
    assert (top.value, top.n, top.chance) == (1.0, 10, pytest.approx(1 / 50))
    assert top.about["prompts"] == list(TEMPLATES["audio"])
    assert len(embedder.seen) == 50 * len(TEMPLATES["audio"])
    for metric in ("linear probe top-1 of 2", "20-NN top-1 of 2"):
        row = rows["esc50 probe", metric]
        assert (row.value, row.n) == (1.0, 10)
        assert row.about["note"].startswith("5 folds: ")
    assert rows["esc50 probe", "20-NN top-1 of 2"].about["note"] == f"5 folds: {', '.join(['k = 8'] * 5)}"


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


@pytest.mark.parametrize(
    ("name", "metrics", "numbers"),
    [
        ("cifar10", ("top-1 of 10", "linear probe top-1 of 7"), (2, 2)),
        ("cifar100", ("top-1 of 3", "linear probe top-1 of 3"), (1, 1)),
        ("urbansound8k", ("top-1 of 2", "linear probe top-1 of 2"), (11, 11)),
        ("vggsound", ("top-1 of 3", "linear probe top-1 of 2"), (1, 1)),
    ],
)
def test_real_files_of_labelled_sets(name, metrics, numbers, tmp_path, model):
    fill(tmp_path, FOLDERS[name])
    rows = measured(name, tmp_path, model, probe=True)
    found = [rows[name, metrics[0]], rows[f"{name} probe", metrics[1]]]
    assert tuple(row.n for row in found) == numbers
    assert all(0 <= row.value <= 1 for row in found)


def test_cifar_asks_with_the_sentences_of_clip(tmp_path, model):
    fill(tmp_path, FOLDERS["cifar10"])
    prompts = measured("cifar10", tmp_path, model)["cifar10", "top-1 of 10"].about["prompts"]
    assert (len(prompts), prompts[0], prompts[9], prompts[-1]) == (
        18, "a photo of a {}.", "a photo of the {}.", "a photo of the big {}.",
    )  # fmt: skip


def test_fsd50k_has_several_labels(tmp_path, model):
    fill(tmp_path, FOLDERS["fsd50k"])
    (row,) = measured("fsd50k", tmp_path, model).values()
    assert (row.metric, row.value, row.n) == ("mAP of 1 classes", 1.0, 1)
    with pytest.raises(UserError, match="fsd50k has no probe"):
        named_sets("fsd50k", tmp_path, probe=True)


@pytest.mark.parametrize(("name", "texts"), [("audiocaps", 5), ("clotho", 5)])
def test_retrieval_of_sounds(name, texts, tmp_path):
    fill(tmp_path, FOLDERS[name])
    rows = measured(name, tmp_path, Reader())
    assert rows[name, "text to audio R@1"].n == texts
    assert rows[name, "audio to text mAP@10"].n == 1


def test_an_empty_caption_of_clotho_is_refused(tmp_path):
    head = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    fill(tmp_path, {**FOLDERS["clotho"], "clotho_captions_evaluation.csv": lines(head, "c.wav,a,b,,d,e")})
    with pytest.raises(UserError, match=r"evaluation\.csv:2: no caption_3"):
        measured("clotho", tmp_path, Reader())


def test_a_folder_in_clip_benchmarks_layout_is_read_by_the_same_name(tmp_path, caplog):
    names, own = ("dog", "cat", "acorn"), ("look, a {c}!",)
    samples = [{"webp": name.encode(), "cls": str(i).encode()} for i, name in enumerate(names)]
    write_folder(tmp_path / "cifar10", [*samples, {"webp": b"dog", "cls": b"3"}], classes=names, templates=own)
    write_folder(tmp_path / "cifar10", samples * 4, split="train")
    embedder = Reader()
    rows = measured("cifar10", tmp_path / "cifar10", embedder, "sets.cifar10.at=[1]", probe=True)
    assert rows["cifar10", "top-1 of 3"].value == 1
    assert embedder.seen == ["look, a dog!", "look, a cat!", "look, a acorn!"]
    assert rows["cifar10", "top-1 of 3"].about["prompts"] == ["look, a {}!"]
    assert rows["cifar10 probe", "linear probe top-1 of 3"].value == 1
    assert "s0000003: class 3 is not one of the 3 in classnames.txt" in caplog.text

    captions = [{"jpg": b"dog", "txt": b"a dog\n\nthe dog\n"}, {"jpg": b"cat", "txt": b"a cat"}]
    write_folder(tmp_path / "coco", [*captions, {"jpg": b"cat", "txt": b"\n"}], kind="retrieval")
    rows = measured("coco", tmp_path / "coco", Reader())
    assert (rows["coco", "text to image R@1"].value, rows["coco", "text to image R@1"].n) == (1, 3)
    assert "s0000002: has no text" in caplog.text  # an empty caption is no query

    def flags(*values):
        file = io.BytesIO()
        np.save(file, np.array(values))
        return file.getvalue()

    sounds = [{"ogg": b"dog cat", "npy": flags(1, 1, 0)}, {"ogg": b"cat", "npy": flags(0, 1, 0)}]
    write_folder(tmp_path / "fsd50k", [*sounds, {"ogg": b"cat", "npy": flags(1, 1)}], classes=names, kind="multilabel")
    (row,) = measured("fsd50k", tmp_path / "fsd50k", Reader()).values()
    assert (row.metric, row.value, row.n) == ("mAP of 2 classes", 1.0, 2)
    assert "its .npy has shape (2,), classnames.txt has 3 names" in caplog.text

    (tmp_path / "coco/test/nshards.txt").write_text("x")
    with pytest.raises(UserError, match=r"nshards\.txt: not there, or not a number"):
        measured("coco", tmp_path / "coco", Reader())


def test_class_names_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "classnames.txt").write_text("dog\n\ncat\n", encoding="utf-8-sig")
    assert class_names(tmp_path, "clip_benchmark") == ["dog", "", "cat"]
    (tmp_path / "classnames.txt").write_bytes(b"dog\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"classnames\.txt: cannot be read \('utf-8' codec can't decode byte 0xe9"):
        class_names(tmp_path, "clip_benchmark")


@pytest.mark.parametrize(
    ("layout", "split", "message"),
    [
        ("karpathy", "test", "no layout 'karpathy'; there are tiny_imagenet, .*clip_benchmark"),
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
        ("d", {"audio/5-55-A-5.wav": None}),
    ):
        files = {**FOLDERS["esc50"], **changes}
        fill(tmp_path / folder, {name: content for name, content in files.items() if content is not None})
        rows = measured("esc50", tmp_path / folder, Reader())
        hashes.append(rows["esc50", "top-1 of 50"].about["data_hash"])
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(vars(onepeace), "load", lambda name, device=None: Reader())


def test_the_command_measures_a_name(known, tmp_path, capsys):
    fill(tmp_path, FOLDERS["esc50"])
    arguments = ["evaluate", "esc50", "sets.esc50.at=[1]", "--data", str(tmp_path), "--json", "--probe"]
    assert main([*arguments, "-o", str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["metric"] for row in rows] == ["top-1 of 50", "linear probe top-1 of 2", "20-NN top-1 of 2"]
    saved = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.pop("per_query") for row in saved] == [[1] * 10] * 3
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
        (["recipe.yaml", "--probe"], "--probe"),
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
