"""Fine-tuning on a user's data, from reading it to the report. Finished stages are kept: the same call resumes."""

import dataclasses
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onepeace.config import build, to_plain
from onepeace.datasets.arrow import is_arrow
from onepeace.device import available_memory, choose_device
from onepeace.embed.embedder import load
from onepeace.errors import UsageError, UserError, need
from onepeace.files.atomic import write_text_atomic
from onepeace.files.lock import locked
from onepeace.finetune import figures
from onepeace.finetune.average import SHARES, UNTRIED, Average, choose, mixed
from onepeace.finetune.folder import ABOUT, FIELDS, check_only_ours, clear, read_about
from onepeace.finetune.memory import fitting_recipe
from onepeace.finetune.own_data import read_own_data
from onepeace.finetune.report import Result, write_report
from onepeace.finetune.settings import WAYS, auto_recipe, head_names, trained
from onepeace.finetune.split import PARTS, SplitSummary, divide, read_parts, write_shards
from onepeace.generative.tasks import FILE as TASKS
from onepeace.hub import weights
from onepeace.hub.fingerprint import fingerprint
from onepeace.hub.folder import CARD, TOKENIZER, read_config
from onepeace.hub.resolve import resolve
from onepeace.train import checkpoint_files
from onepeace.train.folder import model_folder
from onepeace.train.initial_weights import start_weights
from onepeace.train.log import FILE as LOG
from onepeace.train.log import read_log
from onepeace.train.loop import train
from onepeace.train.recipe import Recipe

log = logging.getLogger(__name__)

SETTINGS, TUNED, AVERAGE = "settings.json", "tuned", "average.json"
BEFORE, AFTER = "before.jsonl", "after.jsonl"
TRIED = 3
"""Steps that are timed to estimate the duration of the training."""
LOADS = 3
"""Times that a model is loaded in each way: to be trained, averaged and measured."""


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning in a folder: data/ (shards), before.jsonl; and for each way to train, in the folder itself, or if
    there are several, in a subfolder, the files of the run, average.json, after.jsonl, report.html and model/.

    Args:
        source: the user's folder or table.
        out: folder of the fine-tuning.
        model: initial model: a name or a folder.
        overrides: fields of the recipe, such as "optim.lr=1e-4".
        group: regular expression for the common part of the paths of files that belong together (split.py).
        compare: train in each of `WAYS`, on the same parts of the data.
        say: called with a line for the user at each stage.
        columns: names of columns that are called differently, by their content, such as {"text": "sentence"}.
        split: split of a data set that has several.
    """

    source: Path
    out: Path
    model: str = "tiny"
    overrides: tuple[str, ...] = ()
    group: str | None = None
    compare: bool = False
    say: Callable[[str], None] = log.warning
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: str | None = None

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def start(self) -> Path:
        """Folder of the model to start from."""
        return model_folder(self.model) if Path(self.model).is_dir() else resolve(self.model)

    def run(self, overwrite: bool = False) -> list[Result]:
        """Run all stages that are not done yet; returns the result of each way.

        Raises:
            UserError: nothing can be learned from the data; the folder has another fine-tuning in it, or another run
                is writing to it.
        """
        read_about(self.out)  # before the lock adds a file to a folder of something else
        with locked(self.out):
            return self._run(overwrite)

    def _run(self, overwrite: bool) -> list[Result]:
        with self._unpacked() as unpacked:
            parts, recipes = self._begun(overwrite, unpacked)
        self._say_plan(parts, recipes, *self._answered(self.out / BEFORE, self.start, parts, {}))
        results = [self._result(way, recipe, parts) for way, recipe in recipes.items()]
        for result in results:
            write_report(result, self.source, self.model, self.data, parts)
        return results

    def _result(self, way: str, recipe: Recipe, parts: SplitSummary) -> Result:
        """Train in one way, average and measure, skipping finished stages."""
        folder, heads = Path(recipe.run.out), head_names(parts)
        if not (folder / AVERAGE).exists():
            self._averaged(self._tuned(recipe), recipe, parts, heads)
        average = Average(**json.loads((folder / AVERAGE).read_text(encoding="utf-8")))
        self.say(f"{way}{': ' * bool(way)}weights {average.described()}")
        self._answered(folder / AFTER, folder / "model", parts, heads)
        for path in checkpoint_files.folders(folder):  # nothing resumes from them any more
            checkpoint_files.remove(path)
        seconds = sum(line.get("seconds", 0.0) for line in read_log(folder / LOG))
        before, after = (figures.read_answers(path) for path in (self.out / BEFORE, folder / AFTER))
        return Result(way, folder, recipe, average, seconds, before, after)

    @contextmanager
    def _unpacked(self) -> Iterator[Path | None]:
        """A temporary folder beside the output for files that lie in cells; None if the source has no such cells."""
        if not is_arrow(self.source):
            yield None
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.out.parent, prefix=f".{self.out.name}-") as folder:
            yield Path(folder)

    def _begun(self, overwrite: bool, unpacked: Path | None) -> tuple[SplitSummary, dict[str, Recipe]]:
        """Prepare the folder; returns the parts of the data, and the recipe of each way.

        The folder is cleared and written only after data and recipes have been read and checked.
        """
        if self.compare:
            need("peft", "lora")
        modalities = list(read_config(self.start).model.adapters)
        about = {
            "source": os.path.abspath(self.source), "columns": dict(self.columns), "split": self.split,
            "model": fingerprint(self.start), "set": list(self.overrides),
            "group": self.group, "compare": self.compare,
        }  # fmt: skip
        self._refuse_another(about, overwrite)
        data = None
        if overwrite or not (self.data / PARTS).exists():
            data = read_own_data(self.source, modalities, columns=self.columns, split=self.split, unpacked=unpacked)
            data, parts = divide(data, self.source, self.group)
            self.say(f"{self.source}: {parts.found}{_left_out(parts)}")
            self.say(parts.described())
        else:
            parts = read_parts(self.data)
            self.say(f"{self.out}: the parts of an earlier call are used; --force reads {self.source} again")
        ways = dict.fromkeys(WAYS if self.compare else [""])
        recipes = {way: self._recipe(way, parts, anew=data is not None) for way in ways}
        if overwrite:
            clear(self.out)
        write_text_atomic(self.out / ABOUT, json.dumps({**about, "name": self.model}, indent=1) + "\n")
        for way, recipe in recipes.items():
            (self.out / way).mkdir(exist_ok=True)
            write_text_atomic(self.out / way / SETTINGS, json.dumps(to_plain(recipe), indent=1) + "\n")
        if data is not None:
            write_shards(data, parts, self.data)
        return parts, recipes

    def _refuse_another(self, about: Mapping[str, object], overwrite: bool) -> None:
        """Raise `UserError` if the folder has other content, or if clearing it would remove the input."""
        other = read_about(self.out)
        if other is None:
            return
        if overwrite:
            self._check_can_be_cleared()
            return
        for field in FIELDS:
            if other[field] != about[field]:
                remedy = "give the same, choose another name, or overwrite it with --force"
                raise UsageError(f"{self.out}: holds a fine-tuning with {_described(field, other, about)}; {remedy}")

    def _check_can_be_cleared(self) -> None:
        for needed in (self.start, self.source):
            if needed.resolve().is_relative_to(self.out.resolve()):
                raise UserError(f"{needed} is needed, and --force would remove it; give -o another folder")
        check_only_ours(self.out)

    def _recipe(self, way: str, parts: SplitSummary, anew: bool) -> Recipe:
        """The recipe of a way, which the first call stores, as the available memory may differ later."""
        path = self.out / way / SETTINGS
        if path.exists() and not anew:
            recipe = self._moved(build(Recipe, json.loads(path.read_text(encoding="utf-8")), str(path)), way)
        else:
            content = auto_recipe(self.start.absolute(), self.data, self.out, parts, way)
            recipe = fitting_recipe(content, self.overrides, available_memory(choose_device()), self.say)
        items = ", ".join(f"{recipe.batch_size(name)} {name}" for name in recipe.data.modalities)
        text = f"steps {recipe.schedule.steps}, items {items}, rate {recipe.optim.lr}, training {trained(recipe)}"
        if recipe.run.recompute == "blocks":
            text += ", activations computed again"
        if recipe.run.grad_cache_chunks > 1:
            text += f", each step in {recipe.run.grad_cache_chunks} parts"
        self.say(f"{way}{': ' * bool(way)}{text} (a.b=value sets another)")
        return recipe

    def _moved(self, recipe: Recipe, way: str) -> Recipe:
        """A stored recipe with the present paths: the folder may have been moved, or be relative to another one."""
        old = Path(recipe.run.out).parent if way else Path(recipe.run.out)
        data = replace(recipe.data, root=str(self.data))
        if data.frozen_folder == str(old / "frozen"):  # otherwise chosen by the user
            data = replace(data, frozen_folder=str(self.out / "frozen"))
        return replace(recipe, data=data, run=replace(recipe.run, out=str(self.out / way)))

    def _say_plan(self, parts: SplitSummary, recipes: Mapping[str, Recipe], loading: float, answering: float) -> None:
        """Say what will be done, and its duration, estimated from the first measurement and a few steps.

        Args:
            loading, answering: seconds that the first measurement took; 0 if an earlier call made it, and then the
                whole duration is not said.
        """
        left = {way: recipe for way, recipe in recipes.items() if not self._is_trained(recipe)}
        if not left:
            return
        an_item, some = answering / parts.count("val"), next(iter(left.values()))
        if features := feature_seconds(some, parts.counts, an_item):
            self.say(f"features of frozen networks, computed once: {_minutes(features)}")
        times = {way: _seconds_left(recipe, an_item) for way, recipe in left.items()}
        answered = len(SHARES) * parts.count("choose") + parts.count("val")
        each_way = LOADS * loading + answered * an_item
        # Timing steps computes the features.
        whole = feature_seconds(some, parts.counts, an_item) + sum(times.values()) + len(left) * each_way
        new = f"a new classifier of {len(parts.labels)} classes and " * bool(parts.labels)
        each = " and ".join(f"{way} {_minutes(seconds)}".strip() for way, seconds in times.items())
        self.say(
            f"to do: train {new}the weights of {self.model} ({each}), average them with those they had, measure, and "
            f"write a report{f'; {_minutes(whole)} in all' * bool(answering)}"
        )

    def _is_trained(self, recipe: Recipe) -> bool:
        folder = Path(recipe.run.out)
        return any((folder / name).exists() for name in (AVERAGE, TUNED, "model/config.yaml"))

    def _tuned(self, recipe: Recipe) -> Path:
        """Folder of the trained model before the averaging; trains it first if necessary."""
        out = Path(recipe.run.out)
        tuned, model = out / TUNED, out / "model"
        if not tuned.exists():
            if not (model / "config.yaml").exists():
                self.say(f"training {recipe.schedule.steps} steps")
                if not (train(recipe) / "config.yaml").exists():
                    raise _stopped(out)
            os.replace(model, tuned)
        return tuned

    def _averaged(self, tuned: Path, recipe: Recipe, parts: SplitSummary, heads: Mapping[str, str]) -> None:
        """Average the trained with the initial weights, write the model and average.json, and remove ``tuned``."""
        config, folder = read_config(tuned), tuned.parent
        start = start_weights(recipe, config, weights.expected(config))
        new = weights.read_state(tuned)
        if pairs := parts.pairs("choose"):
            model = load(tuned, device=str(choose_device()))

            def score() -> float:
                return figures.score(figures.answers(model, self.data, pairs, parts.labels, heads, "choose"))

            average = choose(model.module, start, new, score, parts.count("choose"))
        else:
            average = Average(1.0 if heads else UNTRIED)
        found = {name: mixed(start.get(name), tensor, average.share) for name, tensor in new.items()}
        card = f"{(tuned / CARD).read_text(encoding='utf-8')}\nWeights {average.described()}.\n"
        tasks = tuned / TASKS if (tuned / TASKS).exists() else None
        tokenizer = tuned / TOKENIZER if (tuned / TOKENIZER).exists() else None
        weights.save(folder / "model", found, config, tokenizer=tokenizer, tasks=tasks, card=card)
        write_text_atomic(folder / AVERAGE, json.dumps(asdict(average), indent=1) + "\n")
        shutil.rmtree(tuned)

    def _answered(self, path: Path, folder: Path, parts: SplitSummary, heads: Mapping[str, str]) -> tuple[float, float]:
        """Write the answers of a model to the held-out part, unless they exist.

        Returns:
            The seconds that loading the model and answering took.
        """
        if path.exists():
            return 0.0, 0.0
        began = time.monotonic()
        model = load(folder, device=str(choose_device()))
        loaded = time.monotonic()
        found = figures.answers(model, self.data, parts.pairs("val"), parts.labels, heads)
        figures.write_answers(path, found)
        return loaded - began, time.monotonic() - loaded


def _described(field: str, other: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """How the fine-tuning in a folder differs in a field of finetune.json from the one that is asked for."""
    if field == "source":
        return f"the SOURCE {other['source']}"
    if field == "columns":
        return " ".join(f"--column {key}={name}" for key, name in other["columns"].items()) or "no --column"
    if field == "split":
        return f"--split {other['split']}" if other["split"] else "no --split"
    if field == "model":
        return f"--model {other.get('name')} ({other['model']}, not {about['model']})"
    if field == "set":
        return " ".join(other["set"] or ["no a.b=value"])
    if field == "group":
        return f"--group {other['group']!r}" if other["group"] else "no --group"
    return "--compare" if other["compare"] else "no --compare"


def feature_seconds(recipe: Recipe, counts: Mapping[str, int], an_item: float) -> float:
    """Estimated seconds to compute the features of frozen networks; 0 for a modality that has some.

    Args:
        counts: number of samples by part and kind (`SplitSummary.counts`).
        an_item: seconds to embed an item with the whole model.
    """
    seconds = 0.0
    for key, views in recipe.data.stem_views.items():
        if not any(recipe.frozen_folder.glob(f"{key}-*/part-*.json")):
            items = sum(counts.get(f"train/{name}", 0) for name, keys in recipe.data.modalities.items() if key in keys)
            seconds += items * (views if recipe.data.augment.get(key) else 1) * an_item
    return seconds


def _seconds_left(recipe: Recipe, an_item: float) -> float:
    """Estimated seconds of the remaining training: from a few steps that are not saved, or if few are left, as long as
    embedding their items, at ``an_item`` seconds each."""
    saved = checkpoint_files.folders(recipe.run.out)
    first = checkpoint_files.step_of(saved[-1]) if saved else 0
    left = recipe.schedule.steps - first
    if left <= 2 * TRIED:
        return left * an_item * sum(recipe.batch_size(name) for name in recipe.data.modalities)
    train(replace(recipe, run=replace(recipe.run, log_every=1)), stop_at=first + TRIED)
    lines = read_log(Path(recipe.run.out) / LOG)[-TRIED:]
    if lines[-1]["step"] < first + TRIED:  # by SIGTERM, which `train` does not raise
        raise _stopped(recipe.run.out)
    return left * statistics.median(line["seconds"] for line in lines)


def _stopped(out: str | Path) -> UserError:
    return UserError(f"{out}: stopped; the same command goes on")


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {max(1, round(seconds))} s"


def _left_out(parts: SplitSummary) -> str:
    """Number of samples that could not be used, and the first of them, as text."""
    if not parts.left_out:
        return ""
    first = "; ".join(f"{where}: {reason}" for where, reason in parts.left_out[:3])
    more = f" and {len(parts.left_out) - 3} more" if len(parts.left_out) > 3 else ""
    return f"; {len(parts.left_out)} left out: {first}{more}"
