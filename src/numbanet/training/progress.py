"""A line of progress on a terminal; silent elsewhere."""

import os
import sys
import time


class Progress:
    """Shows epochs, a bar, figures and the time that is left, at most ten times a second. Zero epochs show nothing."""

    def __init__(self, epochs: int, stream=None):
        self.stream = stream or sys.stderr
        self.epochs = epochs if epochs and self.stream.isatty() else 0
        self.done, self.figures, self.began, self.shown = 0, "", time.monotonic(), 0.0

    def step(self, share: float) -> None:
        """Show that this share of the present epoch is done."""
        now = time.monotonic()
        if self.epochs and now - self.shown >= 0.1:
            self.shown = now
            whole = (self.done + share) / self.epochs
            left = (now - self.began) * (1 / whole - 1) if whole else 0
            bar = "█" * int(24 * whole) + "·" * (24 - int(24 * whole))
            self._write(f"epoch {min(self.done + 1, self.epochs)}/{self.epochs} {bar} {left:5.1f} s left  {self.figures}")

    def epoch(self, logs: dict[str, float]) -> None:
        """Take in the figures of an epoch."""
        self.done += 1
        self.figures = "  ".join(f"{name} {value:.4g}" for name, value in logs.items())
        self.step(0)

    def close(self) -> None:
        """Leave a last line with the figures and the time it took."""
        if self.epochs:
            self._write(f"{self.done} epochs in {time.monotonic() - self.began:.1f} s  {self.figures}")
            self.stream.write("\n")
            self.stream.flush()

    def _write(self, text: str) -> None:
        try:
            width = os.get_terminal_size(self.stream.fileno()).columns
        except (OSError, ValueError):
            width = 80
        self.stream.write("\r\x1b[K" + text[: max(1, width - 1)])
        self.stream.flush()
