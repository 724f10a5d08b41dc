"""Classifiers of the transformers plug-in: losses, heads, and a run of its Trainer."""

import pytest
import torch
import transformers
from support.processes import start
from support.random_model import save_random_model

import onepeace.plugins.transformers as plugin
from onepeace.hub import weights

INPUTS = {
    plugin.OnePeaceForImageClassification: ("pixel_values",),
    plugin.OnePeaceForAudioClassification: ("input_values", "padding_mask"),
    plugin.OnePeaceForVisualQuestionAnswering: ("input_ids", "attention_mask", "pixel_values"),
}


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[5, 9, 2, 1], [7, 8, 20, 2]])
    return {
        "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
        "input_values": torch.randn(2, 9000, generator=generator),
        "padding_mask": (torch.arange(9000) < torch.tensor([[9000], [6000]])).long(),
        "input_ids": ids,
        "attention_mask": (ids != 1).long(),
    }


@pytest.mark.parametrize("cls", INPUTS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_losses_are_the_library_s(cls, problem, random_folder, inputs):
    model = cls.from_onepeace(str(random_folder), id2label={0: "cat", 1: "dog", 2: "bus"})
    labels = torch.tensor([2, 0]) if problem.startswith("single") else torch.tensor([[1.0, 0.5, 0], [0, 0, 1]])
    model.config.problem_type = None if problem != "regression" else problem
    given = {name: inputs[name] for name in INPUTS[cls]}
    got = model(**given, labels=labels)
    assert got.logits.shape == (2, 3)
    assert model.config.id2label[1] == "dog"
    want = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
        "regression": torch.nn.functional.mse_loss,
    }[problem](got.logits, labels)
    assert torch.isfinite(want)
    torch.testing.assert_close(got.loss, want)
    assert model.config.problem_type == problem
    assert model(**given).loss is None
    for name in ("input_ids", "input_values"):  # without its padding, an item has the same logits
        if name in given:
            length = given["attention_mask" if name == "input_ids" else "padding_mask"].sum(1)
            row = int(length.argmin())
            alone = {key: value[row : row + 1] for key, value in given.items()}
            alone[name] = alone[name][:, : int(length[row])]
            alone.pop("attention_mask", None), alone.pop("padding_mask", None)
            torch.testing.assert_close(model(**alone).logits[0], got.logits[row], atol=1e-5, rtol=0)


def test_logits_of_a_question_see_both_and_come_from_our_head(random_folder, inputs):
    model = plugin.OnePeaceForVisualQuestionAnswering.from_onepeace(str(random_folder), num_labels=4)
    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    ours = {"text": {"ids": inputs["input_ids"]}, "image": {"pixels": inputs["pixel_values"]}}
    logits = model(**given).logits
    torch.testing.assert_close(logits, model.onepeace.predict(ours), atol=1e-5, rtol=0)
    other = model(**{**given, "pixel_values": given["pixel_values"].flip(0)}).logits
    assert (other - logits).abs().max() > 1e-3


HEAD = {"kind": "classifier", "on": "image", "num_classes": 5, "pool": "mean", "hidden_ratio": 0}


def test_a_model_s_own_head_is_kept_unless_the_classes_differ(tmp_path, inputs):
    folder = str(save_random_model(tmp_path / "model", ("image",), heads={"classifier": HEAD}))
    own = plugin.OnePeaceForImageClassification.from_onepeace(folder)
    fresh = plugin.OnePeaceForImageClassification.from_onepeace(folder, num_labels=3)
    assert own.config.num_labels == 5
    assert own.onepeace.config.heads == {"classifier": HEAD}
    assert fresh.onepeace.config.heads == {"classifier": {**HEAD, "num_classes": 3}}
    kept, new = own.onepeace.heads["classifier"], fresh.onepeace.heads["classifier"]
    assert torch.equal(kept.norm.weight, new.norm.weight)
    assert (new.out.bias == 0).all()
    assert (kept.out.bias != 0).any()
    own.save_pretrained(tmp_path / "saved")
    again = plugin.OnePeaceForImageClassification.from_pretrained(tmp_path / "saved")
    assert again.config.num_labels == 5
    assert torch.equal(again(inputs["pixel_values"]).logits, own(inputs["pixel_values"]).logits)


def test_names_of_the_classes_are_kept_unless_the_classes_differ(tmp_path):
    head = {**HEAD, "num_classes": 2, "labels": ["cat", "dog"]}
    folder = str(save_random_model(tmp_path / "model", ("image",), heads={"classifier": head}))
    own = plugin.OnePeaceForImageClassification.from_onepeace(folder)
    fresh = plugin.OnePeaceForImageClassification.from_onepeace(folder, num_labels=3)
    assert own.config.id2label == {0: "cat", 1: "dog"}
    assert own.config.label2id == {"cat": 0, "dog": 1}
    assert fresh.onepeace.config.heads == {"classifier": {**HEAD, "num_classes": 3}}


def test_the_trainer_lowers_a_loss(random_folder, tmp_path):
    pytest.importorskip("accelerate")
    model = plugin.OnePeaceForImageClassification.from_onepeace(str(random_folder), num_labels=2)
    generator = torch.Generator().manual_seed(0)
    shades = [torch.full((3, 32, 32), 1.0 - 2 * (i % 2)) for i in range(16)]
    rows = [
        {"pixel_values": shade + 0.1 * torch.randn(shade.shape, generator=generator), "labels": i % 2}
        for i, shade in enumerate(shades)
    ]
    arguments = transformers.TrainingArguments(
        output_dir=tmp_path,
        max_steps=8,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        logging_steps=1,
        gradient_checkpointing=True,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert model.onepeace.blocks[0].gradient_checkpointing
    after = trainer.evaluate()["eval_loss"]
    assert 0 <= after < 0.5 * before
    trainer.save_model(tmp_path / "trained")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "trained")
    pixels = torch.stack([row["pixel_values"] for row in rows])
    with torch.no_grad():
        assert torch.equal(again(pixels).logits, model.eval()(pixels).logits)
        assert (again(pixels).logits.argmax(1) == torch.tensor([row["labels"] for row in rows])).all()


ROWS = 8


def rows_of(cls, inputs):
    """A data set of labelled items, each with its own input."""
    rows = []
    for index in range(ROWS):
        row = {name: inputs[name][index % 2] for name in INPUTS[cls]}
        for name in ("pixel_values", "input_values"):
            if name in row:
                row[name] = row[name] * (1 + index)
        rows.append({**row, "labels": index % 3})
    return rows


def train_with_checkpointing(cls, folder, rows, output, batch_size):
    """Two steps of transformers' Trainer, in this process or with those that torchrun started beside it."""
    torch.manual_seed(0)
    model = cls.from_onepeace(str(folder), num_labels=3)
    arguments = transformers.TrainingArguments(
        output_dir=output,
        max_steps=2,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-2,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0,
        gradient_checkpointing=True,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    return trainer


def train_and_save(rows_by_class, folder, output):
    """Train a model of each class in this process and its sibling; each process saves its weights."""
    for cls, rows in rows_by_class.items():
        trainer = train_with_checkpointing(cls, folder, rows, output, batch_size=2)
        assert trainer.args.world_size == 2
        assert not trainer.args.ddp_find_unused_parameters
        torch.save(trainer.model.state_dict(), output / f"{cls.__name__}-{trainer.args.process_index}.pt")


def test_two_processes_with_gradient_checkpointing_train_as_one(random_folder, inputs, tmp_path):
    pytest.importorskip("accelerate")
    rows_by_class = {cls: rows_of(cls, inputs) for cls in INPUTS}
    start(2, train_and_save, rows_by_class, random_folder, tmp_path)
    for cls, rows in rows_by_class.items():
        states = [torch.load(tmp_path / f"{cls.__name__}-{rank}.pt", weights_only=True) for rank in range(2)]
        alone = train_with_checkpointing(cls, random_folder, rows, tmp_path, batch_size=4).model.state_dict()
        torch.manual_seed(0)
        before = cls.from_onepeace(str(random_folder), num_labels=3).state_dict()
        moved = [name for name, value in alone.items() if not torch.equal(value, before[name])]
        assert len(moved) > len(alone) // 2
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name]), name
            torch.testing.assert_close(value, alone[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cls", INPUTS, ids=lambda cls: cls.__name__)
def test_the_loss_reaches_every_parameter_of_a_classifier(cls, inputs):
    model = cls.from_onepeace("tiny", num_labels=3)
    given = {name: inputs[name] for name in INPUTS[cls]}
    model(**given, labels=torch.tensor([0, 2])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("cls", INPUTS, ids=lambda cls: cls.__name__)
def test_a_classifier_loads_from_files_with_more_than_it_uses(cls, random_folder, tmp_path, inputs, caplog):
    plugin.OnePeaceModel.from_onepeace(str(random_folder)).save_pretrained(tmp_path / "whole")
    transformers.logging.enable_propagation()
    try:
        model, report = cls.from_pretrained(tmp_path / "whole", num_labels=3, output_loading_info=True)
    finally:
        transformers.logging.disable_propagation()
    assert not report["unexpected_keys"]
    assert "UNEXPECTED" not in caplog.text
    model.save_pretrained(tmp_path / "classifier")
    again = cls.from_pretrained(tmp_path / "classifier")
    given = {name: inputs[name] for name in INPUTS[cls]}
    assert torch.equal(again(**given).logits, model.eval()(**given).logits)
    assert weights.load(tmp_path / "classifier").config == model.onepeace.config
