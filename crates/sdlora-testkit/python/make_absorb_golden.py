"""Golden values of the least-squares absorption (SD-LoRA-KD): golden/absorb.json.

Forms every product as a whole matrix and solves with numpy.linalg.lstsq, the opposite of what the
crate does. Made with Python 3.11.7 and NumPy 2.4.6; run it from the repository root:

    python crates/sdlora-testkit/python/make_absorb_golden.py
"""

import json
import pathlib

import numpy as np

rng = np.random.default_rng(20251)
D_INPUT, D_OUTPUT = 9, 8
RANKS = [3, 2, 1]


def factors(rank):
    a = rng.uniform(-1, 1, (D_INPUT, rank)).astype(np.float32)
    b = rng.uniform(-1, 1, (rank, D_OUTPUT)).astype(np.float32)
    return a, b


sites = []
for noise in (0.0, 0.02, 1.0):
    past = [factors(rank) for rank in RANKS]
    # The current direction: a sum of the earlier ones plus a direction of its own.
    own_a, own_b = factors(1)
    weights = [1.5, -0.5, 0.25]
    a = np.concatenate([w * a for w, (a, _) in zip(weights, past)] + [noise * own_a], axis=1)
    b = np.concatenate([b for _, b in past] + [own_b], axis=0)
    a, b = a.astype(np.float32), b.astype(np.float32)
    products = [x.astype(np.float64) @ y.astype(np.float64) for x, y in past]
    directions = [p / np.linalg.norm(p) for p in products]
    current = a.astype(np.float64) @ b.astype(np.float64)
    design = np.stack([d.ravel() for d in directions], axis=1)
    c, *_ = np.linalg.lstsq(design, current.ravel(), rcond=None)
    rest = current.ravel() - design @ c
    unit_rest = np.linalg.norm(rest) / np.linalg.norm(current)
    sites.append(
        {
            "past": [{"a": x.ravel().tolist(), "b": y.ravel().tolist()} for x, y in past],
            "current": {"a": a.ravel().tolist(), "b": b.ravel().tolist()},
            "coefficients": c.tolist(),
            "fro": unit_rest,
            "fro2": unit_rest**2,
            "rms": unit_rest / np.sqrt(D_INPUT * D_OUTPUT),
        }
    )

# One coefficient a direction for all sites together (equation 8): the unit direction of every site, one below the other.
def unit(site):
    def product(f):
        a = np.array(f["a"]).reshape(D_INPUT, -1)
        return (a @ np.array(f["b"]).reshape(-1, D_OUTPUT)).ravel()

    past = [product(f) for f in site["past"]]
    current = product(site["current"])
    return [p / np.linalg.norm(p) for p in past], current / np.linalg.norm(current)


units = [unit(site) for site in sites]
design = np.concatenate([np.stack(past, axis=1) for past, _ in units])
target = np.concatenate([current for _, current in units])
shared, *_ = np.linalg.lstsq(design, target, rcond=None)
rest = [current - np.stack(past, axis=1) @ shared for past, current in units]
together = {"coefficients": shared.tolist(), "fro": [np.linalg.norm(r) for r in rest]}

out = {"d_input": D_INPUT, "d_output": D_OUTPUT, "ranks": RANKS, "sites": sites, "together": together}
path = pathlib.Path("crates/sdlora-testkit/golden/absorb.json")
path.write_text(json.dumps(out, indent=1) + "\n")
print(path, [round(s["fro"], 6) for s in sites])
