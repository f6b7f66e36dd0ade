"""Golden values of penalties on low-rank updates (N-LoRA, CLoRA): golden/penalties.json.

Forms every matrix as a whole, with the gradients by hand: that of |x| is its sign. What the released codes compute
was read there and is written down anew: N-LoRA sums |B A| over rank x rank (`src/uie_trainer_lora.py` of
PKU-YuanGroup/N-LoRA), CLoRA halves the squared norms of the products with P and Q (`clora.py` of sutakori/CLoRA).
Made with Python 3.11.7 and NumPy 2.4.6; run it from the repository root:

    python crates/sdlora-testkit/python/make_penalty_golden.py
"""

import json
import pathlib

import numpy as np

rng = np.random.default_rng(20252)
# Sites of the same width on both sides: the value projections of two blocks.
WIDTH, RANK, N_BASES, N_SITES = 16, 3, 5, 2
LR = 0.05


def exact(values):
    """Numbers that float32 has."""
    return np.asarray(values, np.float32).astype(np.float64)


def orthonormal(n_rows, n_columns):
    return exact(np.linalg.qr(rng.normal(size=(n_rows, n_columns)))[0])


def flat(matrix):
    return np.asarray(matrix).ravel().tolist()


sites = []
for _ in range(N_SITES):
    sites.append(
        {
            "a": exact(rng.uniform(-0.5, 0.5, (WIDTH, RANK))),
            "b": exact(rng.uniform(-0.5, 0.5, (RANK, WIDTH))),
            # The loss of the task is the sum of all entries of the update times this.
            "cotangent": exact(rng.uniform(-1, 1, (WIDTH, WIDTH))),
            "p": orthonormal(WIDTH, N_BASES),
            "q": orthonormal(WIDTH, N_BASES),
        }
    )


def nlora_update(site):
    update = site["a"] @ site["b"]
    signs = np.sign(update) / update.size
    return np.abs(update).mean(), signs @ site["b"].T, site["a"].T @ signs


def nlora_released(site):
    product = site["b"] @ site["a"]
    signs = np.sign(product) / product.size
    return np.abs(product).mean(), site["b"].T @ signs, signs @ site["a"].T


def projectors(site, has_outputs=True):
    p, q = site["p"], site["q"]
    return p @ p.T, (q @ q.T if has_outputs else np.zeros((WIDTH, WIDTH)))


def clora_factors(site, has_outputs=True):
    of_inputs, of_outputs = projectors(site, has_outputs)
    a, b = site["a"], site["b"]
    value = 0.5 * (np.trace(a.T @ of_inputs @ a) + np.trace(b @ of_outputs @ b.T))
    return value, of_inputs @ a, b @ of_outputs


def clora_update(site):
    of_inputs, of_outputs = projectors(site)
    a, b = site["a"], site["b"]
    update = a @ b
    value = 0.5 * np.trace(update.T @ of_inputs @ update)
    value += 0.5 * np.trace(update @ of_outputs @ update.T)
    slope = of_inputs @ update + update @ of_outputs
    return value, slope @ b.T, a.T @ slope


CASES = [
    ("nlora", "lambda = 25.6", nlora_update, 25.6),
    ("nlora", 'penalty = "rank-product"\nlambda = 3.6', nlora_released, 3.6),
    ("clora", "lambda = 2.0", clora_factors, 2.0),
    ("clora", 'form = "update"\nlambda = 2.0', clora_update, 2.0),
    ("clora", 'bases = "old-features"\nlambda = 3.0', lambda s: clora_factors(s, False), 3.0),
]

methods = []
for name, options, penalty, weight in CASES:
    case = {"method": name, "options": options, "penalty": 0.0, "loss": 0.0, "sites": []}
    for site in sites:
        value, grad_a, grad_b = penalty(site)
        update = site["a"] @ site["b"]
        case["penalty"] += weight * value
        case["loss"] += weight * value + (update * site["cotangent"]).sum()
        grad_a = weight * grad_a + site["cotangent"] @ site["b"].T
        grad_b = weight * grad_b + site["a"].T @ site["cotangent"]
        case["sites"].append(
            {
                "grad_a": flat(grad_a),
                "grad_b": flat(grad_b),
                "a_after": flat(site["a"] - LR * grad_a),
                "b_after": flat(site["b"] - LR * grad_b),
            }
        )
    methods.append(case)

out = {
    "width": WIDTH,
    "rank": RANK,
    "n_bases": N_BASES,
    "lr": LR,
    "penalised": [{key: flat(value) for key, value in site.items()} for site in sites],
    "methods": methods,
}
path = pathlib.Path("crates/sdlora-testkit/golden/penalties.json")
path.write_text(json.dumps(out, indent=1) + "\n")
print(path, [(m["method"], round(m["penalty"], 6)) for m in methods])
