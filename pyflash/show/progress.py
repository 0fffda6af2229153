"""A progress bar: rich's where it is installed, a plain one without it, and lines where there is no terminal."""

from __future__ import annotations

import sys
import time

WIDTH = 30
SECONDS_BETWEEN_LINES = 5.0  # for notes, where nobody watches


class Progress:
    """Context manager; `note` says what is being done, `advance` that it is done, `print` adds a line above the bar."""

    def __init__(self, title: str, total: int, stream=None):
        self.title, self.total, self.done, self.text = title, total, 0, ""
        self.stream = stream or sys.stdout
        self.terminal = self.stream.isatty()
        self.bar = self._rich_bar() if self.terminal else None
        self.last_line = 0.0

    def _rich_bar(self):
        try:
            from rich import progress
            from rich.console import Console
        except ImportError:
            return None
        bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[text]}"),
            console=Console(file=self.stream),
            transient=True,
        )
        self.task = bar.add_task(self.title, total=self.total, text="")
        return bar

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()
        elif self.terminal:
            self._erase()

    def note(self, text: str) -> None:
        self.text = text
        self._show()

    def advance(self, text: str | None = None) -> None:
        self.done += 1
        self.text = self.text if text is None else text
        self._show()

    def print(self, text: str) -> None:
        if self.bar:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        if self.terminal:
            self._erase()
        print(text, file=self.stream, flush=True)
        self.last_line = time.monotonic()

    def _show(self) -> None:
        if self.bar:
            self.bar.update(self.task, completed=self.done, text=self.text)
        elif self.terminal:
            full = WIDTH * self.done // max(self.total, 1)
            self.stream.write(f"\r\033[K{self.title} [{'#' * full:<{WIDTH}}] {self.done}/{self.total} {self.text}")
            self.stream.flush()
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES or self.done == self.total:
            self.last_line = time.monotonic()
            print(f"{self.title}: {self.done}/{self.total} {self.text}".rstrip(), file=self.stream, flush=True)

    def _erase(self) -> None:
        self.stream.write("\r\033[K")
        self.stream.flush()
