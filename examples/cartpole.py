"""Reinforcement learning in one compiled function: a cart that learns to balance a pole.

    python examples/cartpole.py

The environment, the policy, its gradient and its training are `@njit` code that is given the
network as data; Numba caches it, so the second start compiles nothing. The policy gradient is
REINFORCE: every action of an episode is made more likely by as much as the return after it is
above the mean of all returns at the moment.

Source   Barto, Sutton, Anderson 1983 (the cart and the pole; constants and limits as in Gymnasium's
         CartPole-v1); Williams 1992 (the policy gradient)
"""

import math
import time

import numba
import numpy as np

import numbanet as nn
from numbanet import compiled as c

STEPS = 500
"""Steps after which an episode ends: the greatest return."""
BATCH = 10
"""Episodes in a step of training."""
DISCOUNT = 0.99


@numba.njit(cache=True)
def start(key, state):
    """A new episode: position, velocity, angle, angular velocity within ± 0.05."""
    for k in range(4):
        state[k] = 0.1 * c.uniform(key, k) - 0.05


@numba.njit(cache=True)
def move(state, action):
    """Push the cart for 0.02 s, to the left or to the right; False where the pole has fallen."""
    x, v, angle, omega = state
    force = 10.0 if action == 1 else -10.0
    sine, cosine = math.sin(angle), math.cos(angle)
    push = (force + 0.05 * omega**2 * sine) / 1.1
    turning = (9.8 * sine - cosine * push) / (0.5 * (4.0 / 3.0 - 0.1 * cosine**2 / 1.1))
    acceleration = push - 0.05 * turning * cosine / 1.1
    state[0], state[1] = x + 0.02 * v, v + 0.02 * acceleration
    state[2], state[3] = angle + 0.02 * omega, omega + 0.02 * turning
    return abs(state[0]) <= 2.4 and abs(state[2]) <= 12 * math.pi / 180


@numba.njit(cache=True)
def play(model, params, work, key, rows, actions):
    """One episode with actions drawn from the policy: its return, the number of its steps."""
    state, policy = np.empty(4), np.empty(2, np.float32)
    start(c.new_key(key, 0), state)
    key = c.new_key(key, 1)
    for t in range(STEPS):
        rows[t] = state
        c.forward(model, params, rows[t], policy, work)
        actions[t] = c.categorical(key, t, policy)
        if not move(state, actions[t]):
            return t + 1
    return STEPS


@numba.njit(cache=True)
def train(model, params, seed, most):
    """Train until the mean return of 100 episodes reaches 475; the returns of all episodes."""
    work = np.empty(c.work_size(model), np.float32)
    grads, state = np.zeros(params.size, np.float32), np.zeros(c.state_size(model), np.float32)
    rows, actions = np.empty((BATCH, STEPS, 4), np.float32), np.empty((BATCH, STEPS), np.int64)
    after, lengths = np.empty((BATCH, STEPS)), np.empty(BATCH, np.int64)
    policy, dpolicy, returns = np.empty(2, np.float32), np.empty(2, np.float32), np.empty(most)
    for step in range(most // BATCH):
        for e in range(BATCH):
            key = c.new_key(seed, step * BATCH + e)
            lengths[e] = play(model, params, work, key, rows[e], actions[e])
            returns[step * BATCH + e] = lengths[e]
            total = 0.0
            for t in range(lengths[e] - 1, -1, -1):
                total = 1 + DISCOUNT * total
                after[e, t] = total
        played = (step + 1) * BATCH
        if played >= 100 and returns[played - 100 : played].mean() >= 475:
            return returns[:played]
        n, mean, squares = lengths.sum(), 0.0, 0.0
        for e in range(BATCH):
            mean += after[e, : lengths[e]].sum() / n
        for e in range(BATCH):
            squares += ((after[e, : lengths[e]] - mean) ** 2).sum() / n
        grads[:] = 0
        for e in range(BATCH):
            for t in range(lengths[e]):
                c.forward(model, params, rows[e, t], policy, work)
                a = actions[e, t]
                advantage = (after[e, t] - mean) / (math.sqrt(squares) + 1e-8)
                dpolicy[1 - a], dpolicy[a] = 0, -advantage / (policy[a] * n)
                c.pullback(model, params, dpolicy, grads, work[:0], work)
        c.clip_by_norm(grads, 0.5)
        c.update(model, params, grads, state, step + 1)
    return returns


@numba.njit(cache=True)
def evaluate(model, params, seed, episodes):
    """The mean return of some episodes."""
    work = np.empty(c.work_size(model), np.float32)
    rows, actions, total = np.empty((STEPS, 4), np.float32), np.empty(STEPS, np.int64), 0
    for e in range(episodes):
        total += play(model, params, work, c.new_key(seed, -1 - e), rows, actions)
    return total / episodes


def learn(seed: int) -> tuple[int, float, float]:
    """Train a policy of 4-32-2; (episodes, seconds of the thread, mean return of 100 new ones)."""
    layers = [nn.Dense(32, activation="tanh"), nn.Dense(2, activation="softmax")]
    network = nn.Sequential(layers, 4, seed=seed)
    model, params = network.handle(optimizer=nn.Adam(0.02)), network.parameters
    train(model, params, seed, 0)  # compiles
    began = time.thread_time()
    returns = train(model, params, seed, 3000)
    seconds = time.thread_time() - began
    return len(returns), seconds, evaluate(model, params, seed, 100)


def main(seed: int = 0) -> float:
    """Train, and return the mean return over 100 new episodes."""
    episodes, seconds, result = learn(seed)
    print(f"{episodes} episodes in {seconds:.2f} s; mean return afterwards {result:.0f}")
    return result


if __name__ == "__main__":
    main()
