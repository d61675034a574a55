"""One training step of a network of 2-2-1 neurons, computed by hand to 15 digits.

x = (1, 2), y = 1, sigmoid everywhere, quadratic cost, learning rate 1/2

W₁ = ( 0.1   0.3 )   b₁ = (0.05, −0.05)      W₂ = ( 0.4 )   b₂ = 0.1
     ( 0.2  −0.1 )                                (−0.6 )

forward    z₁ = (1·0.1 + 2·0.2 + 0.05, 1·0.3 − 2·0.1 − 0.05)   = (0.55, 0.05)
           a₁ = σ(z₁) =
                    (0.634135591010801, 0.512497396484210)
           z₂ = 0.4·0.634135591… − 0.6·0.512497396… + 0.1      = 0.0461557985137941
           a₂ = σ(z₂)                                          = 0.511536901557209
           C  = ½ (1 − 0.511536901…)²                          = 0.119298099270166
BP1        δ₂ = (a₂ − 1) a₂ (1 − a₂)                           = −0.122050760124650
BP2        δ₁ = (0.4 δ₂, −0.6 δ₂) ∘ a₁ (1 − a₁) =
                    (−0.0113266836840961, 0.0182961765258557)
BP3        db₂ = δ₂, db₁ = δ₁
BP4        dW₂ = a₁ δ₂ =
                    (−0.0773967309049624, −0.0625506968028020)
           dW₁ = xᵀ δ₁: its first row is δ₁, its second 2 δ₁

step       θ ← θ − ½ dθ
"""

import numpy as np
import pytest

import numbanet as nn

X, Y = np.array([[1.0, 2.0]]), np.array([[1.0]])

W1 = [0.105663341842048, 0.290851911737072, 0.211326683684096, -0.118296176525856]
B1 = [0.055663341842048, -0.059148088262928]
W2, B2 = [0.438698365452481, -0.568724651598599], [0.161025380062325]
AFTER = [*W1, *B1, *W2, *B2]


@pytest.fixture
def net():
    net = nn.Sequential(
        [nn.Dense(2, activation="sigmoid"), nn.Dense(1, activation="sigmoid")], 2, "float64"
    )
    net.layers[0].weights, net.layers[0].bias = [[0.1, 0.3], [0.2, -0.1]], [0.05, -0.05]
    net.layers[2].weights, net.layers[2].bias = [[0.4], [-0.6]], [0.1]
    return net


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-15)


def test_the_output_and_the_cost_are_those_worked_by_hand(net):
    close(net.predict(X), [[0.511536901557209]])
    close(net.loss(X, Y, "quadratic"), 0.119298099270166)


def test_the_gradient_is_the_one_worked_by_hand(net):
    close(
        net.gradient(X, Y, "quadratic"),
        [
            -0.0113266836840961,
            0.0182961765258557,
            -0.0226533673681921,
            0.0365923530517113,
            -0.0113266836840961,
            0.0182961765258557,
            -0.0773967309049624,
            -0.0625506968028020,
            -0.122050760124650,
        ],
    )


def test_the_step_is_the_one_worked_by_hand(net):
    history = net.fit(X, Y, loss="quadratic", optimizer=nn.SGD(0.5), batch_size=1)
    close(net.parameters, AFTER)
    close(history.history["loss"], [0.119298099270166])


def test_the_flat_vector_holds_weights_then_bias_layer_by_layer(net):
    assert net.parameters.tolist() == [0.1, 0.3, 0.2, -0.1, 0.05, -0.05, 0.4, -0.6, 0.1]
