"""Original OFA checkpoints, in the layouts of their releases, become model folders."""

import json
import string

import pytest
import torch
from support.golden_ofa import FOLDER, OUTPUT, SIZES, assert_near, golden
from support.hub_layouts import small_vocabulary

import onepeace
from onepeace.cli import main
from onepeace.config.ofa import OFA_SIZES, OFAConfig
from onepeace.errors import UserError
from onepeace.hub import weights
from onepeace.hub.convert.convert import convert
from onepeace.hub.convert.ofa import infer_config, to_ours
from onepeace.hub.folder import read_config
from onepeace.ofa.model import OFA

NAMES = json.loads((FOLDER / "names.json").read_text())
CFG = {
    "model": {"_name": "ofa", "arch": "ofa_base", "disable_entangle": True,
              "no_scale_embedding": True, "attn_scale_factor": 2.0, "resnet_type": "resnet18"},
    "task": {"_name": "caption", "code_dict_size": 32, "num_bins": 40, "patch_image_size": 480},
}  # fmt: skip


def released():
    """The golden weights under the names of the original, with the copies and index tables that it stores too."""
    state = dict(golden("weights"))
    for name, (shape, dtype) in NAMES["golden_buffers"].items():
        copy = name.endswith(("embed_tokens.weight", "output_projection.weight"))
        shape = [2, 2] if name.endswith("_rp_bucket") else shape  # as large as the model otherwise
        state[name] = state["encoder.embed_tokens.weight"] if copy else torch.zeros(shape, dtype=getattr(torch, dtype))
    return state


def trainer_file(path, state, *, cfg=CFG, **extra_state):
    extra = {"metrics": {}, "train_iterator": {"epoch": 3}, **extra_state}
    torch.save({"args": None, "cfg": cfg, "model": state, "criterion": None, "optimizer_history": [], "task_state": {},
                "extra_state": extra}, path)  # fmt: skip
    return path


def small_bpe(folder):
    """64 pieces, the letters of "<pad>" among them."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *"<>/?.,", "\u0120", *string.ascii_letters, "!"]
    small_vocabulary(folder, 64)
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    return folder


@pytest.fixture
def bpe(tmp_path):
    return small_bpe(tmp_path / "bpe")


@pytest.fixture
def checkpoint(tmp_path):
    return trainer_file(tmp_path / "caption.pt", released())


@pytest.fixture
def folder(checkpoint, tmp_path, bpe):
    return convert(checkpoint, tmp_path / "ofa", bpe=bpe)


def assert_writes_as_the_original(folder):
    case = golden("caption")
    model = weights.load(folder)
    assert isinstance(model, OFA)
    with torch.no_grad():
        logits = model(case["ids"], case["written"], case["pixels"])
    assert_near(logits, case["out.logits"], OUTPUT, case["written"] != 1)


def test_fairseq_file_writes_as_the_original(folder):
    config = read_config(folder)
    assert (config.architecture, config.model) == ("ofa", OFAConfig(**SIZES))
    assert config.processors["image"] == {"size": 480, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert_writes_as_the_original(folder)
    card = (folder / "MODEL_CARD.md").read_text()
    assert "authors of OFA" in card


def test_the_moving_average_of_the_weights_is_taken_where_there_is_one(tmp_path, bpe):
    state = released()
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    folder = convert(trainer_file(tmp_path / "vqa.pt", other, ema=state), tmp_path / "ofa", bpe=bpe)
    assert_writes_as_the_original(folder)
    assert "moving average" in (folder / "MODEL_CARD.md").read_text()


def named(name):
    """Our names and shapes of the released file of that size."""
    return {ours: tuple(shape) for theirs, shape in NAMES[name].items() if (ours := to_ours(theirs))}


def test_names_of_the_released_base_model_are_placed_without_rest(tmp_path):
    shapes = named("fairseq_base")
    config = infer_config(tmp_path, shapes, {})
    assert config.model == OFAConfig(**OFA_SIZES["base"])
    assert weights.expected(config) == shapes


def test_key_map_is_a_bijection():
    ours = {name: to_ours(name) for name in (*NAMES["fairseq_base"], *golden("weights"))}
    kept = {theirs: name for theirs, name in ours.items() if name}
    assert len(set(kept.values())) == len(kept) > 800
    dropped = {name.rpartition(".")[2] for name, found in ours.items() if found is None}
    assert dropped == {"version", "token_rp_bucket", "image_rp_bucket", "image_position_idx", "num_batches_tracked",
                       "weight", "bias"}  # fmt: skip
    with pytest.raises(LookupError):
        to_ours("encoder.layers.0.adapter.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoder.layers.1.cross_attn_ln.bias"), r"lack 1 of .*decoder\.blocks\.1\.cross_attn_norm"),
        (lambda s: s.update({"encoder.layers.0.w_resid": torch.ones(32)}), r"1 of \d+ tensors have no place here"),
        (
            lambda s: s.update({"encoder.pos_ln.bias": torch.ones(31)}),
            r"another shape \(encoder\.words\.pos_norm\.bias",
        ),
        (lambda s: s.pop("encoder.embed_tokens.weight"), "it lacks decoder.token_embed.weight"),
    ],
)
def test_every_tensor_is_placed_or_named(tmp_path, bpe, change, message):
    state = released()
    change(state)
    with pytest.raises(UserError, match=message):
        convert(trainer_file(tmp_path / "x.pt", state), tmp_path / "out", bpe=bpe)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("switch", "value"), [("disable_entangle", False), ("attn_scale_factor", 1), ("no_scale_embedding", False)]
)
def test_switches_that_change_what_is_computed_are_refused(tmp_path, bpe, switch, value):
    cfg = {**CFG, "model": {**CFG["model"], switch: value}}
    with pytest.raises(UserError, match=f"configuration has {switch} {value}; this library only has"):
        convert(trainer_file(tmp_path / "x.pt", released(), cfg=cfg), tmp_path / "out", bpe=bpe)


def test_what_needs_vectors_says_that_it_is_a_generator(folder, capsys):
    with pytest.raises(UserError, match=r"models of architecture ofa write text .*onepeace\.load_generator"):
        onepeace.load(folder)
    with pytest.raises(UserError, match="architecture ofa write text"):
        weights.load_encoder(folder)
    assert main(["search", "--text", "x", str(folder / "index"), "--model", str(folder)]) != 0
    assert "Traceback" not in capsys.readouterr().err
