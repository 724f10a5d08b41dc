"""Fine-tuning on a user's data, from reading it to the report. Finished stages are kept: the same call resumes.

The stages are: read and split the data (split.py); measure the initial model (answers.py); and in each way to train
(settings.py), train, average (stages.py), measure and report (report.py).
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
from onepeace.finetune.average import AVERAGE, read_average
from onepeace.finetune.folder import ABOUT, check_only_ours, check_same, clear, read_identity
from onepeace.finetune.memory import fitting_recipe
from onepeace.finetune.own_data import read_own_data
from onepeace.finetune.report import Result, write_report
from onepeace.finetune.settings import WAYS, auto_recipe, head_names, trained
from onepeace.finetune.split import SUMMARY, SplitSummary, divide, read_summary, write_shards
from onepeace.finetune.stages import average_weights, is_trained, measure, trained_model
from onepeace.hub.fingerprint import fingerprint
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import resolve
from onepeace.train import checkpoint_files
from onepeace.train.folder import model_folder
from onepeace.train.log import FILE as LOG
from onepeace.train.log import read_log
from onepeace.train.recipe import Recipe

log = logging.getLogger(__name__)

SETTINGS = "settings.json"
BEFORE = "before.jsonl"
AFTER = "after.jsonl"
FAILURES_SHOWN = 3


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning in a folder: data/ (shards), before.jsonl; and for each way to train, in the folder itself, or if
    there are several, in a subfolder, the files of the run, average.json, after.jsonl, report.html and model/.

    Args:
        source: the user's folder or table.
        out: folder of the fine-tuning.
        model: initial model: a name or a folder.
        overrides: fields of the recipe, such as "optim.lr=1e-4".
        group: regular expression for the common part of the paths of files that belong together (groups.py).
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

    @property
    def ways(self) -> list[str]:
        """The ways to train; "" for the one that suits the model."""
        return list(WAYS) if self.compare else [""]

    def run(self, overwrite: bool = False) -> list[Result]:
        """Run all stages that are not done yet; returns the result of each way.

        Raises:
            UserError: nothing can be learned from the data; the folder has another fine-tuning in it, or another run
                is writing to it.
        """
        read_identity(self.out)  # before the lock adds a file to a folder of something else
        with locked(self.out):
            summary, recipes = self._prepare(overwrite)
            self._say_plan(summary, recipes)
            if not (self.out / BEFORE).exists():
                self.say(f"measuring {self.model}")
                measure(self.start, self.data, summary, heads={}, path=self.out / BEFORE)
            results = [self._result(way, recipe, summary) for way, recipe in recipes.items()]
            for result in results:
                write_report(result, self.source, self.model, self.data, summary)
            return results

    def _prepare(self, overwrite: bool) -> tuple[SplitSummary, dict[str, Recipe]]:
        """Contents of the parts of the data, and the recipe of each way; both are read if an earlier call wrote them.

        The folder is cleared and written only after data and recipes have been read and checked.
        """
        if self.compare:
            need("peft", "lora")
        identity = {
            "source": os.path.abspath(self.source),
            "columns": dict(self.columns),
            "split": self.split,
            "model": fingerprint(self.start),
            "set": list(self.overrides),
            "group": self.group,
            "compare": self.compare,
            "name": self.model,
        }
        earlier = read_identity(self.out)
        if earlier is not None and overwrite:
            self._check_can_be_cleared()
        elif earlier is not None:
            check_same(self.out, earlier, identity)
        if not overwrite and (self.data / SUMMARY).exists():
            return self._go_on(identity)
        with self._folder_of_cells() as unpacked:
            return self._begin(identity, overwrite, unpacked)

    def _check_can_be_cleared(self) -> None:
        for needed in (self.start, self.source):
            if needed.resolve().is_relative_to(self.out.resolve()):
                raise UserError(f"{needed} is needed, and --force would remove it; give -o another folder")
        check_only_ours(self.out)

    def _go_on(self, identity: Mapping[str, object]) -> tuple[SplitSummary, dict[str, Recipe]]:
        summary = read_summary(self.data)
        self.say(f"{self.out}: the parts of an earlier call are used; --force reads {self.source} again")
        recipes = {}
        for way in self.ways:
            recipes[way] = self._stored_recipe(way) or self._new_recipe(way, summary)
        self._write_settings(identity, recipes)
        return summary, recipes

    @contextmanager
    def _folder_of_cells(self) -> Iterator[Path | None]:
        """A temporary folder beside the output for files that lie in cells; None if the source has no such cells."""
        if not is_arrow(self.source):
            yield None
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.out.parent, prefix=f".{self.out.name}-") as folder:
            yield Path(folder)

    def _begin(
        self, identity: Mapping[str, object], overwrite: bool, unpacked: Path | None
    ) -> tuple[SplitSummary, dict[str, Recipe]]:
        modalities = list(read_config(self.start).model.adapters)
        data = read_own_data(
            self.source,
            modalities,
            columns=self.columns,
            split=self.split,
            unpacked=unpacked,
        )
        split, summary = divide(data, self.source, self.group)
        self.say(f"{self.source}: {summary.files}{_left_out(summary)}")
        self.say(summary.described())
        recipes = {way: self._new_recipe(way, summary) for way in self.ways}
        if overwrite:
            clear(self.out)
        self._write_settings(identity, recipes)
        write_shards(split, summary, self.data)
        return summary, recipes

    def _write_settings(self, identity: Mapping[str, object], recipes: Mapping[str, Recipe]) -> None:
        write_text_atomic(self.out / ABOUT, json.dumps(identity, indent=1) + "\n")
        for way, recipe in recipes.items():
            (self.out / way).mkdir(exist_ok=True)
            settings = json.dumps(to_plain(recipe), indent=1)
            write_text_atomic(self.out / way / SETTINGS, f"{settings}\n")
            self.say(f"{_prefix(way)}{_described(recipe)}")

    def _new_recipe(self, way: str, summary: SplitSummary) -> Recipe:
        content = auto_recipe(self.start.absolute(), self.data, self.out, summary, way)
        return fitting_recipe(content, self.overrides, available_memory(choose_device()), self.say)

    def _stored_recipe(self, way: str) -> Recipe | None:
        """The recipe that the first call stored, as the available memory may differ later.

        Its paths become the present ones: the folder may have been moved, or be relative to another one.
        """
        path = self.out / way / SETTINGS
        if not path.exists():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        recipe = build(Recipe, content, str(path))
        old = Path(recipe.run.out)
        if way:
            old = old.parent
        data = replace(recipe.data, root=str(self.data))
        if data.frozen_folder == str(old / "frozen"):  # otherwise chosen by the user
            data = replace(data, frozen_folder=str(self.out / "frozen"))
        run = replace(recipe.run, out=str(self.out / way))
        return replace(recipe, data=data, run=run)

    def _say_plan(self, summary: SplitSummary, recipes: Mapping[str, Recipe]) -> None:
        """Say what will be done, unless all models are trained."""
        if all(is_trained(Path(recipe.run.out)) for recipe in recipes.values()):
            return
        what = f"the weights of {self.model}"
        if summary.labels:
            what = f"a new classifier of {len(summary.labels)} classes and {what}"
        ways = f" ({', '.join(recipes)})" if self.compare else ""
        self.say(f"to do: train {what}{ways}, average them with those they had, measure, and write a report")

    def _result(
        self,
        way: str,
        recipe: Recipe,
        summary: SplitSummary,
    ) -> Result:
        """Train in one way, average and measure, skipping finished stages."""
        folder = Path(recipe.run.out)
        heads = head_names(summary)
        if not (folder / AVERAGE).exists():
            tuned = trained_model(recipe, self.say)
            self.say(f"{_prefix(way)}averaging the weights")
            average_weights(tuned, recipe, self.data, summary, heads)
        average = read_average(folder)
        self.say(f"{_prefix(way)}weights {average.described()}")
        if not (folder / AFTER).exists():
            self.say(f"{_prefix(way)}measuring the new model")
            measure(folder / "model", self.data, summary, heads, path=folder / AFTER)
        for path in checkpoint_files.folders(folder):  # nothing resumes from them any more
            checkpoint_files.remove(path)
        return Result(
            way=way,
            folder=folder,
            recipe=recipe,
            average=average,
            seconds=sum(line.get("seconds", 0.0) for line in read_log(folder / LOG)),
            before=read_answers(self.out / BEFORE),
            after=read_answers(folder / AFTER),
        )


def _prefix(way: str) -> str:
    return f"{way}: " if way else ""


def _described(recipe: Recipe) -> str:
    """The main settings, in words."""
    items = ", ".join(f"{recipe.batch_size(name)} {name}" for name in recipe.data.modalities)
    text = f"steps {recipe.schedule.steps}, items {items}, rate {recipe.optim.lr}, training {trained(recipe)}"
    if recipe.run.recompute == "blocks":
        text += ", activations computed again"
    if recipe.run.grad_cache_chunks > 1:
        text += f", each step in {recipe.run.grad_cache_chunks} parts"
    return f"{text} (a.b=value sets another)"


def _left_out(summary: SplitSummary) -> str:
    """Number of samples that could not be used, and the first of them, as text."""
    count = len(summary.left_out)
    if not count:
        return ""
    first = "; ".join(f"{where}: {reason}" for where, reason in summary.left_out[:FAILURES_SHOWN])
    more = f" and {count - FAILURES_SHOWN} more" if count > FAILURES_SHOWN else ""
    return f"; {count} left out: {first}{more}"
