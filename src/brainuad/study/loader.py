"""Read and prepare the next scans while earlier ones are processed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait

from brainuad.config import DataConfig
from brainuad.data.cohort import Case
from brainuad.data.loading import NativeCase, PreparedCase, ahead, content_key, load_case, load_native
from brainuad.errors import InputError


class Loader:
    """Loads cases onto the model's grid. In a sequence, ``num_workers`` threads load the next few ahead."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self._loading: dict[Case, Future[PreparedCase | None]] = {}
        self._contents: dict[Case, str] = {}

    def __call__(self, case: Case) -> PreparedCase:
        """Return a case on the model's grid; errors as `brainuad.data.loading.load_case`."""
        loading = self._loading.pop(case, None)
        loaded = None if loading is None else loading.result()
        return load_case(case, self.config) if loaded is None else loaded

    def native(self, prepared: PreparedCase) -> NativeCase:
        """Return a case on its files' own grid; errors as `brainuad.data.loading.load_native`."""
        return prepared.native or load_native(prepared.case, self.config)

    def in_turn(
        self, cases: Iterable[Case], *, wanted: Callable[[Case], bool] = lambda case: True, native: bool = False
    ) -> Iterator[Case]:
        """Yield cases in order, loaded ahead; calling the loader for one then returns it or raises its error.

        ``wanted`` returns whether a case will be needed, in threads; ``native`` loads its files' own grid, too.
        """

        def load(case: Case) -> PreparedCase | None:
            return load_case(case, self.config, native=native) if wanted(case) else None

        for case, loading in ahead(load, cases, self.config.num_workers):
            wait([loading])
            self._loading[case] = loading
            yield case
            self._loading.pop(case, None)

    def content(self, case: Case) -> str:
        """Return a key that changes with a case's files and with the grid."""
        if case not in self._contents:
            try:
                self._contents[case] = content_key(case, self.config)
            except InputError as error:
                self._contents[case] = str(error)
        return self._contents[case]
