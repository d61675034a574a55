"""What fit shows: a line that is rewritten, on a terminal and in a notebook, or one per epoch."""

import importlib
import os
import sys
import time
from contextlib import suppress
from typing import Any

from numbanet.io.fields import Count

SAYS = "{label} is 0 (nothing), 1 (a line of progress) or 2 (a line for each epoch), got {got}"
VERBOSE = Count(0, 2, says=SAYS, beyond=SAYS)


class Progress:
    """Shows epochs, a bar, the remaining time, speed and metrics, at most ten times a second.

    samples   of each epoch
    verbose   1: on a terminal and in a notebook, nothing elsewhere; 2: a line for each epoch,
              anywhere; 0: nothing
    stream    what it is written to, by default stderr
    reason    an attribute: why it ended before the last epoch, for a log
    """

    def __init__(self, epochs: int, samples: int, verbose: int, stream=None):
        self.epochs, self.samples, self.verbose = epochs, samples, verbose
        stream = stream or sys.stderr  # None in a program without a console
        self.line = _line(verbose, stream) if epochs and stream is not None else None
        self.done, self.metrics, self.reason = 0, "", ""
        self.start, self.shown = time.monotonic(), 0.0

    def step(self, fraction: float) -> None:
        """Show that this fraction of the current epoch is done."""
        now = time.monotonic()
        if self.line and self.verbose == 1 and now - self.shown >= 0.1:
            self.shown = now
            done, total = self.done + fraction, (self.done + fraction) / self.epochs
            bar = "█" * int(24 * total) + "·" * (24 - int(24 * total))
            epoch = min(self.done + 1, self.epochs)
            self.line.show(f"epoch {epoch}/{self.epochs} {bar} {self._pace(now, done)}")

    def epoch(self, logs: dict[str, float]) -> None:
        """Take the metrics of an epoch."""
        self.done += 1
        self.metrics = "  ".join(f"{name} {value:.4g}" for name, value in logs.items())
        if self.line and self.verbose == 2:
            pace = self._pace(time.monotonic(), self.done)
            self.line.show(f"epoch {self.done}/{self.epochs}  {pace}")
        self.step(0)

    def _pace(self, now: float, done: float) -> str:
        """The remaining time, the speed and the metrics after so many epochs."""
        left = (now - self.start) * (self.epochs / done - 1) if done else 0
        return f"{left:5.1f} s left  {self._speed(now, done)}{self.metrics}"

    def _speed(self, now: float, done: float) -> str:
        seconds = now - self.start
        return (
            f"{done * self.samples / seconds:,.0f} samples/s  "
            if done and seconds > 0 and self.samples
            else ""
        )

    def new_line(self) -> None:
        """Leave the line as it is, because something else is printed."""
        if self.line and self.verbose == 1 and self.shown:
            self.line.end()

    def close(self) -> None:
        """Leave a last line with the metrics and the time it took."""
        if self.line:
            if self.reason and self.verbose == 2:
                self.line.show(f"ended early by {self.reason}")
            now = time.monotonic()
            speed = self._speed(now, self.done)
            self.line.show(f"{self.done} epochs in {now - self.start:.1f} s  {speed}{self.metrics}")
            self.line.end()


class _TerminalLine:
    """One line of a terminal, rewritten."""

    def __init__(self, stream):
        self.stream = stream

    def show(self, text: str) -> None:
        try:
            width = os.get_terminal_size(self.stream.fileno()).columns or 80
        except (OSError, ValueError):
            width = 80
        _write(self.stream, "\r\x1b[K" + text[: max(1, width - 1)])

    def end(self) -> None:
        _write(self.stream, "\n")


class _NotebookLine:
    """One output of a notebook's cell, updated."""

    def __init__(self, display):
        self.display, self.handle = display, None

    def show(self, text: str) -> None:
        content = {"text/plain": text}
        if self.handle is None:
            self.handle = self.display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)

    def end(self) -> None:
        """What else is printed has an output of its own."""


class _LogLines:
    """A line for each text."""

    def __init__(self, stream):
        self.stream = stream

    def show(self, text: str) -> None:
        _write(self.stream, text + "\n")

    def end(self) -> None:
        """Every line has ended."""


def _write(stream, text: str) -> None:
    """Write, where somebody still reads."""
    with suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()


def _line(verbose: int, stream) -> Any:
    """What shows the texts, None where nothing does."""
    if verbose == 2:
        return _LogLines(stream)
    if not verbose:
        return None
    display = _notebook_display()
    if display is not None:
        return _NotebookLine(display)
    return _TerminalLine(stream) if stream.isatty() else None


def _notebook_display():
    """IPython's `display` where this process is the kernel of a notebook, else None."""
    if "IPython" not in sys.modules:
        return None
    shell = sys.modules["IPython"].get_ipython()
    if shell is None or not shell.has_trait("kernel"):
        return None
    return importlib.import_module("IPython.display").display
