"""What a training measured."""


class History:
    """The metrics and times of every epoch, as `fit` returns them.

    history   name of a metric → its values, one per epoch
    seconds   duration of each epoch
    """

    def __init__(self):
        self.history: dict[str, list[float]] = {}
        self.seconds: list[float] = []

    def add(self, logs: dict[str, float], seconds: float) -> None:
        """Append one epoch."""
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)
        self.seconds.append(seconds)

    def __repr__(self):
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.history.items())
        return f"<History of {len(self.seconds)} epochs: {last}>"
