"""Golden values of the objectives on label paths (T-SPMO, S-GRPO): golden/label_paths.json.

Differentiates the objectives numerically, from probabilities of whole paths that are added up leaf by leaf: nothing of
the prefix tree's bookkeeping or of the gradients in the crate is used. Made with Python 3.11.7 and NumPy 2.4.6; run it
from the repository root:

    python crates/sdlora-testkit/python/make_path_golden.py
"""

import json
import pathlib

import numpy as np

rng = np.random.default_rng(20253)
N_LEAVES, BLOCK, N_IMAGES, N_PATHS, LR, EPS = 7, 3, 3, 12, 0.3, 1e-4

logits = rng.uniform(-1, 1, (N_IMAGES, N_LEAVES)).astype(np.float32).astype(np.float64)


def group(leaf):
    return leaf // BLOCK


def probability(row, prefix):
    """Of all leaves whose path starts so: () is everything, (g,) a group, (g, c) a leaf."""
    p = np.exp(row) / np.exp(row).sum()
    return sum(p[c] for c in range(N_LEAVES) if (group(c), c)[: len(prefix)] == prefix)


images = []
for row, target in zip(logits, [4, 0, 6]):
    p = np.exp(row) / np.exp(row).sum()
    leaves = [int(leaf) for leaf in rng.choice(N_LEAVES, N_PATHS, p=p)]
    leaves[0] = target
    tokens = [[True, bool(rng.random() < 0.5)] for _ in leaves]
    tokens[1] = [False, False]
    images.append((leaves, target, tokens))


def tspmo(row, leaves, target, tokens):
    paths = [(group(leaf), leaf) for leaf in leaves]
    rewards = np.array([float(leaf == target) for leaf in leaves])

    def mean(prefix):
        return rewards[[path[: len(prefix)] == prefix for path in paths]].mean()

    pairs = sorted({path[: t + 1] for path in paths for t in range(2)})
    terms = [
        probability(row, pair) / probability(row, pair[:-1]) * (mean(pair) - mean(pair[:-1]))
        for pair in pairs
    ]
    moved = sum(mean(pair) != mean(pair[:-1]) for pair in pairs)
    return np.sum(terms) / len(pairs), moved


def grpo(row, leaves, target, tokens, base):
    """`base` are the logits at which the ratios are 1."""
    rewards = np.array([float(leaf == target) for leaf in leaves])
    advantages = (rewards - rewards.mean()) / (rewards.std() + EPS)
    total, moved = 0.0, 0
    for leaf, advantage, is_in in zip(leaves, advantages, tokens):
        path = (group(leaf), leaf)
        chosen = [t for t in range(2) if is_in[t]]
        for t in chosen:
            now = probability(row, path[: t + 1]) / probability(row, path[:t])
            then = probability(base, path[: t + 1]) / probability(base, path[:t])
            total += now / then * advantage / len(chosen)
            moved += advantage != 0
    return total / len(leaves), int(moved)


def objective(name, z):
    values = []
    for row, base, (leaves, target, tokens) in zip(z, logits, images):
        if name == "tspmo":
            values.append(tspmo(row, leaves, target, tokens))
        elif name == "sgrpo":
            values.append(grpo(row, leaves, target, tokens, base))
        else:
            values.append(grpo(row, leaves, target, [[True, True]] * len(leaves), base))
    return np.mean([v for v, _ in values]), sum(n for _, n in values)


objectives = []
for name in ("tspmo", "sgrpo", "grpo"):
    gradient = np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-5
        slope = objective(name, logits + step)[0] - objective(name, logits - step)[0]
        # The loss is the negative objective.
        gradient[index] = -slope / 2e-5
    value, moved = objective(name, logits)
    objectives.append(
        {
            "name": name,
            "objective": value,
            "n_tokens": int(moved),
            "gradient": gradient.ravel().tolist(),
            "after": (logits - LR * gradient).ravel().tolist(),
        }
    )

out = {
    "n_leaves": N_LEAVES,
    "block": BLOCK,
    "lr": LR,
    "logits": logits.ravel().tolist(),
    "paths": images,
    "objectives": objectives,
}
path = pathlib.Path("crates/sdlora-testkit/golden/label_paths.json")
path.write_text(json.dumps(out, indent=1) + "\n")
print(path, [(o["name"], round(o["objective"], 6), o["n_tokens"]) for o in objectives])
