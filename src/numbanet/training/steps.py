"""Between the native calls of an epoch: progress, callbacks at steps, and how far the epoch is."""

import time
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol

from numbanet.io.fields import Count, Flag, check
from numbanet.training.callbacks import Callback


@dataclass(frozen=True)
class Unfinished:
    """How far an epoch has come, in a network that is saved in the midst of it.

    batches      taken so far
    batch_size   samples in each of them
    samples      in the whole epoch, None where blocks of data do not say it
    shuffle      whether the samples come in the order that belongs to seed and epoch
    accumulate   batches of an update
    sums         of losses and correct answers so far, as the executor adds them up
    """

    batches: Annotated[int, Count(1)]
    batch_size: Annotated[int, Count(1)]
    samples: Annotated[int | None, Count(1, optional=True)]
    shuffle: Annotated[bool, Flag()]
    accumulate: Annotated[int, Count(1)]
    sums: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "sums", tuple(map(float, self.sums)))
        check(self)

    @classmethod
    def unchecked(cls, **values) -> "Unfinished":
        """Return one of values that are known to be right."""
        made = object.__new__(cls)
        made.__dict__.update(values)
        return made

    def to_config(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return {**asdict(self), "sums": list(self.sums)}

    def check_same(
        self, batch_size: int, samples: int | None, shuffle: bool, accumulate: int
    ) -> None:
        """ValueError where a fit would go through the epoch in another way."""
        ours = batch_size, samples, shuffle, accumulate
        theirs = self.batch_size, self.samples, self.shuffle, self.accumulate
        if ours != theirs:
            told = [
                f"batches of {batch} from {'blocks' if count is None else f'{count} samples'}"
                f"{', shuffled' if shuffled else ''}{f', {n} to an update' if n > 1 else ''}"
                for batch, count, shuffled, n in (theirs, ours)
            ]
            raise ValueError(
                f"resume: the checkpoint stands after {self.batches} {told[0]}, this fit takes "
                f"{told[1]}; give it the same data, batch_size, shuffle and accumulate"
            )


class Stopped(Exception):
    """A callback's on_step_end asked for the end of the training."""


class Between(Protocol):
    """What may be done between native calls; see BetweenCalls."""

    def end_of_call(self, done: int, last: int, batches: int) -> int:
        """Where a native call from batch `done` towards `last` of `batches` ends."""

    def after(self, taken: int, batches: int, seen: int, ended: bool) -> None:
        """Go on from a native call that took so many steps."""


class BetweenCalls:
    """What is done between native calls: callbacks that ask for it are called, progress is shown.

    callbacks   those of the fit; who does not override on_step_end costs nothing
    total       batches of an epoch, 0 where that is not known
    shape       batch_size, samples, shuffle and accumulate, for `Unfinished`
    """

    def __init__(self, network, trainer, callbacks, progress, *, total: int, shape: tuple):
        self.network, self.trainer, self.progress = network, trainer, progress
        self.total, self.shape = total, shape
        self.called = [one for one in callbacks if one.called_at_steps()]
        self.seconds = [time.monotonic()] * len(self.called)
        self.steps = 0

    def end_of_call(self, done: int, last: int, batches: int) -> int:
        """Where a native call from batch `done` towards `last` of `batches` ends.

        It ends with a step for which a callback asks, and not within one.
        """
        if not self.called:
            return last
        n = self.shape[-1]
        every = [one.every_steps for one in self.called if one.every_steps]
        if every:
            last = min(last, done - done % n + n * min(k - self.steps % k for k in every))
        whole = last - last % n
        return whole if done < whole and last < batches else last

    def after(self, taken: int, batches: int, seen: int, ended: bool) -> None:
        """Go on from a native call that took so many steps.

        batches, seen   of the epoch so far, and the samples in them
        ended           whether the call reached the end of the data, and so of a step
        Raises Stopped where a callback asks for it.
        """
        self.steps += taken
        self.progress.step(min(1.0, batches / self.total) if self.total else 0.0)
        whole = ended or batches % self.shape[-1] == 0
        if self.called and whole and (due := self._due()):
            self._call(due, batches, seen)

    def _due(self) -> list[Callback]:
        now, due = time.monotonic(), []
        for k, one in enumerate(self.called):
            by_time = one.every_seconds is not None and now - self.seconds[k] >= one.every_seconds
            if by_time or (one.every_steps and self.steps % one.every_steps == 0):
                self.seconds[k] = now
                due.append(one)
        return due

    def _call(self, due: list[Callback], batches: int, seen: int) -> None:
        network, (batch_size, samples, shuffle, accumulate) = self.network, self.shape
        self.trainer.publish()
        logs = mean_metrics(self.trainer, seen)
        logs["loss"] += network.penalty_value(samples or 1, self.total or 1)
        network.unfinished = Unfinished.unchecked(
            batches=batches,
            batch_size=batch_size,
            samples=samples,
            shuffle=shuffle,
            accumulate=accumulate,
            sums=tuple(self.trainer.metric_sums.tolist()),
        )
        try:
            ends = [one for one in due if one.on_step_end(self.steps, logs, network)]
        finally:
            network.unfinished = None
        if ends:
            self.progress.reason = ends[0].reason()
            raise Stopped


def mean_metrics(trainer, samples: int) -> dict[str, float]:
    """Mean loss, without penalties, and for classes the accuracy, of the epoch's samples so far."""
    logs = {"loss": float(trainer.metric_sums[0] / samples)}
    if trainer.correct_op is not None:
        logs["accuracy"] = float(trainer.metric_sums[1] / samples)
    return logs
