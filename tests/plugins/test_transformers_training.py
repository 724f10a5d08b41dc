"""Classifiers of the transformers plug-in: losses, heads, and runs of its Trainer."""

import pytest
import torch
import transformers
from support.embedding import assert_same
from support.processes import start
from support.random_model import save_random_model
from support.small_models import assert_gradients_everywhere
from support.transformers_classes import arguments_of, check_same_outputs
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

import onepeace.plugins.transformers as plugin

CLASSIFIERS = [
    plugin.OnePeaceForImageClassification,
    plugin.OnePeaceForAudioClassification,
]
every_class = pytest.mark.parametrize("cls", CLASSIFIERS, ids=lambda cls: cls.__name__)


@pytest.fixture
def inputs():
    """Two items; the second sound is padded."""
    padding_mask = torch.ones(2, 9000, dtype=torch.int64)
    padding_mask[1, 6000:] = 0
    return {
        "pixel_values": torch.randn(2, 3, 32, 32),
        "input_values": torch.randn(2, 9000),
        "padding_mask": padding_mask,
    }


SCORES = torch.tensor([[1.0, 0.5, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("problem_type", "loss", "labels"),
    [
        ("single_label_classification", cross_entropy, torch.tensor([2, 0])),
        ("multi_label_classification", binary_cross_entropy_with_logits, SCORES),
        ("regression", mse_loss, SCORES),
    ],
)
@every_class
def test_loss_follows_the_labels(cls, problem_type, loss, labels, random_name, inputs):
    model = cls.from_onepeace(random_name, num_labels=3)
    if problem_type == "regression":
        model.config.problem_type = problem_type

    outputs = model(**arguments_of(model, inputs), labels=labels)

    assert outputs.logits.shape == (2, 3)
    assert_same(outputs.loss, loss(outputs.logits, labels))
    assert model.config.problem_type == problem_type
    assert model(**arguments_of(model, inputs)).loss is None


def test_logits_do_not_depend_on_padding(random_name, inputs):
    model = plugin.OnePeaceForAudioClassification.from_onepeace(random_name, num_labels=3)
    logits = model(inputs["input_values"], inputs["padding_mask"]).logits
    assert_same(model(inputs["input_values"][1:, :6000]).logits[0], logits[1])


HEAD = {
    "kind": "classifier",
    "on": "image",
    "num_classes": 2,
    "labels": ["cat", "dog"],
    "pool": "mean",
    "hidden_ratio": 0,
}


@pytest.fixture
def headed_folder(tmp_path):
    """A model of pictures with a head of its own."""
    return str(save_random_model(tmp_path / "model", ("image",), heads={"classifier": HEAD}))


def test_head_of_the_model_is_kept(headed_folder, inputs, tmp_path):
    model = plugin.OnePeaceForImageClassification.from_onepeace(headed_folder)
    model.save_pretrained(tmp_path / "saved")
    loaded = plugin.OnePeaceForImageClassification.from_pretrained(tmp_path / "saved")

    assert model.onepeace.config.heads == {"classifier": HEAD}
    assert model.onepeace.heads["classifier"].out.bias.any()
    assert loaded.config.id2label == {0: "cat", 1: "dog"}
    check_same_outputs(loaded, model, inputs)


def test_head_with_other_classes_is_new(headed_folder):
    kept_head = plugin.OnePeaceForImageClassification.from_onepeace(headed_folder).onepeace.heads["classifier"]
    model = plugin.OnePeaceForImageClassification.from_onepeace(headed_folder, num_labels=3)

    head = model.onepeace.heads["classifier"]
    assert head.out.weight.shape[0] == 3
    assert torch.equal(head.norm.weight, kept_head.norm.weight)
    assert not head.out.bias.any()


def make_trainer(model, rows, output, **options):
    pytest.importorskip("accelerate")
    arguments = transformers.TrainingArguments(
        output_dir=output,
        gradient_checkpointing=True,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **options,
    )
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


def test_trainer_learns_two_classes(random_name, tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(16):
        shade = 1.0 - 2 * (number % 2)
        pixels = shade + 0.1 * torch.randn(3, 32, 32, generator=generator)
        rows.append({"pixel_values": pixels, "labels": number % 2})
    model = plugin.OnePeaceForImageClassification.from_onepeace(random_name, num_labels=2)
    trainer = make_trainer(
        model,
        rows,
        tmp_path,
        max_steps=8,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        logging_steps=1,
    )

    first_loss = trainer.evaluate()["eval_loss"]
    trainer.train()
    trainer.save_model(tmp_path / "trained")

    assert model.onepeace.blocks[0].gradient_checkpointing
    assert trainer.evaluate()["eval_loss"] < 0.5 * first_loss
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "trained")
    logits = loaded(torch.stack([row["pixel_values"] for row in rows])).logits
    assert logits.argmax(1).tolist() == [row["labels"] for row in rows]


@pytest.fixture
def rows(inputs):
    """Eight labelled items, each with its own picture and sound."""
    rows = []
    for number in range(8):
        row = {name: tensor[number % 2] for name, tensor in inputs.items()}
        row["pixel_values"] = row["pixel_values"] * (1 + number)
        row["input_values"] = row["input_values"] * (1 + number)
        row["labels"] = number % 3
        rows.append(row)
    return rows


def train_with_checkpointing(cls, folder, rows, output, batch_size):
    """Two steps of transformers' Trainer, in this process or with those that torchrun started beside it."""
    torch.manual_seed(0)
    trainer = make_trainer(
        cls.from_onepeace(folder, num_labels=3),
        rows,
        output,
        max_steps=2,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-2,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0,
    )
    trainer.train()
    return trainer


def train_and_save(folder, rows, output):
    """Train a model of each class in this process and its sibling; each process saves its weights."""
    for cls in CLASSIFIERS:
        trainer = train_with_checkpointing(cls, folder, rows, output, batch_size=2)
        assert trainer.args.world_size == 2
        assert not trainer.args.ddp_find_unused_parameters
        torch.save(trainer.model.state_dict(), output / f"{cls.__name__}-{trainer.args.process_index}.pt")


def test_two_processes_with_gradient_checkpointing_train_as_one(random_name, rows, tmp_path):
    start(2, train_and_save, random_name, rows, tmp_path)

    for cls in CLASSIFIERS:
        trainer = train_with_checkpointing(cls, random_name, rows, tmp_path, batch_size=4)
        first = torch.load(tmp_path / f"{cls.__name__}-0.pt", weights_only=True)
        second = torch.load(tmp_path / f"{cls.__name__}-1.pt", weights_only=True)
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cls", CLASSIFIERS, ids=lambda cls: cls.__name__)
def test_loss_reaches_every_parameter(cls, inputs):
    """The items have more than one token each: a pooling of one token would give its queries no gradient."""
    model = cls.from_onepeace("tiny", num_labels=3)
    inputs["pixel_values"] = torch.randn(2, 3, 64, 64)
    inputs["input_values"] = torch.randn(2, 18000)
    inputs["padding_mask"] = torch.ones(2, 18000, dtype=torch.int64)
    model(**arguments_of(model, inputs), labels=torch.tensor([0, 2])).loss.backward()
    assert_gradients_everywhere(model)
