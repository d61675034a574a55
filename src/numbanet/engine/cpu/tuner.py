"""ThreadTuner: how many threads work on training steps, chosen by timing."""

CALL_SECONDS = 0.05
"""Seconds that one native call should last, so that Ctrl-C and progress are never far."""


class ThreadTuner:
    """Chooses all threads, or one where synchronisation costs more than parallel work saves.

    Small steps and a busy machine favour one. The weights are bit-identical in both cases, so both
    are tried now and then, and the faster is kept.
    """

    STEPS_SECONDS = 0.025
    """Seconds of a call of many steps; where the machine becomes busy, it lasts longer."""
    TRIAL_SECONDS = 0.002
    """Seconds of a trial of the other choice."""
    TRIAL_INTERVAL = 20
    """Calls between trials."""

    def __init__(self, threads: int):
        self.threads, self.size, self.calls = threads, threads, 0
        self.seconds: dict[int, float] = {}
        self.steps: dict[int, int] = {}

    def steps_per_call(self) -> int:
        """Choose the size for the next call and return its number of steps.

        After a few steps it is at most twice that of the last call of this size, whose time may be
        an old one, from when the machine was quiet.
        """
        choices = (self.threads, 1) if self.threads > 1 else (1,)
        if self.calls < 2:  # times of no use: the first call compiles, the second starts threads
            self.size = self.threads
            return (1, 8)[self.calls]
        best = min(self.seconds, key=self.seconds.__getitem__)
        if self.calls < 2 + len(choices):
            self.size = choices[self.calls - 2]
            return max(4, int(self.TRIAL_SECONDS / self.seconds[best]))
        trial = len(choices) > 1 and (self.calls + 1) % self.TRIAL_INTERVAL == 0
        self.size = next(n for n in choices if n != best) if trial else best
        seconds = self.TRIAL_SECONDS if trial else self.STEPS_SECONDS
        steps = min(max(8, 2 * self.steps[self.size]), int(seconds / self.seconds[self.size]))
        return max(2 if trial else 1, steps)

    def record(self, seconds: float, steps: int) -> None:
        """Take in how long a step of the last call took, and how many it took.

        An interrupted call does not come here.
        """
        self.calls += 1
        if self.calls > 1:
            self.seconds[self.size], self.steps[self.size] = max(seconds, 1e-7), max(1, steps)
