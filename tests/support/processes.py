"""Run a function in several processes that train together, as torchrun starts them."""

import faulthandler
import multiprocessing
import os
import socket

import torch
import torch.multiprocessing as mp
from support.small_models import batch_of, small_model
from support.training import terms

from onepeace.data.batch import Batch, make_mask
from onepeace.data.builder import names_of
from onepeace.data.sample import Sample
from onepeace.train import parallel, trainer
from onepeace.train.objective import Objective
from onepeace.train.recipe import RunConfig, read_recipe
from onepeace.train.teachers import TeacherTable

CAPTIONS = ["a dog", "a cat", "a dog", "rain", "wind", "a cat", "sea", "bees"]
TERMS = {
    "contrastive": {"weight": 1.0, "multi_positive": True, "label_smoothing": 0.1},
    "denoising/text": {"weight": 0.5, "keys": "global", "label_smoothing": 0.1},
    "denoising/audio": {"weight": 1.0, "keys": "global", "teacher": "joint"},
    "denoising/text+audio": {"weight": 0.5, "keys": "global"},
    "sigmoid/text+audio": {"weight": 0.2},
    "distillation/audio": {"weight": 0.3, "teacher": {"library": "timm", "name": "none"}},
}
LENGTHS = [0, 1, 2, 3, 4, 5, 1, 3]


def preload():
    """Have processes forked from one that has imported torch and done nothing: an import costs more than most tests."""
    multiprocessing.set_forkserver_preload(
        [
            "onepeace.train.trainer",
            "torch._dynamo",
            "torch.distributed.checkpoint.state_dict_saver",
            "pytest",
            "PIL.Image",
            "tokenizers",
            "huggingface_hub",
            "filelock",
            "networkx",
            "webdataset",
        ]
    )


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(ranks, function, *args, **options):
    """``function(*args)`` in each of ``ranks`` processes; what breaks in one is raised here."""
    preload()
    arguments = (ranks, free_port(), function, args, options)
    mp.start_processes(_begin, arguments, nprocs=ranks, start_method="forkserver")


def _begin(rank, ranks, port, function, args, options):
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = str(ranks)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.environ["MASTER_PORT"] = str(port)
    if torch.cuda.device_count() < ranks:  # each process needs a GPU of its own, or all share the CPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(300, exit=True)  # a process that hangs says where, and its test fails
    function(*args, **options)
    faulthandler.cancel_dump_traceback_later()


def random_mask(lengths, generator):
    """Half of the tokens of each item, without CLS."""
    hidden = torch.rand(len(lengths), int(lengths.max()), generator=generator) < 0.5
    hidden &= torch.arange(hidden.shape[1]) < lengths[:, None] - 1
    return make_mask(hidden, lengths.numpy())


def whole_batch():
    """Eight items of two modalities and many lengths, with masks, as the data gives them."""
    model = small_model("text", "audio")
    inputs = batch_of(model, LENGTHS)
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for key, adapter in model.adapters.items():
        lengths = adapter.token_lengths(inputs[key])
        masks[key] = {name: random_mask(lengths, generator) for name in ("unimodal", "joint")}
    names = [names_of(Sample("", "", {}, {}), caption) for caption in CAPTIONS]
    keys = [f"item{number}" for number in range(8)]
    return Batch(inputs, keys, CAPTIONS, names, masks=masks).measured(model.adapters)


def make_objective(options_by_name=TERMS, **options):
    """The objective of a model whose weights are the same in every process. The teacher does not know item 2."""
    model = small_model("text", "audio").train()
    torch.manual_seed(0)
    rows = {f"item{row}": row for row in (0, 1, 3, 4, 5, 6, 7)}
    table = TeacherTable(rows, torch.randn(8, 10))
    return Objective(model, terms(options_by_name), {"distillation/audio": table}, **options)


def loss_and_gradients(objective, batch):
    """Losses by name, gradients by parameter."""
    losses = objective(batch)
    losses["loss"].backward()
    losses = {name: loss.detach() for name, loss in losses.items() if name != "padding"}
    return losses, gradients_of(objective)


def gradients_of(objective):
    """Gradients by parameter, of which each process may have a shard."""
    inner = getattr(objective, "module", objective)
    gradients = {}
    for name, parameter in inner.named_parameters():
        gradient = parameter.grad
        if gradient is not None and parallel.is_sharded(gradient):
            gradient = gradient.full_tensor()
        if gradient is not None:
            gradients[name] = gradient
    return gradients


def share_of_this_process(batch, adapters, parts):
    share = batch.split(parallel.world_size(), adapters).parts[parallel.rank()]
    return share.split(parts, adapters)


def in_turn(calls):
    """Call functions, (function, *arguments), one after another in one process group, which is made once."""
    with parallel.group(torch.device("cpu")):
        for function, *arguments in calls:
            function(*arguments)


def spread_step(path, options, parts=2):
    """This process's share of the batch; the first one writes losses and gradients to ``path``."""
    run = RunConfig(out="", **options)
    objective = make_objective(sharded=run.parallel == "fsdp")
    batch = share_of_this_process(whole_batch(), objective.model.adapters, parts)
    parallel.parallelize(objective, objective.model.sharding_units(), run, torch.device("cpu"))
    parallelized = parallel.replicate(objective) if run.parallel == "ddp" else objective

    losses, _ = loss_and_gradients(parallelized, batch)
    parallel.free_gathered(objective)
    parallel.clip_gradients(objective, None)
    losses = {name: parallel.mean(loss) for name, loss in losses.items()}
    gradients = gradients_of(objective)
    if parallel.rank() == 0:
        torch.save((losses, gradients), path)


def train(path, overrides, stop_at=None):
    """A run of the recipe at ``path``."""
    trainer.train(read_recipe(path, overrides), stop_at=stop_at)
