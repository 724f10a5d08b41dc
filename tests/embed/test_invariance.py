"""What must not matter does not: padding, order, batch size and company never change an item."""

import pytest
import torch
from support.small_models import ALL, VARIANTS, batch_of, item, small_model, together

CLOSE = 2e-6  # unit vectors in float32; a sum in another order changes them by about 2e-7
TOKENS = 1e-5  # token features up to 4 or so

ITEMS = range(6)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    """Key and model of each modality, and of each stem of it."""
    return VARIANTS[request.param][0], small_model(request.param)


@pytest.fixture(scope="module")
def model():
    return small_model(*ALL)


def worst(a, b):
    assert a.shape == b.shape
    assert bool(torch.isfinite(a).all())
    return (a - b).abs().max().item()


@torch.no_grad()
def test_vector_ignores_batch_mates(variant):
    key, model = variant
    for first in ITEMS:
        alone = model({key: item(key, first)})[key]
        for mates in ([(first + 1) % 6], [3, 0], [1, 4, 2, 5]):
            company = model({key: together(item(key, i) for i in [first, *mates])})[key]
            assert worst(company[:1], alone) <= CLOSE


@torch.no_grad()
def test_vectors_are_those_of_different_items(variant):
    """The tests around this one would pass with a model that gives every item the same vector."""
    key, model = variant
    vectors = model({key: together(item(key, i) for i in ITEMS)})[key]
    for a in ITEMS:
        assert all(worst(vectors[a], vectors[b]) > 1e3 * CLOSE for b in range(a))
    assert worst(vectors.norm(dim=1), torch.ones(6)) <= CLOSE


@torch.no_grad()
def test_audio_alone_equals_in_batch():
    """Every real frame, for every stem: no convolution sees past the end of its own clip."""
    for name in ("audio", "audio with even kernel", "audio with mel stem"):
        model = small_model(name)
        batch = together(item("audio", i) for i in ITEMS)
        tokens = model.features({"audio": batch})["audio"]
        counts = model.adapters["audio"].token_lengths(batch)
        for i in ITEMS:
            alone = model.features({"audio": item("audio", i)})["audio"]
            assert alone.shape[1] == 1 + counts[i]
            assert worst(tokens[i, : alone.shape[1]], alone[0]) <= TOKENS


@torch.no_grad()
def test_samples_behind_the_end_are_not_heard():
    for name in ("audio", "audio with mel stem"):
        model = small_model(name)
        batch = together(item("audio", i) for i in ITEMS)
        noise = batch["waveform"].clone()
        for row, length in zip(noise, batch["lengths"].tolist(), strict=True):
            row[length:] = 1e3 * torch.randn(len(row) - length)
        heard, clean = (model({"audio": {**batch, "waveform": x}})["audio"] for x in (noise, batch["waveform"]))
        assert worst(heard, clean) <= CLOSE
        # A longer tensor than any clip needs is the same batch.
        wide = torch.nn.functional.pad(batch["waveform"], (0, 999))
        assert worst(model({"audio": {**batch, "waveform": wide}})["audio"], clean) <= CLOSE


@torch.no_grad()
def test_more_padding_ids_change_nothing():
    model = small_model("text")
    batch = together(item("text", i) for i in ITEMS)
    wide = torch.nn.functional.pad(batch["ids"], (0, 5), value=1)
    assert worst(model({"text": {**batch, "ids": wide}})["text"], model({"text": batch})["text"]) <= CLOSE


def hide(lengths, width):
    """Keep every other token of each item: (B, K) ids, CLS first, padded with -1."""
    rows = [[0, *range(1 + i % 2, int(length) + 1, 2)] for i, length in enumerate(lengths)]
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


@torch.no_grad()
def test_keeping_every_token_is_the_identity(variant):
    key, model = variant
    if model.adapters[key].over_time:
        pytest.skip("clips are encoded whole")
    batch = together(item(key, i) for i in ITEMS)
    counts = model.adapters[key].token_lengths(batch)
    places = torch.arange(int(counts.max()) + 1).expand(6, -1)
    keep = places.masked_fill(places > counts[:, None], -1)
    kept = model.features({key: batch}, {key: keep})[key]
    whole = model.features({key: batch})[key]
    assert worst(kept[keep >= 0], whole[keep >= 0]) <= TOKENS


@torch.no_grad()
def test_kept_tokens_keep_their_places(model):
    """A text whose middle is hidden is not the shorter text: positions and distances stay those of the whole."""
    ids = item("text", 1)
    shorter = {"ids": ids["ids"][:, [0, 1, -1]]}
    keep = {"text": torch.tensor([[0, 1, 2, ids["ids"].shape[1]]])}
    kept = model.features({"text": ids}, keep)["text"]
    assert worst(kept, model.features({"text": shorter})["text"]) > 0.1


@torch.no_grad()
def test_bfloat16_runs():
    model = small_model(*ALL)
    batch = batch_of(model, ITEMS[:3])
    vectors = model(batch)
    model.to(torch.bfloat16)
    batch["image"]["pixels"] = batch["image"]["pixels"].bfloat16()
    for key, x in model(batch).items():
        assert x.dtype == torch.float32
        assert (x * vectors[key]).sum(1).min() > 0.99
    for x in model.features(batch).values():
        assert x.dtype == torch.bfloat16
    keep = {key: hide(model.adapters[key].token_lengths(batch[key]), 400) for key in ALL}
    assert all(bool(torch.isfinite(x).all()) for x in model.reconstruct(model.stems(batch), keep).values())


@torch.no_grad()
def test_autocast_runs(model):
    batch = batch_of(model, ITEMS)
    vectors = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch)
    for key in ALL:
        assert rough[key].dtype == torch.float32
        assert (rough[key] * vectors[key]).sum(1).min() > 0.99


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_gives_the_vectors_of_the_cpu(model, dtype):
    batch = batch_of(model, ITEMS)
    vectors = model(batch)
    tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    other = small_model(*ALL).to("cuda", dtype)
    moved = {key: {name: x.cuda() for name, x in tensors.items()} for key, tensors in batch.items()}
    moved["image"]["pixels"] = moved["image"]["pixels"].to(dtype)
    for key, x in other(moved).items():
        assert x.dtype == torch.float32
        least = (x.cpu() * vectors[key]).sum(1).min()
        assert least > (1 - 1e-5 if dtype == torch.float32 else 0.99)
    torch.backends.cuda.matmul.allow_tf32 = tf32
