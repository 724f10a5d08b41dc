import json

import pytest

from onepeace.cli import main
from onepeace.commands import plot
from onepeace.errors import UserError
from onepeace.train.recipe import from_yaml, read_recipe, to_yaml

FULL = """
seed: 3
model: {size: tiny, drop_path: 0.1}
media: {image: {size: 96}}
tokenizer: {vocab_size: 4000}
data:
  root: ${ONEPEACE_DATA}
  train:
    - {shards: "image/*.tar", pair: [image, text], weight: 0.5}
    - {shards: "audio/*.tar", pair: [audio, text]}
  valid: [{shards: "valid.tar", pair: [image, text]}]
  templates: {image: ["a photo of a {}"]}
  augment: {image: {crop_scale: [0.5, 1.0], flip: true}, audio: {gain_db: 6}}
  drop: {image: 0.5}
mask: {text: {alone: 0.15, together: 0.4, unit: word}, audio: {together: 0.45, unit: span}}
objective: {contrastive: {weight: 1.0}, denoising/text: {weight: 0.5, scale: 2.5}}
freeze: {except: ["adapters.audio.*"]}
optim: {lr: 1e-3, grad_clip: null}
schedule: {steps: 2e4, warmup_ratio: 0.1}
run: {out: runs/x, batch_size: {image+text: 256, audio+text: 64}}
evaluate: {retrieval: {at: [1, 5]}}
"""


@pytest.fixture
def full(tmp_path):
    path = tmp_path / "full.yaml"
    path.write_text(FULL)
    return path


def test_fields_are_typed(full):
    recipe = read_recipe(full)
    assert recipe.optim.lr == 1e-3  # YAML reads 1e-3 as text
    assert recipe.optim.grad_clip is None
    assert (recipe.schedule.steps, recipe.schedule.warmup) == (20000, 2000)
    assert recipe.data.train[0].pair == ("image", "text")
    assert recipe.mask["audio"].alone is None
    assert (recipe.batch_size("image+text"), recipe.batch_size("audio+text")) == (256, 64)
    assert recipe.freeze == {"except": ("adapters.audio.*",)}
    with pytest.raises(AttributeError):
        recipe.seed = 4


def test_recipe_to_yaml_and_back(full):
    recipe = read_recipe(full)
    assert from_yaml(to_yaml(recipe), "again") == recipe
    assert to_yaml(from_yaml(to_yaml(recipe), "again")) == to_yaml(recipe)


def test_overrides_replace_fields(full):
    overrides = ["run.batch_size=8", "optim.lr=2e-4", "data.train.1.weight=3", "data.root=/x", "seed=8", "seed=9",
                 "objective.denoising/text.weight=0.1", "evaluate.new.deep=[1, 2]"]  # fmt: skip
    recipe = read_recipe(full, overrides)
    assert recipe.batch_size("audio+text") == 8
    assert recipe.optim.lr == 2e-4
    assert recipe.data.train[1].weight == 3
    assert recipe.data.root == "/x"
    assert recipe.objective["denoising/text"] == {"weight": 0.1, "scale": 2.5}
    assert recipe.evaluate["new"] == {"deep": [1, 2]}
    assert recipe.seed == 9


def test_base_is_merged_field_by_field(full):
    child = full.parent / "child.yaml"
    child.write_text(
        "base: full.yaml\noptim: {lr: 7.0e-4}\nobjective: {denoising/text: null, denoising/image: {weight: 2}}\n"
        "mask: {audio: null}\ndata: {drop: {image: null}, train: [{shards: a.tar, pair: [image, text]}]}\n"
    )
    recipe = read_recipe(child)
    assert recipe.optim.lr == 7e-4
    assert recipe.optim.grad_clip is None  # of the base
    assert recipe.objective == {"contrastive": {"weight": 1.0}, "denoising/image": {"weight": 2}}
    assert set(recipe.mask) == {"text"}
    assert recipe.data.drop == {}
    assert len(recipe.data.train) == 1
    grandchild = full.parent / "grandchild.yaml"
    grandchild.write_text("base: child.yaml\n")
    with pytest.raises(UserError, match=r"child\.yaml has a base itself"):
        read_recipe(grandchild)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"full\.yaml: optim\.lrr is not a field; did you mean optim\.lr\?"),
        ("data.train.0.wieght=1", r"data\.train\[0\]\.wieght is not a field; did you mean data\.train\[0\]\.weight\?"),
        ("mask.text.unit=words", "unit 'words' is not known; known: word, token, patch, span"),
        ("run.batch_size={image+text: 4}", r"run\.batch_size has no audio\+text"),
        ("run.batch_size=0", r"run\.batch_size 0 should be at least 1"),
        ("run.precision=float64", "'float64' is not known; known: auto, float32, bfloat16"),
        ("schedule.name=linear", "'linear' is not known; known: cosine, constant"),
        ("data.train.1.pair=[text, image]", r"image\+text and text\+image; use one order"),
        ("data.train.0.pair=[image, image]", "should be different modalities"),
        ("data.train.0.weight=0", "should be above 0"),
        ("data.batches=by_sauce", "'by_sauce' is not known; known: mixed, by_source"),
        ("data.train=[]", r"data\.train is empty"),
        ("data.augment.image.zoom=2", r"zoom is not a field"),
        ("data.templates.image=[a photo]", "has no {} for the class name"),
        ("data.drop.image=1.5", r"data\.drop\.image is 1\.5"),
        ("optim.betas=[0.9]", "should be two numbers"),
        ("seed=-1", "should not be negative"),
        ("evaluate={retrieval: {on: valid}}", "the key True is no text.*quote it"),
        ("data.train.7.weight=1", "7 is not one of the list's places, 0 to 1"),
        ("optim.lr.x=1", "lr is a value and has no fields"),
        ("optim.lr", "is not an override; write it as a.b=value"),
        ("optim.lr=[", "the value is not YAML"),
    ],
)
def test_mistakes_are_one_line(full, override, message):
    with pytest.raises(UserError, match=message) as caught:
        read_recipe(full, [override])
    assert "\n" not in str(caught.value)


# onepeace plot


BOOKKEEPING = {
    "grad_norm": 1.5, "replaced": 0.25, "padding": 0.05, "lr": 1e-3, "items_per_second": 10.5, "data_wait": 0.01,
    "seconds": 0.5, "logit_scale": 20.0, "peak_gigabytes": 1.5,
}  # fmt: skip
"""What the loop logs besides losses and scores."""


def write_run(folder, steps, offset=0.0):
    folder.mkdir(parents=True)
    lines = [
        {"step": step, "loss": 5 / step + offset, "denoising/image": 1.0, **BOOKKEEPING}
        for step in range(10, steps + 1, 10)
    ]
    lines.append({"step": steps, "valid/emoji": 0.25 + offset, "valid": {"esc50": {"top1": 0.5}}})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_plot_draws_every_loss_and_score_of_all_runs(tmp_path, capsys, monkeypatch):
    drawn = {}
    draw = plot.draw
    monkeypatch.setattr(plot, "draw", lambda curves, output: (drawn.update(curves), draw(curves, output)))
    runs = [write_run(tmp_path / "runs" / name, steps) for name, steps in (("a", 40), ("b", 2000))]
    assert main(["plot", *runs, "-o", str(tmp_path / "new" / "plot.png")]) == 0
    assert {name: set(curves) for name, curves in drawn.items()} == {
        name: {"loss", "denoising/image", "valid/emoji", "valid/esc50/top1"} for name in ("a", "b")
    }
    assert drawn["a"]["loss"] == [(step, 5 / step) for step in (10, 20, 30, 40)]
    assert "4 curves of 2 runs" in capsys.readouterr().out
    from PIL import Image

    with Image.open(tmp_path / "new" / "plot.png") as picture:
        assert picture.width > 600
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
    assert {tuple(bytes.fromhex(color[1:])) for color in plot.COLORS[:2]} <= colors


def test_plot_names_a_run_by_what_distinguishes_it(tmp_path):
    runs = [write_run(tmp_path / "x" / "seed1", 20), write_run(tmp_path / "y" / "seed1", 20)]
    assert list(plot.labels(runs)) == ["x/seed1", "y/seed1"]
    assert list(plot.labels([f"{runs[0]}/log.jsonl"])) == ["seed1"]


def test_plot_of_nothing_is_an_error(tmp_path, capsys):
    assert main(["plot", str(tmp_path), "-o", str(tmp_path / "x.png")]) == 1
    assert "log.jsonl: no such file" in capsys.readouterr().err
    run = write_run(tmp_path / "a", 20)
    assert main(["plot", run, "-o", str(tmp_path / "x.png"), "--from-step", "30"]) == 1
    assert "nothing to draw" in capsys.readouterr().err


def test_plot_tells_losses_from_scores():
    assert [plot.is_loss(name) for name in ("loss", "denoising/text", "contrastive/audio+text", "valid/emoji")] == [
        True, True, True, False,
    ]  # fmt: skip
