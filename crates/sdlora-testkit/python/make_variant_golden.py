"""What each named variant of SD-LoRA makes of given factors and magnitudes, in float64.

    pip install numpy
    python crates/sdlora-testkit/python/make_variant_golden.py crates/sdlora-testkit/golden/variants.json

Two blocks with a query and a value, three tasks. Every task ends with the factors and magnitudes of the
file, as if it had been trained to them. Then the last one runs: the file has the magnitudes it started with,
its update on every site, and the gradients of `L = Σ_sites Σ update · cotangent`.

Updates are formed as whole matrices, as the equations have them. Gradients are complex steps,
`Im f(x + ih) / h`: no derivative is written down here, and none is rounded by a difference.
"""

import json
import sys

import numpy as np

D_INPUT, D_OUTPUT = 4, 5
RANKS = (2, 3, 2)
SITES = ((0, "query"), (0, "value"), (1, "query"), (1, "value"))
STEP = 1e-30


def normalised(eps):
    return {"form": "normalised", "eps": eps}


RAW = {"form": "raw"}
PAPER = {"past_norm": "frobenius", "current": normalised(0.1), "start": {"start": "keep", "value": 1.0}}
CARRY = {"past_norm": "shared-frobenius", "current": RAW, "start": {"start": "carry", "value": 1.0}}
REFERENCE = {"past_norm": "factor-product", "current": RAW, "start": {"start": "reset", "value": 0.8}}
# Name, the variant it is (if any), settings, sharing, and the size of the last up-projection.
CASES = (
    ("paper", "paper", PAPER, "shared", 1.0),
    ("paper, per block", "paper", PAPER, "per-block", 1.0),
    # A direction that still grows: the norm is below eps, which then is what divides.
    ("paper, small direction", "paper", PAPER, "shared", 1 / 64),
    # The first step of a task, whose gradient is bounded by 1 / eps.
    ("paper, first step", "paper", PAPER, "shared", 0.0),
    ("normalised, large eps", None, PAPER | {"current": normalised(2.0)}, "shared", 1.0),
    ("carry", "carry", CARRY, "shared", 1.0),
    ("carry, per block", "carry", CARRY, "per-block", 1.0),
    ("reference", "reference", REFERENCE, "shared", 1.0),
    ("reference, per block", "reference", REFERENCE, "per-block", 1.0),
)


def frobenius(matrix):
    """Of a real matrix, and its analytic continuation for a complex step."""
    return np.sqrt((matrix * matrix).sum())


def group_of(site, sharing):
    return site[0] if sharing == "per-block" else 0


def norms_of(factors, settings, sharing):
    """What divides the finished direction of one task on every site."""
    products = [frobenius(a @ b) for a, b in factors]
    if settings["past_norm"] == "factor-product":
        return [frobenius(a) * frobenius(b) for a, b in factors]
    if settings["current"]["form"] == "normalised":
        products = [np.sqrt(n * n + settings["current"]["eps"] ** 2) for n in products]
    if settings["past_norm"] == "frobenius":
        return products
    assert settings["past_norm"] == "shared-frobenius"
    norms = []
    for site in SITES:
        group = [n for other, n in zip(SITES, products) if group_of(other, sharing) == group_of(site, sharing)]
        norms.append(np.sqrt(np.mean(np.square(group))))
    return norms


def run(settings, sharing, tasks, trained):
    """The directions of the finished tasks, and the magnitudes with which the last one starts."""
    past, magnitudes = [], [[] for _ in {group_of(site, sharing) for site in SITES}]
    for task in range(len(tasks)):
        if task > 0:
            norms = norms_of(tasks[task - 1], settings, sharing)
            past.append([a @ b / norm for (a, b), norm in zip(tasks[task - 1], norms)])
            for site, norm in zip(SITES, norms):
                if settings["start"]["start"] == "carry":
                    magnitudes[group_of(site, sharing)][-1] = trained[task - 1][group_of(site, sharing)][-1] * norm
        value = settings["start"]["value"]
        for group in magnitudes:
            if settings["start"]["start"] == "reset":
                group[:] = [value] * len(group)
            group.append(value)
        if task + 1 < len(tasks):
            magnitudes = [list(row) for row in trained[task]]
    return past, magnitudes


def updates(settings, sharing, past, magnitudes, current):
    out = []
    for i, site in enumerate(SITES):
        alpha = magnitudes[group_of(site, sharing)]
        a, b = current[i]
        direction = a @ b
        if settings["current"]["form"] == "normalised":
            direction = direction / np.sqrt((direction * direction).sum() + settings["current"]["eps"] ** 2)
        total = alpha[-1] * direction
        for k, directions in enumerate(past):
            total = total + alpha[k] * directions[i]
        out.append(total)
    return out


def grid(rng, shape, step=64):
    """Numbers that f32 holds exactly."""
    return rng.integers(-step, step + 1, size=shape) / step


def case(rng, name, variant, settings, sharing, size):
    n_groups = len({group_of(site, sharing) for site in SITES})
    tasks = [[(grid(rng, (D_INPUT, r)), grid(rng, (r, D_OUTPUT))) for _ in SITES] for r in RANKS]
    tasks[-1] = [(a, b * size) for a, b in tasks[-1]]
    trained = [[list(0.5 + np.abs(grid(rng, task + 1))) for _ in range(n_groups)] for task in range(len(RANKS) - 1)]
    cotangents = [grid(rng, (D_INPUT, D_OUTPUT)) for _ in SITES]
    past, start = run(settings, sharing, tasks, trained)
    # The magnitudes of the running task, moved from their start.
    moved = [[alpha + d for alpha, d in zip(row, grid(rng, len(row)) / 4)] for row in start]

    def loss(magnitudes, current):
        found = updates(settings, sharing, past, magnitudes, current)
        return sum((update * cotangent).sum() for update, cotangent in zip(found, cotangents))

    def slope(at, index):
        """Complex step in one number of an array."""
        values = at.astype(complex)
        values[index] += 1j * STEP
        return values

    current = tasks[-1]
    gradients = []
    for i, factors in enumerate(current):
        grads = []
        for j, factor in enumerate(factors):
            grad = np.zeros(factor.shape)
            for index in np.ndindex(factor.shape):
                changed = [list(pair) for pair in current]
                changed[i][j] = slope(factor, index)
                grad[index] = loss(moved, changed).imag / STEP
            grads.append(grad)
        gradients.append(grads)
    magnitude_gradients = []
    for g, row in enumerate(moved):
        grads = []
        for k in range(len(row)):
            changed = [list(other) for other in moved]
            changed[g][k] = row[k] + 1j * STEP
            grads.append(loss(changed, current).imag / STEP)
        magnitude_gradients.append(grads)

    def numbers(array):
        return [float(f"{v:.12g}") for v in np.asarray(array, dtype=float).ravel()]

    def pairs(tasks):
        return [[{"a": numbers(a), "b": numbers(b)} for a, b in task] for task in tasks]

    return {
        "name": name,
        "variant": variant,
        "settings": settings | {"sharing": sharing},
        "ranks": RANKS,
        "factors": pairs(tasks),
        "trained_magnitudes": [[numbers(row) for row in task] for task in trained],
        "cotangents": [numbers(c) for c in cotangents],
        "start_magnitudes": [numbers(row) for row in start],
        "magnitudes": [numbers(row) for row in moved],
        "updates": [numbers(u) for u in updates(settings, sharing, past, moved, current)],
        "gradients": pairs([gradients])[0],
        "magnitude_gradients": [numbers(row) for row in magnitude_gradients],
    }


def main(path):
    rng = np.random.default_rng(11)
    sites = [{"block": block, "projection": projection} for block, projection in SITES]
    golden = {
        "d_input": D_INPUT,
        "d_output": D_OUTPUT,
        "variant_sites": sites,
        "variants": [case(rng, *spec) for spec in CASES],
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(golden, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
