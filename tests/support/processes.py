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
from onepeace.train import loop, parallel
from onepeace.train.objective import Objective
from onepeace.train.recipe import RunConfig, read_recipe
from onepeace.train.teachers import TeacherTable

CAPTIONS = ["a dog", "a cat", "a dog", "rain", "wind", "a cat", "sea", "bees"]
TERMS = {
    "contrastive": {"weight": 1.0, "multi_positive": True, "label_smoothing": 0.1},
    "denoising/text": {"weight": 0.5, "keys": "global", "label_smoothing": 0.1},
    "denoising/audio": {"weight": 1.0, "keys": "global", "teacher": "joint"},
    "denoising/text+audio": {"weight": 0.5, "keys": "global"},
    "distillation/audio": {"weight": 0.3, "teacher": {"library": "timm", "name": "none"}},
}
LENGTHS = [0, 1, 2, 3, 4, 5, 1, 3]


def preload():
    """Have processes forked from one that has imported torch and done nothing: an import costs more than most tests."""
    modules = ["onepeace.train.loop", "torch._dynamo", "torch.distributed.checkpoint.state_dict_saver", "pytest"]
    multiprocessing.set_forkserver_preload([*modules, "PIL.Image", "tokenizers", "huggingface_hub", "filelock"])


def start(ranks, function, *args, **options):
    """``function(*args)`` in each of ``ranks`` processes; what breaks in one is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    preload()
    mp.start_processes(_begin, (ranks, port, function, args, options), nprocs=ranks, start_method="forkserver")


def _begin(rank, ranks, port, function, args, options):
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()})
    if torch.cuda.device_count() < ranks:  # each process needs a GPU of its own, or all share the CPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(300, exit=True)  # a process that hangs says where, and its test fails
    function(*args, **options)
    faulthandler.cancel_dump_traceback_later()


def whole_batch():
    """Eight items of two modalities and many lengths, with masks, as the data gives them."""
    model = small_model("text", "audio")
    batch = batch_of(model, [i % 6 for i in LENGTHS])
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for key, adapter in model.adapters.items():
        lengths = adapter.token_lengths(batch[key])
        shape = len(lengths), int(lengths.max())
        masks[key] = {}
        for name in ("unimodal", "joint"):
            hidden = torch.rand(shape, generator=generator) < 0.5
            hidden &= torch.arange(shape[1]) < lengths[:, None] - 1
            masks[key][name] = make_mask(hidden, lengths.numpy())
    names = [names_of(Sample("", "", {}, {}), caption) for caption in CAPTIONS]
    keys = [f"item{i}" for i in range(8)]
    return Batch(batch, keys, CAPTIONS, names, masks=masks).measured(model.adapters)


def make_objective(**options):
    """Of a model whose weights are the same in every process. The teacher does not know item 2."""
    model = small_model("text", "audio").train()
    torch.manual_seed(0)
    table = TeacherTable({f"item{i}": i for i in range(8) if i != 2}, torch.randn(8, 10))
    return Objective(model, terms(TERMS), {"distillation/audio": table}, **options)


def loss_and_gradients(objective, batch):
    """Losses by name, gradients by parameter."""
    losses = objective(batch)
    losses["loss"].backward()
    return {name: loss.detach() for name, loss in losses.items() if name != "padding"}, gradients_of(objective)


def gradients_of(objective):
    """Gradients by parameter, of which each process may have a shard."""
    inner = getattr(objective, "module", objective)
    with_gradient = {name: p.grad for name, p in inner.named_parameters() if p.grad is not None}
    return {name: grad.full_tensor() if parallel.is_sharded(grad) else grad for name, grad in with_gradient.items()}


def spread_step(path, parts, **options):
    """This process's share of the batch; the first one writes losses and gradients to ``path``."""
    run = RunConfig(out="", **options)
    device = torch.device("cpu")
    with parallel.group(device):
        objective = make_objective(sharded=run.parallel == "fsdp")
        adapters = objective.model.adapters
        batch = whole_batch().split(parallel.world_size(), adapters).parts[parallel.rank()].split(parts, adapters)
        parallel.parallelize(objective, objective.model.sharding_units(), run, device)
        parallelized = objective
        if run.parallel == "ddp":
            parallelized = parallel.replicate(objective, lambda: objective(batch)["loss"])
        losses, _ = loss_and_gradients(parallelized, batch)
        parallel.free_gathered(objective)
        parallel.clip(objective, None)
        losses = {name: parallel.mean(loss) for name, loss in losses.items()}
        gradients = gradients_of(objective)
        if parallel.rank() == 0:
            torch.save((losses, gradients), path)


def train(path, overrides, stop_at=None):
    """A run of the recipe at ``path``."""
    loop.train(read_recipe(path, overrides), stop_at=stop_at)
