"""References of the kernels in profile.py."""


def square_product(op, params, grads, acts, deltas, lo, hi):
    for i in range(hi):
        for j in range(hi):
            acts[i * hi + j] = sum(params[i * hi + k] * grads[k * hi + j] for k in range(hi))
