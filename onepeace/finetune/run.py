"""Fine-tuning on a user's data, from reading it to the report. Finished stages are kept: the same call resumes.

The stages are: read and split the data (split.py); measure the initial model (answers.py); and by each training method
(auto_recipe.py), train, average (stages.py), measure and report (report.py).
"""

import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from onepeace.config import build, to_plain
from onepeace.datasets.arrow import is_arrow
from onepeace.device import available_memory, choose_device
from onepeace.errors import UserError, need
from onepeace.files.atomic import write_text_atomic
from onepeace.files.lock import locked
from onepeace.finetune.answers import read_answers
from onepeace.finetune.auto_recipe import METHODS, auto_recipe, head_names, trained
from onepeace.finetune.average import AVERAGE, read_average
from onepeace.finetune.folder import (
    FROZEN,
    IDENTITY,
    RECIPE,
    check_is_fine_tuning,
    check_only_ours,
    check_same,
    clear,
    method_folder,
    read_identity,
)
from onepeace.finetune.memory import fitting_recipe
from onepeace.finetune.own_data import read_own_data
from onepeace.finetune.report import Result, write_report
from onepeace.finetune.split import SUMMARY, SplitSummary, divide, read_summary, write_shards
from onepeace.finetune.stages import average_weights, is_trained, measure, trained_model
from onepeace.hub.fingerprint import fingerprint
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import resolve
from onepeace.train import checkpoint_files
from onepeace.train.folder import model_folder
from onepeace.train.log import LOG_FILE, read_log
from onepeace.train.recipe import Recipe

log = logging.getLogger(__name__)

BEFORE = "before.jsonl"
AFTER = "after.jsonl"
FAILURES_SHOWN = 3


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning, and the folder that holds all its files:

    * finetune.json: the source, model and options, by which a later call knows that it may resume (folder.py).
    * data/: the shards of the parts, and parts.json, their summary.
    * before.jsonl: answers of the initial model to the held-out part.
    * frozen/: outputs of frozen stems, computed once.
    * For each training method, in the folder itself, or in a subfolder of its name if several are compared:

      * settings.json: the recipe, as the first call chose it.
      * recipe.yaml, log.jsonl, step-N/: files of the training run (train/).
      * tuned/: the trained model, until its weights are averaged.
      * average.json, model/: the choice of the weights, and the new model.
      * after.jsonl, report.html: answers of the new model, and the report.

    Args:
        source: the user's folder or table.
        out: folder of the fine-tuning.
        model: initial model: a name or a folder.
        overrides: fields of the recipe, such as "optim.lr=1e-4".
        group: regular expression for the common part of the paths of files that belong together (groups.py).
        compare: train by each of `METHODS`, on the same parts of the data.
        say: called with a line for the user at each stage; by default a warning, which logging shows without set-up.
        columns: the table's names of columns, by the names used here, such as {"text": "sentence"}.
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

    @property
    def methods(self) -> list[str]:
        """The training methods; "" for the one that suits the model."""
        return list(METHODS) if self.compare else [""]

    def run(self, overwrite: bool = False) -> list[Result]:
        """Run all stages that are not done yet; returns the result of each method.

        Raises:
            UserError: nothing can be learned from the data; the folder has another fine-tuning in it, or another run
                is writing to it.
        """
        check_is_fine_tuning(self.out)  # before the lock adds a file to a folder of something else
        with locked(self.out):
            summary, recipes = self._prepare(overwrite)
            self._say_plan(summary, recipes)
            if not (self.out / BEFORE).exists():
                self.say(f"measuring {self.model}")
                measure(self.start, self.data, summary, heads={}, path=self.out / BEFORE)
            results = [self._result(method, recipe, summary) for method, recipe in recipes.items()]
            for result in results:
                write_report(result, self.source, self.model, self.data, summary)
            return results

    def _prepare(self, overwrite: bool) -> tuple[SplitSummary, dict[str, Recipe]]:
        """Summary of the parts of the data, and the recipe of each method.

        Both are read from the folder if an earlier call has written them, unless ``overwrite``; else they are made.
        """
        if self.compare:
            need("peft", "lora")  # one of the methods is LoRA: said before anything is trained
        identity = self._identity()
        earlier = read_identity(self.out)
        if earlier is not None:
            if overwrite:
                self._check_can_be_cleared()
            else:
                check_same(self.out, earlier, identity)
        is_split = (self.data / SUMMARY).exists()  # written last, so that all shards are there
        if is_split and not overwrite:
            return self._resume(identity)
        return self._start_new(identity, overwrite)

    def _identity(self) -> dict[str, object]:
        """Content of finetune.json: everything that the result depends on."""
        return {
            "source": os.path.abspath(self.source),
            "columns": dict(self.columns),
            "split": self.split,
            "model": fingerprint(self.start),
            "set": list(self.overrides),
            "group": self.group,
            "compare": self.compare,
            "name": self.model,  # for messages; the fingerprint says whether it is the same model
        }

    def _check_can_be_cleared(self) -> None:
        """Raise an error if --force would delete the source, the initial model or a file that is not ours."""
        for needed in (self.start, self.source):
            if needed.resolve().is_relative_to(self.out.resolve()):
                raise UserError(f"{needed} is needed, and --force would remove it; give -o another folder")
        check_only_ours(self.out)

    def _resume(self, identity: Mapping[str, object]) -> tuple[SplitSummary, dict[str, Recipe]]:
        """Read the summary and the recipes; a recipe that is not there yet (the call was killed) is made."""
        summary = read_summary(self.data)
        self.say(f"{self.out}: the parts of an earlier call are used; --force reads {self.source} again")
        recipes = {}
        for method in self.methods:
            recipes[method] = self._stored_recipe(method) or self._new_recipe(method, summary)
        self._write_identity_and_recipes(identity, recipes)
        return summary, recipes

    def _start_new(self, identity: Mapping[str, object], overwrite: bool) -> tuple[SplitSummary, dict[str, Recipe]]:
        """Read and split the data and make the recipes; only when all that went well, clear and write the folder."""
        with self._folder_of_embedded_files() as unpacked:
            data = read_own_data(
                self.source,
                list(read_config(self.start).model.adapters),
                columns=self.columns,
                split=self.split,
                unpacked=unpacked,
            )
            split, summary = divide(data, self.source, self.group)
            self.say(f"{self.source}: {summary.files}{_left_out(summary)}")
            self.say(summary.described())
            recipes = {method: self._new_recipe(method, summary) for method in self.methods}
            if overwrite:
                clear(self.out)
            self._write_identity_and_recipes(identity, recipes)
            write_shards(split, summary, self.data)
        return summary, recipes

    @contextmanager
    def _folder_of_embedded_files(self) -> Iterator[Path | None]:
        """A temporary folder for the files of a data set that holds them as bytes in its table; None for others.

        It is beside the output, as that disk has room for the files: the shards are written there too.
        """
        if not is_arrow(self.source):
            yield None
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.out.parent, prefix=f".{self.out.name}-") as folder:
            yield Path(folder)

    def _write_identity_and_recipes(self, identity: Mapping[str, object], recipes: Mapping[str, Recipe]) -> None:
        write_text_atomic(self.out / IDENTITY, json.dumps(identity, indent=1) + "\n")
        for method, recipe in recipes.items():
            folder = method_folder(self.out, method)
            folder.mkdir(exist_ok=True)
            write_text_atomic(folder / RECIPE, json.dumps(to_plain(recipe), indent=1) + "\n")
            self.say(f"{_prefix(method)}{_described(recipe)}")

    def _new_recipe(self, method: str, summary: SplitSummary) -> Recipe:
        content = auto_recipe(self.start.absolute(), self.data, self.out, summary, method)
        return fitting_recipe(content, self.overrides, available_memory(choose_device()), self.say)

    def _stored_recipe(self, method: str) -> Recipe | None:
        """The recipe that the first call stored; it is not made anew, as the available memory may differ now."""
        path = method_folder(self.out, method) / RECIPE
        if not path.exists():
            return None
        recipe = build(Recipe, json.loads(path.read_text(encoding="utf-8")), str(path))
        return self._with_present_paths(recipe, method)

    def _with_present_paths(self, recipe: Recipe, method: str) -> Recipe:
        """A stored recipe with the paths of this call: the folder may have been moved since, or its path may have been
        relative to another working directory."""
        earlier_out = Path(recipe.run.out)
        if method:  # run.out is the subfolder of the method
            earlier_out = earlier_out.parent
        data = replace(recipe.data, root=str(self.data))
        if data.frozen_folder == str(earlier_out / FROZEN):  # else the user chose it, and it stays
            data = replace(data, frozen_folder=str(self.out / FROZEN))
        run = replace(recipe.run, out=str(method_folder(self.out, method)))
        return replace(recipe, data=data, run=run)

    def _say_plan(self, summary: SplitSummary, recipes: Mapping[str, Recipe]) -> None:
        """Say what will be done, unless all models are trained."""
        if all(is_trained(Path(recipe.run.out)) for recipe in recipes.values()):
            return
        what = f"the weights of {self.model}"
        if summary.labels:
            what = f"a new classifier of {len(summary.labels)} classes and {what}"
        methods = f" ({', '.join(recipes)})" if self.compare else ""
        self.say(f"to do: train {what}{methods}, average with the initial weights, measure, and write a report")

    def _result(
        self,
        method: str,
        recipe: Recipe,
        summary: SplitSummary,
    ) -> Result:
        """Train by one method, average and measure, skipping finished stages."""
        folder = Path(recipe.run.out)
        heads = head_names(summary)
        if not (folder / AVERAGE).exists():
            tuned = trained_model(recipe, self.say)
            self.say(f"{_prefix(method)}averaging the weights")
            average_weights(tuned, recipe, self.data, summary, heads)
        average = read_average(folder)
        self.say(f"{_prefix(method)}weights {average.described()}")
        if not (folder / AFTER).exists():
            self.say(f"{_prefix(method)}measuring the new model")
            measure(folder / "model", self.data, summary, heads, path=folder / AFTER)
        for checkpoint in checkpoint_files.folders(folder):  # the training is over: nothing resumes from them
            checkpoint_files.remove(checkpoint)
        return Result(
            method=method,
            folder=folder,
            recipe=recipe,
            average=average,
            seconds=sum(line.get("seconds", 0.0) for line in read_log(folder / LOG_FILE)),
            before=read_answers(self.out / BEFORE),
            after=read_answers(folder / AFTER),
        )


def _prefix(method: str) -> str:
    """Begins the lines about a method if several are compared."""
    return f"{method}: " if method else ""


def _described(recipe: Recipe) -> str:
    """The main settings, in words."""
    items = ", ".join(f"{recipe.batch_size(name)} {name}" for name in recipe.data.modalities)
    text = f"steps {recipe.schedule.steps}, items {items}, rate {recipe.optim.lr}, training {trained(recipe)}"
    if recipe.run.recompute == "blocks":
        text += ", activations computed again"
    if recipe.run.grad_cache_chunks > 1:
        text += f", each step in {recipe.run.grad_cache_chunks} parts"
    return f"{text} (change them by a.b=value)"


def _left_out(summary: SplitSummary) -> str:
    """Number of samples that could not be used, and the first of them, as text."""
    count = len(summary.left_out)
    if not count:
        return ""
    first = "; ".join(f"{where}: {reason}" for where, reason in summary.left_out[:FAILURES_SHOWN])
    more = f" and {count - FAILURES_SHOWN} more" if count > FAILURES_SHOWN else ""
    return f"; {count} left out: {first}{more}"
