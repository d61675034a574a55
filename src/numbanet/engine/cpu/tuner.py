"""ThreadTuner: how many threads work on training steps, chosen by timing."""

from collections.abc import Callable

from numbanet.backend.threads import idle_cpus

CALL_SECONDS = 0.05
"""Seconds that one native call should last, so that Ctrl-C and progress are never far."""


class ThreadTuner:
    """Chooses all threads, or one where synchronisation costs more than parallel work saves.

    Small steps and a busy machine favour one. The results are bit-identical in both cases, so both
    are tried now and then, and the faster is kept. One comes first: on a busy machine a step of
    several threads may take a hundred times as long, and short work has ended before they are
    tried. A few looks in a row that find an idle CPU for each let them begin at once. The choice in
    use is timed all along, calls of 5 ms together: what disturbs a single short one decides
    nothing. The other one is timed by a trial: some steps that only warm the caches and wake the
    threads, then some that are timed. A trial comes often enough that a choice which a busy machine
    brought about is undone within half a second, and rarely enough to cost less than 3 % of the
    time.

    idle   tells on how many CPUs nothing else runs now
    size   the threads of the next call
    """

    STEPS_SECONDS = 0.025
    """Seconds of a call of many steps; where the machine becomes busy, it lasts longer."""
    WARM_SECONDS, TIMED_SECONDS = 0.0015, 0.005
    """Seconds of a trial that are not timed, and that are, in a trial or of the choice in use. A
    step that lasts longer needs no warming."""
    FIRST_SECONDS = 0.05
    """Seconds of steps by one thread before several are tried, unless CPUs are found idle."""
    LOOK_SECONDS, LOOKS = 0.0005, 3
    """Seconds of these steps, warming ones too, before each look for idle CPUs, twice as many after
    one in vain, and how many looks in a row must find them."""
    TRIAL_INTERVAL = 0.35
    """Seconds of steps between trials."""
    TRIAL_SHARE = 0.025
    """Most of the time that trials may cost: after a dear one, the interval is longer."""

    def __init__(self, threads: int, idle: Callable[[], int] = idle_cpus):
        self.threads, self.idle, self.size, self.calls = threads, idle, threads, 0
        self.seconds: dict[int, float] = {}
        self.latest: dict[int, float] = {}
        self.steps: dict[int, int] = {}
        self.asked = self.found_idle = 0
        self.since_look, self.look_seconds = 0.0, self.LOOK_SECONDS
        self.untried = [1, threads] if threads > 1 else []
        self.since_trial, self.interval = 0.0, self.TRIAL_INTERVAL
        self._begin_timing()

    def _begin_timing(self) -> None:
        self.warm = self.timed = self.cost = 0.0
        self.timed_steps = 0

    @property
    def _timed_seconds(self) -> float:
        """Seconds of a trial that are timed: those of the first come before everything else."""
        return self.TIMED_SECONDS if self.seconds else self.FIRST_SECONDS

    def steps_per_call(self) -> int:
        """Choose the size for the next call and return its number of steps.

        It is at most twice that of the last call of this size, whose time may be an old one, from
        when the machine was quiet; a trial of several threads begins with one step.
        """
        self.asked = self._steps_per_call()
        return self.asked

    def _steps_per_call(self) -> int:
        if self.calls < 2:  # the first call may compile: its time is a bound
            self.size = 1
            return max(1, min(8, round(self.TIMED_SECONDS / self.latest[1]))) if self.calls else 1
        best = min(self.seconds, key=self.seconds.__getitem__, default=self.threads)
        if not self.untried and self.threads > 1 and self.since_trial >= self.interval:
            self.untried = [1 if best == self.threads else self.threads]
            self.steps[self.untried[0]] = 0
            self._begin_timing()
        self.size = self.untried[0] if self.untried else best
        seconds = self.STEPS_SECONDS
        if self.untried:
            warm = self.warm >= self.WARM_SECONDS
            seconds = self._timed_seconds - self.timed if warm else self.WARM_SECONDS - self.warm
            if not self.seconds:
                seconds = min(seconds, self.look_seconds)
            seconds = min(seconds, self.STEPS_SECONDS)
        step = self.latest.get(self.size, self.latest[1])
        return max(1, min(2 * self.steps.get(self.size, 0), round(seconds / step)))

    def record(self, seconds: float, steps: int) -> None:
        """Take in how long a step of the last call took, and how many it took.

        A call that was cut short by the end of an epoch lets the next one be as long as it might.
        An interrupted call does not come here.
        """
        self.calls += 1
        seconds, steps = max(seconds, 1e-7), max(1, steps)
        before = self.steps.get(self.size, 0) if steps < self.asked else 0
        self.latest[self.size], self.steps[self.size] = seconds, max(steps, before)
        if self.calls == 1:
            return
        if self.untried:
            self._record_trial(seconds, steps)
        else:
            self.timed, self.timed_steps = self.timed + seconds * steps, self.timed_steps + steps
            self.since_trial += seconds * steps
            if self.timed >= self.TIMED_SECONDS:
                self.seconds[self.size] = self.timed / self.timed_steps
                self._begin_timing()

    def _record_trial(self, seconds: float, steps: int) -> None:
        """The same for a call of a trial, which ends when enough of it was timed."""
        self.cost += (seconds - min(self.seconds.values(), default=seconds)) * steps
        if not self.seconds:
            self._look_for_idle_cpus(seconds * steps)
        if self.warm < self.WARM_SECONDS and seconds < self.TIMED_SECONDS:
            self.warm += seconds * steps
            return
        self.warm = self.WARM_SECONDS
        self.timed, self.timed_steps = self.timed + seconds * steps, self.timed_steps + steps
        if self.timed >= 0.8 * self._timed_seconds or self.found_idle >= self.LOOKS:
            self.seconds[self.size] = self.timed / self.timed_steps
            self.untried.pop(0)
            self.since_trial = 0.0
            self.interval = max(self.TRIAL_INTERVAL, self.cost / self.TRIAL_SHARE)
            self._begin_timing()

    def _look_for_idle_cpus(self, seconds: float) -> None:
        """Count looks in a row that find an idle CPU for each thread."""
        self.since_look += seconds
        if self.since_look >= self.look_seconds:
            self.since_look = 0.0
            if self.idle() >= self.threads:
                self.found_idle += 1
            else:
                self.found_idle, self.look_seconds = 0, 2 * self.LOOK_SECONDS
