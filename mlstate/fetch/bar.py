"""A progress bar for a terminal, by rich."""

from __future__ import annotations

import sys

from mlstate.errors import MlstateError
from mlstate.fetch.progress import OnProgress, Progress

__all__ = ["listener"]


def listener(progress: OnProgress | bool | None) -> OnProgress | None:
    """Whom to tell: what the caller gave; for True, a bar on the terminal.

    Raises:
        MlstateError: The package rich is not installed, and there is a terminal.
    """
    if isinstance(progress, bool):
        return _terminal_bar() if progress else None
    return progress


def _terminal_bar() -> OnProgress | None:
    """Shows progress on the terminal of standard error; None if that is no terminal.

    Raises:
        MlstateError: The package rich is not installed.
    """
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bars
    except ModuleNotFoundError:
        raise MlstateError(
            "progress=True needs the package rich", remedy="pip install 'mlstate[progress]'"
        ) from None
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )

    def show(progress: Progress) -> None:
        if not bars.task_ids and not progress.ended:
            bars.add_task(progress.what)
            bars.start()
        for task in bars.task_ids:
            bars.update(task, completed=progress.done, total=progress.total)
        if progress.ended:
            bars.stop()
            for task in bars.task_ids:
                bars.remove_task(task)

    return show
