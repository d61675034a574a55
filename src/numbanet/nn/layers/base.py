"""What a layer is: an immutable description with a shape rule, named parameters and ops."""

from dataclasses import dataclass, fields
from math import prod
from typing import ClassVar

from numbanet.io.attributes import Description
from numbanet.io.fields import By, check, shown
from numbanet.plan.op import Op

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layer(Description):
    """A layer's description. It holds no parameters: those are in the network's flat vector.

    A new layer overrides `output_shape` and `ops`, and `parameters` if it has any. Its fields are
    saved with the network; those whose annotation has a kind (io/fields.py) are checked when the
    layer is built.
    """

    after_change = "build a network with the copy"
    instead: ClassVar[dict[str, str]] = {
        "trainable": "freeze a layer in its network: network.freeze(k)",
        "weight_decay": "set it in the network: network.layers[k].weight_decay = 0.01",
        "learning_rate": "set it in the network: network.layers[k].learning_rate_factor = 0.1",
        "learning_rate_factor": "set it in the network: network.layers[k].learning_rate_factor",
        "input_shape": "Sequential takes the shape of a sample",
        "input_dim": "Sequential takes the shape of a sample, input_shape",
        "in_features": "Sequential takes the shape of a sample, input_shape",
        "in_channels": "Sequential takes the shape of a sample, input_shape",
        "dtype": "Sequential takes the dtype",
        "name": "layers have no names; network.layers holds them in order",
    }

    def __post_init__(self):
        check(self)

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of one sample's output for an input of `shape`.

        Raises ValueError where they do not fit.
        """
        return shape

    def check_inputs(self, x, name: str) -> None:
        """Check samples as the kernels read them; asked of a network's first layer.

        Raises ValueError where the layer cannot read one; `name` stands in the message.
        """

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        """Return the parameters' shapes by name, in their order in the flat vector."""
        return {}

    def initializers(self, next_activation) -> dict:
        """Return an initialiser for each name of `parameters`; `next_activation` is the activation
        that follows, or None."""
        return {}

    def ops(self, shape: Shape) -> list[Op]:
        """Return the rows that this layer adds to the plan for an input of `shape`."""
        return []

    def following_activation(self):
        """Return the activation that becomes a layer after this one: its field `activation`."""
        return getattr(self, "activation", None)

    def inference_ops(self, shape: Shape) -> list[Op]:
        """Return the rows for prediction, if they differ from those for training."""
        return self.ops(shape)

    def buffers(self, shape: Shape) -> dict[str, Shape]:
        """Return the shapes by name of values that are saved with the network but not trained."""
        return {}

    def initialize_buffers(self, views) -> None:
        """Write the initial values into views of the buffers, by name."""

    def config(self) -> dict:
        """Return the fields by name, as the constructor takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def checks_inputs(layer: Layer) -> bool:
    """Return whether a layer has conditions of its own on its inputs, as one that reads indices."""
    return type(layer).check_inputs is not Layer.check_inputs


def size(shape: Shape) -> int:
    """Return the number of elements in one sample of that shape."""
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
"""The kinds of a field for an argument of `per_neuron.activation`, and for a list of them."""
