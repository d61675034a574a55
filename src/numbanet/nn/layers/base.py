"""What a layer is: an immutable description with a shape rule, named parameters, and the ops it lowers to."""

from dataclasses import dataclass, fields
from math import prod

from numbanet.io.fields import By, check, shown
from numbanet.plan.columns import Op

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer's description. It holds no numbers: those live in the network's flat vector.

    A new layer overrides `output_shape` and `ops`, and `parameters` if it has any. Its fields are saved with the network;
    those whose annotation has a kind (io/fields.py) are checked when the layer is built.
    """

    def __post_init__(self):
        check(self)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of one sample's output for an input of `shape`; raise ValueError where they do not fit."""
        return shape

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        """Return the parameters by name with their shapes, in the order in which they stand in the flat vector."""
        return {}

    def initializers(self, following) -> dict:
        """Return an initialiser for each name of `parameters`; `following` is the activation that comes next, or None."""
        return {}

    def ops(self, shape: Shape) -> list[Op]:
        """Return the rows that this layer adds to the plan for an input of `shape`."""
        return []

    def inference_ops(self, shape: Shape) -> list[Op]:
        """Return the rows for prediction, where they are others than in training."""
        return self.ops(shape)

    def buffers(self, shape: Shape) -> dict[str, Shape]:
        """Return numbers by name that are kept and saved with the network but not trained."""
        return {}

    def initialize_buffers(self, views) -> None:
        """Write the first values into views of the buffers, by name."""

    def config(self) -> dict:
        """Return the fields by name, as the constructor takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def size(shape: Shape) -> int:
    """Numbers in one sample of that shape."""
    return prod(shape)


def _activation(given, inside: bool = False) -> None:
    """TypeError for what cannot be an activation. The names are known to per_neuron.py alone."""
    if isinstance(given, (list, tuple)) and not inside:
        for one in given:
            _activation(one, True)
        return
    kind = isinstance(given, type) and issubclass(given, Layer)
    if not (given is None or kind or isinstance(given, (str, Layer))):
        raise TypeError(f"an activation is a name, a layer or a list of them, not {shown(given)}")


def _activations(given) -> None:
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"a list of activations was expected, not {shown(given)}")
    _activation(given)


ACTIVATION, ACTIVATIONS = By(_activation), By(_activations)
"""The kinds of a field that holds what `per_neuron.activation` takes, and of one with a list of them."""
