"""Every kernel has a reference kernel."""

import pytest

import reference
from numbanet.backend.jit import Kernel

KERNELS = reference.kernels()


def test_the_kernels_of_the_package_are_found():
    assert {
        "numbanet.nn.layers.dense.forward",
        "numbanet.nn.losses.quadratic_backward",
        "numbanet.nn.optimizers.adam",
        "numbanet.nn.data.inputs_uint8",
        "numbanet.plan.builtin_ops.copy_forward",
    } <= KERNELS.keys()


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_has_a_reference_with_the_same_arguments(name):
    kernel = KERNELS[name]
    assert reference.arguments(reference.reference_of(kernel)) == reference.arguments(
        kernel.function
    )


def test_a_kernel_without_a_reference_is_named():
    def alone(op, params, grads, acts, deltas, lo, hi):
        pass

    with pytest.raises(LookupError, match="alone"):
        reference.reference_of(Kernel(alone))
