"""The terms of models that write: the original's loss, runs that go on to the bit, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from support.generative import save_trainable_ofa
from support.golden_ofa import GRADIENT, OUTPUT, assert_near, golden, golden_ofa, part
from support.random_model import save_random_model
from support.training import assert_same_weights, logged, recipe, source, terms

import onepeace
from onepeace.config import read_yaml
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.evaluate.captions import CiderReward
from onepeace.generative.infilling import mask_words
from onepeace.generative.tasks import Task
from onepeace.hub.convert.ofa import to_ours
from onepeace.losses import TokenLosses
from onepeace.train import loop
from onepeace.train.model_config import make_config
from onepeace.train.passes import Passes
from onepeace.train.terms.generation import Generation, Prepared

CAPTION = {"generation": {"task": "caption", "label_smoothing": 0.1}}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return save_trainable_ofa(tmp_path_factory.mktemp("models") / "ofa")


def writing(root, out, start, steps=4, objective=CAPTION, model=(), data=(), run=(), **fields):
    """A recipe on the squares."""
    return recipe(
        root,
        out,
        steps,
        model={"from": str(start), **dict(model)},
        data=data,
        run={"batch_size": 4, "log_every": 1, **dict(run)},
        objective=objective,
        processors={"image": {"size": 32}},
        **fields,
    )


class Numbers:
    """A tokenizer of texts that are ids."""

    def encode(self, text, add_special_tokens):
        return SimpleNamespace(ids=[int(word) for word in text.split()])


def golden_term(model, task, **options):
    (options,) = terms({"generation": {"task": "caption", "label_smoothing": 0.1, **options}})
    return Generation(options, model, Prepared(task, Numbers()))


def texts(rows, skip=()):
    """Rows of ids as texts."""
    return [" ".join(str(one) for one in row if one not in (0, 1, 2, *skip)) for row in rows.tolist()]


@pytest.mark.parametrize("name", ["caption", "closed_answers"])
def test_loss_and_gradients_are_the_originals(name):
    case, shared, model = golden(name), golden("caption"), golden_ofa()
    batch = {"inputs": {"image": {"pixels": shared["pixels"]}}, "keys": ["a", "b", "c"], "captions": texts(case["ids"])}
    task = Task(" {text}")
    if name == "caption":
        term = golden_term(model, task, writes="told")
        targets = {"told": texts(case["target"])}
    else:
        choices = ["10 12 13", "10 11 14", "10 11", "20", "21", "55"]
        task = Task(" {text}", answer="choice", choices=choices, decoder_prompt="source")
        term = golden_term(model, task, writes="answers", weighted=True)
        answers = zip(texts(case["target"]), case["weights"].tolist(), strict=True)
        targets = {"answers": [{answer: weight, "21": 0.1, "rare": 1.0} for answer, weight in answers]}

    outputs = term.outputs(Passes(model, Batch(**batch, targets=targets)))
    outputs.loss.sum().backward()

    assert len(outputs.loss) == case["out.ntokens"]
    assert_near(outputs.loss.sum().detach(), case["out.loss"], OUTPUT)
    assert_near(outputs.nll.sum().detach(), case["out.nll_loss"], OUTPUT)
    (mean,) = term.loss(outputs, Batch(**batch), model).values()
    assert_near(mean.detach() * case["out.ntokens"], case["out.loss"], OUTPUT)
    parameters, gradients = dict(model.named_parameters()), part(case, "grad.")
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for original, gradient in gradients.items():
        found = parameters[to_ours(original)].grad
        assert found.shape == gradient.shape
        assert bool(found.isfinite().all())
        worst = (found - gradient).abs().max()
        assert worst <= max(GRADIENT * gradient.abs().max(), 1e-6 * largest), original


OBJECTIVES = {
    "written": {"generation": {"task": "infill", "changes": {"image": {}}, "mask_share": 0.3, "drop_worst": 0.2,
                               "drop_worst_after": 3, "patches": 3}},
    "self-critical": {"self_critical": {"changes": {"search": {"beam": 2, "max_len": 3}}}},
}  # fmt: skip


@pytest.fixture
def graded(monkeypatch):
    """Rewards that differ: what a model says that knows nothing is worth 0."""

    def reward(self, texts, references):
        assert len(texts) == len(references)
        assert all(len(captions) == 1 and captions[0].endswith("square") for captions in references)
        return [1.0 - i % 2 for i in range(len(texts))]

    monkeypatch.setattr(CiderReward, "__call__", reward)


@pytest.mark.usefixtures("graded")
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_run_goes_on_to_the_bit(root, start, tmp_path, kind):
    model = {"dropout": 0.2, "drop_path": 0.3, "freeze_stem_norms": False}
    run = {"save_every": 2, "ema": 0.9}
    made = {name: writing(root, tmp_path / name, start, 5, OBJECTIVES[kind], model, run=run) for name in ("a", "b")}
    loop.train(made["a"])
    loop.train(made["b"], stop_at=3)
    loop.train(made["b"])
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    assert [line["step"] for line in logged(tmp_path / "a") if line["grad_norm"] > 0] == [1, 2, 3, 4, 5]
    assert_same_weights(tmp_path / "a" / "model", tmp_path / "b" / "model")


def test_parts_of_a_batch_have_the_loss_and_gradient_of_the_whole(root, start, tmp_path):
    objective = {"generation": {**CAPTION["generation"], "drop_worst": 0.3}}
    lines = []
    for chunks in (1, 2):
        run = {"grad_cache_chunks": chunks}
        loop.train(writing(root, tmp_path / str(chunks), start, 2, objective, run=run))
        lines.append(logged(tmp_path / str(chunks)))
    for one, other in zip(*lines, strict=True):
        assert one["generation"] == pytest.approx(other["generation"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_statistics_of_the_stem_move_only_where_that_is_asked_for(root, start, tmp_path, frozen):
    folder = loop.train(
        writing(root, tmp_path, start, 1, model={"freeze_stem_norms": frozen}, freeze=["decoder.token*"])
    )
    before, after = (load_file(path / "model.safetensors") for path in (start, folder))
    assert torch.equal(before["encoder.stem.bn1.running_mean"], after["encoder.stem.bn1.running_mean"]) == frozen
    assert torch.equal(before["decoder.token_embed.weight"], after["decoder.token_embed.weight"])
    assert not torch.equal(before["decoder.norm.weight"], after["decoder.norm.weight"])


def test_the_worst_tokens_are_left_out_after_a_number_of_updates():
    term = golden_term(golden_ofa(), Task("x"), drop_worst=0.5, drop_worst_after=2)
    outputs, batch = TokenLosses(torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.zeros(4)), Batch({})
    for step, mean in ((1, 2.5), (2, 2.5), (3, 1.5)):
        term.step = step
        assert term.loss(outputs, batch, None)["generation"] == mean


def test_a_folder_keeps_the_tasks_that_it_was_trained_for(root, start, tmp_path):
    first = {"generation": {"task": "name it", "changes": {"prompt": " what?", "search": {"max_len": 2}}}}
    folder = loop.train(writing(root, tmp_path / "first", start, 1, first))
    assert list(read_yaml(folder / "tasks.yaml")) == ["name it"]
    second = loop.train(writing(root, tmp_path / "second", tmp_path / "first", 1))
    assert list(read_yaml(second / "tasks.yaml")) == ["name it", "caption"]
    generator = onepeace.load_generator(second)
    assert generator.tasks["name it"].prompt == " what?"
    assert generator.reader.processors(generator.tasks["caption"])["image"].height == 32


@pytest.mark.usefixtures("graded")
def test_a_caption_head_is_trained_for_its_own_captions(root, tmp_path):
    adapters = {"text": {"vocab_size": 400, "num_positions": 40, "num_buckets": 8},
                "image": {"patch_size": 16, "grid": 2, "bias_grid": 2}}  # fmt: skip
    head = {"kind": "caption", "on": ["image"], "vocab_size": 400, "dim": 16, "depth": 1, "num_heads": 2, "ffn_dim": 16}
    base = save_random_model(tmp_path / "base", ("text", "image"), adapters=adapters, heads={"caption": head})
    search = {"beam": 2, "max_len": 48}
    objective = {"self_critical/image": {"head": "caption", "changes": {"search": search}}}
    with pytest.raises(UserError, match=r"max_len is 48, and what writes has 48 places, .*{search: {max_len: 47}}"):
        make_config(writing(root, tmp_path / "run", base, 2, objective))
    search["max_len"] = 4
    made = writing(root, tmp_path / "run", base, 2, objective, freeze={"except": ["heads.caption.*"]})
    folder = loop.train(made)
    assert all(line["self_critical/image/reward"] == 0.5 for line in logged(tmp_path / "run"))
    assert all(line["grad_norm"] > 0 for line in logged(tmp_path / "run"))
    assert onepeace.load_generator(folder).tasks["caption"].search.beam == 2


def test_captions_become_what_is_rewarded(root, start, tmp_path, monkeypatch):
    monkeypatch.setattr(CiderReward, "__call__", lambda self, texts, references: [len(text) / 9 for text in texts])
    objective = {"self_critical": {"changes": {"search": {"beam": 3, "max_len": 3}}}}
    loop.train(writing(root, tmp_path, start, 12, objective, optim={"lr": 5e-3}))
    rewards = [line["self_critical/reward"] for line in logged(tmp_path)]
    assert min(rewards[-3:]) > 1.2 * max(rewards[:2])


def test_words_are_masked_in_spans():
    torch.manual_seed(0)
    text = " ".join(f"w{i}" for i in range(40))
    gone = []
    for _ in range(50):
        words = mask_words(text, 0.3).split()
        kept = [word for word in words if word != "<mask>"]
        assert kept == [word for word in text.split() if word in set(kept)]
        assert "<mask>" in words
        gone.append(40 - len(kept))
    assert max(gone) == 12  # 30 % of the words, but where spans lie over one another
    assert sum(gone) / len(gone) > 9
    assert mask_words("one", 0.3) == "<mask>"
    assert mask_words("", 0.3) == ""


def objective(**options):
    return {"objective": {"generation": {"task": "caption", **options}}}


LABELLED = {"data": {"train": [source(targets=["label"])]}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (objective(task="capton"), r"objective\.generation\.task 'capton' is not known, .* known: caption, answer"),
        (objective(changes={"beam": 3}), r"objective\.generation\.changes.*beam"),
        (objective(writes="label"), "needs label of its samples; add it to targets of squares.tar"),
        (objective(task="infill"), "the task infill reads no picture, and image.text is of image, text"),
        ({"optim": {"layer_decay": 0.9}}, "optim.layer_decay: the blocks of a model that writes are not in one row"),
        ({"model": {"freeze_stem_norms": False}, "run": {"grad_cache_chunks": 2}}, "needs run.grad_cache_chunks=1"),
        ({"model": {"modalities": ["image"]}}, "models of architecture ofa have no choice of them"),
        ({"objective": {"self_critical": {"changes": {"search": {"max_len": 2000}}}}}, "max_len is 2000, and what"),
        ({"objective": {"self_critical": {}}, "run": {"parallel": "fsdp"}}, "needs the whole model"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(root, start, tmp_path, fields, message):
    with pytest.raises(UserError, match=message) as error:
        make_config(writing(root, tmp_path, start, **fields))
    assert "\n" not in str(error.value)
