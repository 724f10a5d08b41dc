"""`Index`: an index folder as users see it. Importing this takes no torch; a query of words alone may need none."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from onepeace.errors import UserError
from onepeace.files.walk import Unreadable
from onepeace.index.calibration import FILE as CALIBRATION
from onepeace.index.calibration import MODALITIES, Calibration
from onepeace.index.candidates import Candidates
from onepeace.index.identity import IMPORTED, check_model, identity, refuse_imported
from onepeace.index.milvus import Mirror, reading
from onepeace.index.nearest import NEAREST
from onepeace.index.path_glob import path_glob as path_condition
from onepeace.index.path_glob import register
from onepeace.index.query import Part, encode
from onepeace.index.ranking import RANKINGS
from onepeace.index.search import Duplicates, Filter, Filters, Results, Sort, hits_of
from onepeace.index.sources import unreadable
from onepeace.index.store import DATABASE, Item, Rows, Store
from onepeace.index.where import after as after_date
from onepeace.index.where import before as before_date
from onepeace.index.where import parse

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.index.build import Report
    from onepeace.index.text_encoder import OnnxTextEncoder

TEXT_ENCODER = "model"
"""Folder of what reads words without torch."""


class Index:
    """The vectors of files, and what is known of the files, in a folder.

    ``with Index.open("photos.index") as index: ...``. It is open for reading, and shows the state of that moment;
    another process may write meanwhile.
    """

    def __init__(self, store: Store, load: "Callable[[], Embedder]") -> None:
        self.store = store
        self._load = load

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
    ) -> "Index":
        """An index that is there.

        Args:
            model: for queries, where the model it was made with has another name here.
            device, dtype: see `onepeace.load`; the model is loaded with the first query that needs it.

        Raises:
            UserError: no index, a damaged one, or one of another format.
        """
        store = Store(Path(folder))

        def load_model() -> "Embedder":
            from onepeace.embed.embedder import load

            refuse_imported(store)
            name = model or store.meta["model"]
            check_model(store, identity(name))
            return load(name, device=device, dtype=dtype)

        return cls(store, load_model)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._close_mirror()
        self.store.close()

    def _close_mirror(self) -> None:
        if mirror := self.__dict__.pop("mirror", None):
            mirror.close()

    def __len__(self) -> int:
        """Files that have vectors."""
        return self.store.count("problem IS NULL")

    def __repr__(self) -> str:
        return f"Index({str(self.store.folder)!r}, {len(self)} files, model {self.model!r})"

    @property
    def model(self) -> str:
        """The name of the model that made the vectors."""
        return self.store.meta["model"]

    @property
    def is_imported(self) -> bool:
        """Whether its vectors came from elsewhere, and there is no model here to make others like them."""
        return self.store.meta["model_hash"] == IMPORTED

    @property
    def embed_dim(self) -> int:
        return self.store.embed_dim

    def items(self) -> Iterator[Item]:
        """The files that have vectors, in the order in which they came."""
        return self.store.items("problem IS NULL")

    def problems(self) -> list[Unreadable]:
        """The files that have none, with the reasons."""
        return [unreadable(item.path, item.problem or "") for item in self.store.items("problem IS NOT NULL")]

    @cached_property
    def rows(self) -> Rows:
        """All vectors, and what they belong to."""
        return self.store.rows()

    @cached_property
    def embedder(self) -> "Embedder":
        """The model that made the vectors."""
        return self._load()

    @cached_property
    def calibration(self) -> Calibration | None:
        """What makes one scale of the scores; None where the model has none."""
        path = self.store.folder / CALIBRATION
        if not path.is_file() or len(self.store.kinds) > len(MODALITIES):
            return None
        return Calibration.load(path, embed_dim=self.embed_dim, model=self.store.meta["model_hash"])

    @cached_property
    def candidates(self) -> Candidates:
        """The vectors, to be ranked."""
        return Candidates(self.store.folder, self.store.meta, self.rows, self.calibration)

    @cached_property
    def mirror(self) -> Mirror | None:
        """The collection in Milvus that is asked which vectors are near; None for an index without one."""
        return reading(self.store)

    @cached_property
    def _filters(self) -> Filters:
        return Filters(self.store, self.rows)

    def _text_encoder(self) -> "OnnxTextEncoder | None":
        from onepeace.index.text_encoder import OnnxTextEncoder

        return OnnxTextEncoder.open(self.store.folder / TEXT_ENCODER, self.store.meta["model_hash"])

    def search(
        self,
        parts: Sequence[Part],
        *,
        top: int = 10,
        offset: int = 0,
        only: str | Sequence[str] = (),
        path_glob: str | None = None,
        after: str | None = None,
        before: str | None = None,
        where: str | None = None,
        sort: Sort = "match",
        rank: str | None = None,
        min_match: float | None = None,
        duplicates: Duplicates = "collapse",
        nearest: str = "auto",
    ) -> Results:
        """The files nearest to a query, best first.

        Args:
            parts: what is searched for; several are one query, their weighted sum.
            top, offset: so many hits, after leaving out so many.
            only: kind of files, or several: image, audio, text, video, or those of an import.
            path_glob, after, before, where: which files may be found (where.py).
            sort: match; date (newest first) or path, of the best POOL (search.py), or ``top`` + ``offset`` if that is
                more, those that reach ``min_match``.
            rank: a key of RANKINGS (ranking.py); None = znorm, or raw where there is no calibration.
            min_match: probability below which a hit counts as not relevant.
            duplicates: near copies as one hit, or each.
            nearest: search structure, a key of NEAREST (nearest.py), where it is kept and the ranking allows it; "auto"
                takes the one that is there.

        Raises:
            UserError: a query that cannot be encoded, a filter or an option that cannot be read.
        """
        if not (isinstance(top, Integral) and isinstance(offset, Integral) and top >= 1 and offset >= 0):
            raise UserError(f"top is {top} and offset {offset}; give whole numbers, at least 1, and 0")
        if min_match is not None and not 0 <= min_match <= 1:
            raise UserError(f"min_match is {min_match}; give a number from 0 to 1")
        only = (only,) if isinstance(only, str) else tuple(only)
        choices: list[tuple[str, str, Sequence[str]]] = [
            ("sort", sort, get_args(Sort)),
            ("duplicates", duplicates, get_args(Duplicates)),
            ("nearest", nearest, ("auto", *NEAREST)),
            *(("only", kind, (*self.store.kinds, "video")) for kind in only),
        ]
        if rank is not None:
            choices.append(("rank", rank, tuple(RANKINGS)))
        for name, value, known in choices:
            if value not in known:
                raise UserError(f"{name} is {value!r}; it can be {', '.join(known)}")
        conditions = []
        if where is not None:
            conditions.append(parse(where))
        conditions += [read(date) for read, date in ((after_date, after), (before_date, before)) if date is not None]
        if path_glob is not None:
            register(self.store.connection)
            conditions.append(path_condition(path_glob, [os.fsencode(root) for root in self.store.roots()]))
        query = encode(parts, self.store, lambda: self.embedder, self._text_encoder)
        files = [part.value for part in parts if part.kind != "text" and isinstance(part.value, (str, os.PathLike))]
        own = {path(file) for file in files for path in (os.path.realpath, os.path.abspath)}
        rows = self.rows
        allowed = self._filters.allowed(Filter(only, tuple(conditions), frozenset(own)))
        rank = rank or ("raw" if self.calibration is None else "znorm")
        if self.mirror is None or nearest != "auto":
            best = self.candidates.best(query, rank, allowed, nearest)
        else:
            best = self.mirror.best(self.candidates, query, rank, allowed)
        options: dict[str, Any] = {"top": top, "offset": offset, "sort": sort, "duplicates": duplicates}
        hits = tuple(hits_of(self.store, rows, best, min_match=min_match, **options))
        matches = [hit.match for hit in hits if hit.match is not None]
        relevant = None if min_match is None or not matches else max(matches) >= min_match
        return Results(hits, self._filters.count(allowed), relevant)

    def add(self, paths: Sequence[str | os.PathLike[str]], **options: Any) -> "Report":
        """Embed files into the index, which shows them then; see `build`."""
        self._close_mirror()  # a file of Milvus Lite can be open once only
        from onepeace.index.write import build

        report = build(self.store.folder, paths, **options)
        self._show(Store(self.store.folder))
        return report

    def refresh(self) -> None:
        """Show what another process has written since, if anything.

        Raises:
            UserError: it was made anew with another model; a damaged one. What was shown is shown still.
        """
        if self.store.is_current():
            return
        new = Store(self.store.folder)
        if new.meta["model_hash"] != self.store.meta["model_hash"]:
            new.close()
            raise UserError(f"{self.store.folder}: made anew with another model; open it, or start the server, again")
        self._show(new)

    def _show(self, store: Store) -> None:
        self.close()
        self.store = store
        for name in ("rows", "calibration", "candidates", "_filters"):
            self.__dict__.pop(name, None)


def is_index(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of an index."""
    return (Path(path) / DATABASE).is_file()
