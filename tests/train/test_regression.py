"""The term regression, and a denoising teacher of averaged weights."""

import copy

import pytest
import torch
from support.processes import make_objective, whole_batch
from support.small_models import CONVS, small_model
from support.training import recipe
from torch.nn import functional as F

from onepeace import losses
from onepeace.data.batch import Batch, Mask
from onepeace.errors import UserError
from onepeace.train import loop
from onepeace.train.log import read_log
from onepeace.train.objective import Objective
from onepeace.train.passes import Passes

SFX = {"stem": "aisfx", "width": 2, "num_buckets": 6, **CONVS}
MASK = {"image": {"unimodal": 0.6, "joint": 0.5, "unit": "patch"}}


@pytest.fixture
def sounds():
    """A model with a pretrained stem, and three sounds of 4, 9 and 6 tokens with some of them masked."""
    model = small_model("audio", adapters={"audio": SFX}, projections=("audio",))
    torch.manual_seed(0)
    lengths = torch.tensor([30000, 60000, 41000])
    inputs = {"waveform": torch.randn(3, 60000), "lengths": lengths}
    count = model.adapters["audio"].token_lengths(inputs)
    longest = int(count.max())
    masked = torch.zeros(3, longest + 1, dtype=torch.bool)
    masked[:, [2, 3, 7]] = True
    places = torch.arange(longest + 1)
    keep = [[i for i in places.tolist() if i <= n and not masked[row, i]] for row, n in enumerate(count.tolist())]
    keep = torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in keep], True, -1)
    return model, Batch(
        {"audio": inputs}, ["a", "b", "c"], ["", "", ""], masks={"audio": {"unimodal": Mask(keep, masked)}}
    )


def test_hidden_tokens_are_drawn_to_what_the_network_says_there(sounds):
    model, batch = sounds
    objective = Objective(model, {"regression/audio": {}})
    term = objective.terms["regression/audio"]
    inputs, mask = batch.inputs["audio"], batch.masks["audio"]["unimodal"]
    predictions = term.head(model.reconstruct(model.stems(batch.inputs), {"audio": mask.keep})["audio"][:, 1:])
    features, count = model.adapters["audio"].stem_features(inputs), model.adapters["audio"].token_lengths(inputs)
    distances = []
    for row in range(3):
        for place in (1, 2, 6):
            if place < count[row]:
                distances.append(1 - F.cosine_similarity(predictions[row, place], features[row, place], dim=0))
    assert 0 < len(distances) < 9
    found = objective(batch)["regression/audio"]
    torch.testing.assert_close(found, torch.stack(distances).mean())
    found.backward()
    assert term.head.weight.grad.norm() > 0
    kept = {"features": features.detach(), "lengths": count}
    again = objective(Batch({"audio": kept}, batch.keys, batch.captions, masks=batch.masks))["regression/audio"]
    torch.testing.assert_close(again, found)
    chunks = Objective(model, {"regression/audio": {}}, grad_cache_chunks=2)
    chunks.terms.load_state_dict(objective.terms.state_dict())
    torch.testing.assert_close(chunks(batch)["regression/audio"], found)


def test_of_no_hidden_tokens_it_is_zero():
    nothing = torch.zeros(0, 4, requires_grad=True)
    loss = losses.feature_regression(nothing, torch.zeros(0, 4))
    assert loss == 0
    loss.backward()
    with pytest.raises(ValueError, match="must be equal"):
        losses.feature_regression(nothing, torch.zeros(1, 4))


def test_a_teacher_of_averaged_weights_is_that_model():
    objective, batch = make_objective(max_padding=1.0), whole_batch()
    model = objective.model.eval()
    other = copy.deepcopy(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    average = dict(other.named_parameters())
    for keys in (("text",), ("audio",), ("text", "audio")):
        found = Passes(model, batch, average=average).averaged(keys)
        expected = other.encode(other.stems({key: batch.inputs[key] for key in keys}))
        for key in keys:
            mask = expected[key].padding_mask
            real = torch.ones(expected[key].tokens.shape[:2], dtype=torch.bool) if mask is None else ~mask
            torch.testing.assert_close(found[key].tokens[real], expected[key].tokens[real].detach())
            assert not found[key].tokens.requires_grad
    assert not model.training
    terms = {"denoising/audio": {"keys": "global"}}
    averaged = Objective(model, {"denoising/audio": {"keys": "global", "average": True}})
    averaged.average = dict(model.named_parameters())
    torch.testing.assert_close(averaged(batch)["denoising/audio"], Objective(model, terms)(batch)["denoising/audio"])
    averaged.average = average
    assert abs(averaged(batch)["denoising/audio"] - Objective(model, terms)(batch)["denoising/audio"]) > 1e-3


def denoising_recipe(root, out, **run):
    settings = {"out": str(out), "batch_size": 8, "workers": 0, "log_every": 1, "precision": "float32", **run}
    return recipe(root, out, steps=3, objective={"denoising/image": {"average": True}}, mask=MASK, run=settings)


def test_a_run_has_such_a_teacher(root, tmp_path):
    for name, ema in (("slow", 0.9999), ("none", 0.0)):
        loop.train(denoising_recipe(root, tmp_path / name, ema=ema))
    slow, none = ([line["loss"] for line in read_log(tmp_path / name / "log.jsonl")] for name in ("slow", "none"))
    assert slow[0] == none[0]  # the average of no update
    assert slow[2] != none[2]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({}, r"average needs run.ema"),
        ({"ema": 0.9, "parallel": "fsdp"}, r"average needs run.ema, and run.parallel: ddp"),
    ],
)
def test_mistakes_are_one_line(root, tmp_path, run, message):
    with pytest.raises(UserError, match=message):
        loop.train(denoising_recipe(root, tmp_path, **run))


@pytest.mark.parametrize(
    ("term", "mask", "message"),
    [
        ("regression", MASK, "is of one modality; write it as regression/image"),
        ("regression/text", MASK, "needs mask.text.unimodal"),
        ("regression/image", MASK, "the stem of image has no features of its own"),
    ],
)
def test_mistakes_of_regression_are_named(root, tmp_path, term, mask, message):
    with pytest.raises(UserError, match=message):
        loop.train(recipe(root, tmp_path, steps=1, objective={term: {}}, mask=mask))
