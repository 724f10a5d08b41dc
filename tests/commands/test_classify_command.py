"""`onepeace classify` with labels that are given; what task heads say is tested where they are trained."""

import json

import pytest
from support.random_model import save_random_model

# ------------------------------------------------------------------ labels


def test_labels_are_the_best_of_those_given(run_model, model, cat):
    options = ("--labels", "dog, cat,sea,cat", "--top", "2", "--json")
    answer = json.loads(run_model("classify", cat, *options).out)
    assert answer["path"] == str(cat)
    first, _ = answer["labels"]
    (expected,) = model.classify([cat], ["dog", "cat", "sea"])
    assert first["label"] == ["dog", "cat", "sea"][int(expected.argmax())]
    assert first["score"] == pytest.approx(expected.max().item(), abs=2e-5)


def test_labels_of_a_file(run_model, cat, tmp_path):
    (tmp_path / "labels.txt").write_text("dog\n\ncat\n", encoding="utf-8-sig")
    out = run_model("classify", cat, "--labels", tmp_path / "labels.txt", "--template", "this is {a}").out
    header, row = out.splitlines()
    assert header.split() == ["label", "path"]
    assert ("dog" in row.split()) != ("cat" in row.split())  # only the best one


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ((), 1, "heads"),
        (("--labels", " , "), 2, "--labels"),
        (("--labels", "a"), 2, "at least two"),  # it would be 1.00 for every file
        (("--labels", "a,b", "--template", "a photo"), 1, "template"),
        (("--template", "a {}"), 2, "--template"),
        (("--labels", "a,b", "--draw", "boxes"), 2, "--draw"),
    ],
)
def test_wrong_usage_is_one_line(run_model, cat, arguments, code, word):
    out, err = run_model("classify", cat, *arguments, code=code)
    assert out == ""
    assert err.count("\n") == 1
    assert word in err


# ------------------------------------------------------------------ heads


HEAD = {"kind": "classifier", "task": "label", "on": "image", "num_classes": 2, "labels": ["cat", "dog"]}


@pytest.fixture
def with_one_head(tmp_path):
    """A model with a classifier, and a writer, which classifies nothing."""
    writer = {
        "kind": "caption",
        "task": "caption",
        "on": ["image"],
        "vocab_size": 400,
        "dim": 16,
        "depth": 1,
        "num_heads": 2,
        "ffn_dim": 16,
    }
    return save_random_model(tmp_path / "one", heads={"caption": writer, "pets": HEAD})


@pytest.mark.parametrize("options", [["--text", "what"], ["--text", "what", "--labels", "a,b"]])
def test_only_head_is_used_and_refuses_options_it_does_not_read(run_model, with_one_head, cat, options):
    run_model("classify", cat, model=with_one_head)
    out, err = run_model("classify", cat, *options, model=with_one_head, code=2)
    assert out == ""
    assert "--text" in err


@pytest.mark.parametrize(("options", "word"), [([], "--head"), (["--head", "nope"], "animals")])
def test_head_of_several_must_be_named(run_model, cat, tmp_path, options, word):
    model = save_random_model(tmp_path / "two", heads={"pets": HEAD, "animals": HEAD})
    out, err = run_model("classify", cat, *options, model=model, code=2)
    assert out == ""
    assert word in err
