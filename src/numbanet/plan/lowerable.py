"""What a network offers to everything that lowers and executes it."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from numbanet.plan.op import Op


@runtime_checkable
class Lowerable(Protocol):
    """A network as executors, training, profiling and compilation use it.

    memory         the flat vector that kernels work on: all parameters, then all buffers
    executors      the executors of this network on its device, with the lock that a call holds
    threads        the most threads to use, or None for a number that depends on the work
    """

    dtype: np.dtype
    device: str
    threads: int | None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    memory: np.ndarray
    executors: Any

    def layer_ops(
        self,
        first: int = 0,
        last: int | None = None,
        samples: int = 1,
        batches: int = 1,
        training: bool = False,
        fuse: bool = True,
    ) -> list[Op]:
        """Return the ops of layers first … last − 1, penalties scaled for a training set.

        fuse   False where the inputs get a gradient, which a fused first layer does not give
        """

    def input_scale(self) -> tuple[float, int]:
        """Return the factor that copying the inputs applies, and how many layers that replaces."""

    def output_ops(self) -> list[Op]:
        """Return the ops after the layers of a prediction, to the caller's array."""

    def loss_ops(
        self,
        loss,
        layout,
        y_dtype,
        classes: bool,
        samples: int = 1,
        batches: int = 1,
        training: bool = False,
        augment=None,
        weighted: int = 0,
        missing: bool = False,
    ) -> tuple[list[Op], Op, Op | None]:
        """Return the ops from the data to the loss, the loss's op, and the op of the accuracy."""

    def resolve_loss(self, given) -> Any:
        """Return the loss asked for, or the one that belongs to the last activation."""

    def check_data(
        self, x, y, loss, labels=("x", "y"), lengths=None, weighs=False
    ) -> tuple[Any, np.ndarray, bool]:
        """Return x and y as kernels read them, and whether y names classes."""

    def check_lengths(self, lengths, samples: int, name: str = "lengths") -> np.ndarray | None:
        """Return the lengths of sequences as kernels read them, or None."""

    def score(
        self, x, y, classes, loss, threads=None, lengths=None, weights=None, batch_size=None
    ) -> tuple[float, float | None]:
        """Return the mean loss without penalties, and for classes the accuracy."""
