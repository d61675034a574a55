"""Proximal policy optimisation in one compiled function: four carts learn to balance their poles.

The protocol is that of PureJaxRL: 4 environments × 128 steps between two rounds of training, of 4
epochs × 4 mini-batches each; 500,000 steps in all; an actor and a critic of 4-64-64, orthogonal
initial values, gradients clipped to the norm 0.5, a learning rate that falls to 0. Environment,
networks and training are `@njit` code; nothing returns to Python before the end.

Source   Schulman et al. 2017 (PPO), Schulman et al. 2016 (advantages); Lu et al. 2022 (PureJaxRL)
"""

import math
import time

import numba
import numpy as np
from cartpole import STEPS as MOST_STEPS
from cartpole import move, start

import numbanet as nn
from numbanet import compiled as c

ENVIRONMENTS, STEPS, EPOCHS, BATCHES = 4, 128, 4, 4
SAMPLES = ENVIRONMENTS * STEPS
BATCH = SAMPLES // BATCHES
RATE, CLIP, DISCOUNT, TRACE = 2.5e-4, 0.2, 0.99, 0.95
"""Learning rate, how far a policy may go from the one that acted, discount of a step, λ of the
advantages."""
ENTROPY, VALUE, NORM = 0.01, 0.5, 0.5
"""Weights of the entropy and of the critic's loss; the norm that gradients are clipped to."""


@numba.njit(cache=True)
def log_softmax(logits, out):
    """Logarithms of the two probabilities."""
    most = max(logits[0], logits[1])
    total = math.log(math.exp(logits[0] - most) + math.exp(logits[1] - most)) + most
    out[0], out[1] = logits[0] - total, logits[1] - total


@numba.njit(cache=True)
def shuffle(order, key):
    """Permute at random (Fisher, Yates)."""
    for i in range(len(order) - 1, 0, -1):
        j = int(c.uniform(key, i) * (i + 1))
        order[i], order[j] = order[j], order[i]


@numba.njit(cache=True)
def advance(play, params, work, world, key, rollout):
    """Play 128 steps of every environment with actions drawn from the policy.

    world     states (environments, 4) and steps since the last start, of each environment
    rollout   states, actions, their log-probabilities, values and rewards, and where episodes ended
    """
    states, ages = world
    rows, actions, log_probabilities, values, dones = rollout
    logits, logs = np.empty((ENVIRONMENTS, 2), np.float32), np.empty(2)
    for t in range(STEPS):
        rows[t] = states
        c.forward(play[0], params[0], rows[t], logits, work)
        c.forward(play[1], params[1], rows[t], values[t], work)
        for e in range(ENVIRONMENTS):
            log_softmax(logits[e], logs)
            action = 1 if c.uniform(key, t * ENVIRONMENTS + e) < math.exp(logs[1]) else 0
            actions[t, e], log_probabilities[t, e] = action, logs[action]
            goes_on, ages[e] = move(states[e], action), ages[e] + 1
            dones[t, e] = not goes_on or ages[e] == MOST_STEPS
            if dones[t, e]:
                start(c.new_key(c.new_key(key, t), e), states[e])
                ages[e] = 0
    rows[STEPS] = states
    c.forward(play[1], params[1], rows[STEPS], values[STEPS], work)


@numba.njit(cache=True)
def advantages(values, dones, found):
    """Generalised advantages; every step has the reward 1."""
    for e in range(ENVIRONMENTS):
        last = 0.0
        for t in range(STEPS - 1, -1, -1):
            goes_on = 0.0 if dones[t, e] else 1.0
            error = 1 + DISCOUNT * goes_on * values[t + 1, e] - values[t, e]
            last = error + DISCOUNT * TRACE * goes_on * last
            found[t, e] = last


@numba.njit(cache=True)
def derivatives(logits, values, batch, dlogits, dvalues):
    """The derivatives of the loss of a mini-batch by the outputs of actor and critic."""
    actions, log_probabilities, old_values, gains = batch
    mean, deviation, logs = gains.mean(), gains.std() + 1e-8, np.empty(2)
    for i in range(BATCH):
        log_softmax(logits[i], logs)
        a, gain = actions[i], (gains[i] - mean) / deviation
        ratio = math.exp(logs[a] - log_probabilities[i])
        inside = ratio < 1 + CLIP if gain > 0 else ratio > 1 - CLIP
        slope = -gain * ratio if inside else 0.0
        entropy = -math.exp(logs[0]) * logs[0] - math.exp(logs[1]) * logs[1]
        for j in range(2):
            p = math.exp(logs[j])
            dlogits[i, j] = slope * ((1 if j == a else 0) - p) + ENTROPY * p * (logs[j] + entropy)
            dlogits[i, j] /= BATCH
        wanted, change = gains[i] + old_values[i], values[i] - old_values[i]
        error = values[i] - wanted
        clipped = old_values[i] + min(max(change, -CLIP), CLIP) - wanted
        moved = abs(error) >= abs(clipped) or abs(change) < CLIP
        dvalues[i] = VALUE * (error if moved else 0.0) / BATCH


@numba.njit(cache=True)
def train(play, learn, params, seed, updates):
    """Train from new parameters, with the handles for acting and for learning."""
    n = params[0].size
    work = np.empty(max(c.work_size(learn[0]), c.work_size(learn[1])), np.float32)
    other = np.empty_like(work)
    grads = np.empty(n + params[1].size, np.float32)
    state = np.zeros(c.state_size(learn[0]), np.float32)
    critic_state = np.zeros(c.state_size(learn[1]), np.float32)
    world = np.empty((ENVIRONMENTS, 4)), np.zeros(ENVIRONMENTS, np.int64)
    shape = STEPS, ENVIRONMENTS
    rows, actions = np.empty((STEPS + 1, ENVIRONMENTS, 4), np.float32), np.empty(shape, np.int64)
    log_probabilities, gains = np.empty(shape), np.empty(shape)
    values, dones = np.empty((STEPS + 1, ENVIRONMENTS), np.float32), np.empty(shape, np.bool_)
    order, x = np.arange(SAMPLES), np.empty((BATCH, 4), np.float32)
    batch = np.empty(BATCH, np.int64), np.empty(BATCH), np.empty(BATCH), np.empty(BATCH)
    logits, found = np.empty((BATCH, 2), np.float32), np.empty(BATCH, np.float32)
    dlogits, dvalues, none = np.empty_like(logits), np.empty_like(found), work[:0]
    for k in range(2):
        c.initialize(learn[k], params[k], c.new_key(seed, k))
    for e in range(ENVIRONMENTS):
        start(c.new_key(seed, 2 + e), world[0][e])
    t = 0
    for update in range(updates):
        key = c.new_key(c.new_key(seed, 100), update)
        rollout = rows, actions, log_probabilities, values, dones
        advance(play, params, work, world, key, rollout)
        advantages(values, dones, gains)
        flat_rows, flat_actions = rows.reshape(-1, 4), actions.reshape(-1)
        flat_logs, flat_gains = log_probabilities.reshape(-1), gains.reshape(-1)
        flat_values, rate = values.reshape(-1), RATE * (1 - update / updates)
        for epoch in range(EPOCHS):
            shuffle(order, c.new_key(key, 1000 + epoch))
            for first in range(0, SAMPLES, BATCH):
                for i in range(BATCH):
                    k = order[first + i]
                    x[i] = flat_rows[k]
                    batch[0][i], batch[1][i] = flat_actions[k], flat_logs[k]
                    batch[2][i], batch[3][i] = flat_values[k], flat_gains[k]
                c.forward(learn[0], params[0], x, logits, work)
                c.forward(learn[1], params[1], x, found, other)
                derivatives(logits, found, batch, dlogits, dvalues)
                grads[:] = 0
                c.pullback(learn[0], params[0], dlogits, grads[:n], none, work)
                c.pullback(learn[1], params[1], dvalues, grads[n:], none, other)
                c.clip_by_norm(grads, NORM)
                t += 1
                c.update(learn[0], params[0], grads[:n], state, t, rate)
                c.update(learn[1], params[1], grads[n:], critic_state, t, rate)


@numba.njit(cache=True)
def evaluate(actor, params, seed, episodes):
    """The mean return of some episodes with actions drawn from the policy; `actor` takes a row."""
    work, state = np.empty(c.work_size(actor), np.float32), np.empty(4)
    logits, logs, total = np.empty(2, np.float32), np.empty(2), 0
    for e in range(episodes):
        key = c.new_key(seed, -1 - e)
        start(c.new_key(key, 0), state)
        for t in range(MOST_STEPS):
            c.forward(actor, params, state, logits, work)
            log_softmax(logits, logs)
            action = 1 if c.uniform(c.new_key(key, 1), t) < math.exp(logs[1]) else 0
            total += 1
            if not move(state, action):
                break
    return total / episodes


def network(outputs: int, gain: float) -> nn.Sequential:
    """4-64-64 and a last layer, with orthogonal initial values."""
    hidden = {"activation": "tanh", "initializer": nn.initializers.Orthogonal(math.sqrt(2))}
    last = nn.Dense(outputs, initializer=nn.initializers.Orthogonal(gain))
    return nn.Sequential([nn.Dense(64, **hidden), nn.Dense(64, **hidden), last], 4)


def learn(seed: int, steps: int = 500_000) -> tuple[int, float, float]:
    """Train; (steps, seconds of the thread, mean return over 100 new episodes)."""
    networks = network(2, 0.01), network(1, 1.0)
    play = tuple(one.handle(rows=ENVIRONMENTS, gradient=False) for one in networks)
    adam = nn.Adam(RATE, epsilon=1e-5)
    update = tuple(one.handle(rows=BATCH, optimizer=adam) for one in networks)
    params = tuple(one.parameters for one in networks)
    train(play, update, params, seed, 0)  # compiles
    began = time.thread_time()
    train(play, update, params, seed, steps // SAMPLES)
    seconds = time.thread_time() - began
    return steps, seconds, evaluate(networks[0].handle(gradient=False), params[0], seed, 100)


def main(seed: int = 0, steps: int = 500_000) -> float:
    """Train, and return the mean return over 100 new episodes."""
    steps, seconds, result = learn(seed, steps)
    print(f"{steps:,} steps in {seconds:.2f} s; mean return afterwards {result:.0f}")
    return result


if __name__ == "__main__":
    main()
