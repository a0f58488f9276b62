"""A progress bar for a terminal, by rich."""

from __future__ import annotations

import sys

from mlstate.fetch.progress import OnProgress, Progress

__all__ = ["listener"]


def listener(progress: OnProgress | bool | None) -> OnProgress | None:
    """Whom to tell: what the caller gave; for True, a bar on the terminal."""
    if isinstance(progress, bool):
        return _terminal_bar() if progress else None
    return progress


def _terminal_bar() -> OnProgress | None:
    """Shows progress on the terminal of standard error; None if that is no terminal."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars
    from rich.table import Column

    # A long key gives way to the numbers: it has what is left of the line.
    what = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    bars = Bars(
        TextColumn("{task.description}", table_column=what),
        BarColumn(bar_width=12),
        DownloadColumn(table_column=Column(no_wrap=True)),
        TransferSpeedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        console=Console(stderr=True),
        expand=True,
    )

    def show(progress: Progress) -> None:
        if not bars.task_ids and not progress.ended:
            bars.add_task(progress.what, total=None)
            bars.start()
        for task in bars.task_ids:
            bars.update(task, completed=progress.done, total=progress.total)
        if progress.ended:
            bars.stop()
            for task in bars.task_ids:
                bars.remove_task(task)

    return show
