"""A plan leaves out what a stem whose features are kept does not compute in a step."""

from support.training import MODEL, recipe

from onepeace.cost.plan import make_plan

ADAPTERS = {
    "text": {"vocab_size": 400, "num_positions": 32, "num_buckets": 8},
    "audio": {"stem": "aisfx", "width": 4, "num_buckets": 8, "pos_depth": 1, "pos_groups": 4},
}


def flops(tmp_path, views):
    model = {**MODEL, "adapters": ADAPTERS, "modalities": [*ADAPTERS], "projections": [*ADAPTERS]}
    data = {"root": "none", "train": [{"shards": "tones.tar", "pair": ["audio", "text"]}], "stem_views": views}
    freeze = ["adapters.audio.stem.network.*"]
    wanted = recipe(tmp_path, tmp_path, pair="audio", model=model, data=data, freeze=freeze)
    return make_plan(wanted).flops_per_item["audio+text"]


def test_a_step_over_kept_features_costs_the_transformer_only(tmp_path):
    live, kept = flops(tmp_path, {}), flops(tmp_path, {"audio": 2})
    # Of 15 seconds: 72 bands from 376 frequencies of 320 windows, then pairs of 3x3 convolutions, each over a quarter
    # of the places before it and with twice the channels.
    bands = 2 * 320 * 376 * 72
    network = sum(2 * 9 * 320 * 72 // 4**i * ((2 * 2**i if i else 1) + 4 * 2**i) * 4 * 2**i for i in range(4))
    assert 0.97 * (bands + network) < live - kept < 1.03 * (bands + network)
