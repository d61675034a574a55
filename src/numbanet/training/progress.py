"""A line of progress on a terminal; silent elsewhere."""

import os
import sys
import time


class Progress:
    """Shows epochs, a bar, metrics and the remaining time, at most ten times a second.

    With zero epochs, or where the stream is no terminal, it shows nothing.
    """

    def __init__(self, epochs: int, stream=None):
        self.stream = stream or sys.stderr
        self.epochs = epochs if epochs and self.stream.isatty() else 0
        self.done, self.metrics = 0, ""
        self.start, self.shown = time.monotonic(), 0.0

    def step(self, fraction: float) -> None:
        """Show that this fraction of the current epoch is done."""
        now = time.monotonic()
        if self.epochs and now - self.shown >= 0.1:
            self.shown = now
            total = (self.done + fraction) / self.epochs
            left = (now - self.start) * (1 / total - 1) if total else 0
            bar = "█" * int(24 * total) + "·" * (24 - int(24 * total))
            epoch = min(self.done + 1, self.epochs)
            self._write(f"epoch {epoch}/{self.epochs} {bar} {left:5.1f} s left  {self.metrics}")

    def epoch(self, logs: dict[str, float]) -> None:
        """Take the metrics of an epoch."""
        self.done += 1
        self.metrics = "  ".join(f"{name} {value:.4g}" for name, value in logs.items())
        self.step(0)

    def close(self) -> None:
        """Leave a last line with the metrics and the time it took."""
        if self.epochs:
            seconds = time.monotonic() - self.start
            self._write(f"{self.done} epochs in {seconds:.1f} s  {self.metrics}")
            self.stream.write("\n")
            self.stream.flush()

    def _write(self, text: str) -> None:
        try:
            width = os.get_terminal_size(self.stream.fileno()).columns
        except (OSError, ValueError):
            width = 80
        self.stream.write("\r\x1b[K" + text[: max(1, width - 1)])
        self.stream.flush()
