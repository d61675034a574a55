"""Blocks of Numba's CUDA simulator whose threads take turns, from one barrier to the next.

Numba starts all threads of a block at once and polls them, which costs more than what they
compute. Here one thread runs at a time, until it ends or waits at a barrier. The order of the
threads is another one after each barrier: a thread that reads what another has yet to write, or
writes what another has yet to read, is found without luck.
"""

import threading

import numpy as np
from numba.cuda.simulator import kernel


class Thread(kernel.BlockThread):
    """A thread of a block, which runs where its block says that it is its turn."""

    def __init__(self, target, block, place, point):
        super().__init__(target, block, place, point, False)
        self.turn = threading.Lock()
        self.turn.acquire()

    def run(self):
        self.turn.acquire()
        if not self.abort:
            super().run()
        self._manager.leave(self)

    def syncthreads(self):
        self._manager.waiting.append(self)
        self._manager.pass_on()
        self.turn.acquire()
        if self.abort:
            raise RuntimeError("another thread of the block has failed")


class Block(kernel.BlockManager):
    """What Numba calls to run one block after the other."""

    orders = np.random.default_rng(0)

    def run(self, grid_point, *args):
        threads = [
            Thread(lambda: self._f(*args), self, grid_point, point)
            for point in np.ndindex(*self._block_dim)
        ]
        self.waiting, self.queue, self.ended = threads[:], [], threading.Lock()
        self.ended.acquire()
        for thread in threads:
            thread.start()
        self.pass_on()
        self.ended.acquire()
        for thread in threads:
            thread.join()
        for thread in threads:
            if thread.exception and not thread.abort:
                raise thread.exception[0].with_traceback(thread.exception[1])

    def pass_on(self):
        """Let the next thread run; after the last one, all that wait at the barrier go on."""
        if not self.queue:
            self.queue = [self.waiting[k] for k in self.orders.permutation(len(self.waiting))]
            self.waiting = []
        if self.queue:
            self.queue.pop().turn.release()
        else:
            self.ended.release()

    def leave(self, thread):
        """A thread has ended; after an error the others end at once."""
        if thread.exception:
            for other in self.queue + self.waiting:
                other.abort = True
        self.pass_on()
