"""Classifiers of the transformers plug-in: losses, heads, and runs of its Trainer."""

import pytest
import torch
import transformers
from support.embedding import assert_same
from support.processes import start
from support.random_model import save_random_model
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
