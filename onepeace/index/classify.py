"""Step "classify" of a run: which entries of a scan must be read, as their vectors are not in the index."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

from onepeace.errors import MissingPackage
from onepeace.index.entries import PARTS, Entry
from onepeace.index.items import Item
from onepeace.index.record import Recorder
from onepeace.index.scan import Scan


def entries_to_read(recorder: Recorder, scan: Scan, *, keeps_captions: bool) -> Iterator[Entry]:
    """Yield new entries, those whose size, time or kind has changed, and those that a retry may mend. The others are
    recorded.

    Args:
        keeps_captions: whether a file keeps its caption and other columns if the scan has none for it.
    """
    modalities = recorder.store.modalities
    for entry in scan.entries.values():
        item = entry.item
        previous = recorder.items.get(item.path)
        if previous is not None and keeps_captions:
            item = replace(
                item,
                caption=item.caption or previous.caption,
                metadata=item.metadata or previous.metadata,
            )
        if item.problem is not None:
            recorder.record_problem(item, item.problem)
        elif not modalities_of(item, modalities):
            recorder.report.left_out[item.modality] += 1
        elif previous is None or not _is_same_file(previous, item) or may_work_now(previous):
            yield Entry(item, entry.value)
        else:
            recorder.record_unchanged(previous, item)


def modalities_of(item: Item, modalities: tuple[str, ...]) -> list[str]:
    """Modalities of the vectors that a model makes of a file; a video has those of its parts."""
    parts = PARTS.get(item.modality, (item.modality,))
    return [modality for modality in parts if modality in modalities]


def may_work_now(item: Item) -> bool:
    """Whether to retry an unchanged file with a problem: it could not be opened (permissions may have changed), or a
    package was missing that is now installed."""
    if item.problem is None:
        return False
    if item.hash is None:
        return True
    package = MissingPackage.named_in(item.problem)
    return package is not None and find_spec(package) is not None


def _is_same_file(previous: Item, item: Item) -> bool:
    before = (previous.size, previous.mtime_ns, previous.modality)
    return before == (item.size, item.mtime_ns, item.modality)
