"""PruneProgress: a progress bar for each kind of row that is pruned."""

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.output.terminal import Screen, err
from db.session import Database
from db.upkeep.pruning import num_prunable
from db.upkeep.retention import Retention


class PruneProgress:
    """Bars on a terminal. Elsewhere it shows nothing and does not count the rows that are due."""

    def __init__(self, database: Database, retention: Retention, console: Screen = err) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        due = num_prunable(database, retention) if console.is_terminal else {}
        self._bars = {
            name: self._progress.add_task(name, total=num) for name, num in due.items() if num
        }

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, name: str, num: int) -> None:
        if name in self._bars:
            self._progress.update(self._bars[name], advance=num)
