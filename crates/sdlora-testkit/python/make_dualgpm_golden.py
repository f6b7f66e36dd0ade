"""Golden values of InfLoRA's memory of gradient spaces: golden/dualgpm.json.

Follows the published procedure: singular value decompositions of the projected covariance, the basis
of the used space extended ("remove") until it is wider than half, then the basis of its complement
shrunk ("retain"). After the first task it keeps as many directions as sums of energies lie below the
threshold, at least one; after a later one as many as reach it. One thing differs: where the first task
alone is wider than half, the published code keeps the used basis under the name of the other; here the
complement is kept, as in later tasks. The crate uses one rule and eigenvectors instead. Bases are compared as projectors,
which do not depend on the sign or order of their vectors. Made with Python 3.11.7 and NumPy 2.4.6;
run it from the repository root:

    python crates/sdlora-testkit/python/make_dualgpm_golden.py
"""

import json
import pathlib

import numpy as np

WIDTH, RANK, N_TASKS = 10, 2, 5
LAMB, LAME = 0.9, 1.0
rng = np.random.default_rng(20252)


def left(matrix):
    u, s, _ = np.linalg.svd(matrix, full_matrices=True)
    return u, s


tasks = []
basis, keeps = np.zeros((WIDTH, 0)), "used"
for t in range(N_TASKS):
    # A few strong directions and a floor, so that no two energies are close.
    mix = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    spectrum = 3.0 ** -np.arange(WIDTH) + 1e-3 * np.arange(1, WIDTH + 1)
    covariance = (mix * spectrum) @ mix.T

    # Before the task: what is seen, less what is used.
    used = basis @ basis.T if keeps == "used" else np.eye(WIDTH) - basis @ basis.T
    u, _ = left(covariance - used @ covariance)
    design = u[:, :RANK]

    # After the task.
    threshold = (LAME - LAMB) * t / N_TASKS + LAMB
    total = (np.linalg.svd(covariance, compute_uv=False) ** 2).sum()
    if keeps == "used":
        u, s = left(covariance - basis @ basis.T @ covariance)
        if t == 0:
            n_more = max(int((np.cumsum(s**2) / total < threshold).sum()), 1)
        else:
            share, n_more = (total - (s**2).sum()) / total, 0
            while share < threshold:
                share += s[n_more] ** 2 / total
                n_more += 1
        basis = np.hstack([basis, u[:, :n_more]])
    else:
        u, s = left(basis @ basis.T @ covariance)
        share, n_less = (s**2).sum() / total, 0
        # The published code takes one more where both sides are equal, which no float is.
        while share >= 1 - threshold and n_less < basis.shape[1]:
            share -= s[n_less] ** 2 / total
            n_less += 1
        gone = u[:, :n_less]
        u, _ = left(basis - gone @ gone.T @ basis)
        basis = u[:, : basis.shape[1] - n_less]
    if keeps == "used" and basis.shape[1] > WIDTH / 2:
        u, _ = left(basis)
        basis, keeps = u[:, basis.shape[1] :], "free"
    projector = basis @ basis.T
    tasks.append(
        {
            "covariance": covariance.ravel().tolist(),
            "threshold": threshold,
            "design": (design @ design.T).ravel().tolist(),
            "keeps": keeps,
            "n_vectors": basis.shape[1],
            "projector": projector.ravel().tolist(),
        }
    )

out = {"width": WIDTH, "rank": RANK, "tasks": tasks}
path = pathlib.Path("crates/sdlora-testkit/golden/dualgpm.json")
path.write_text(json.dumps(out, indent=1) + "\n")
print(path, [(t["keeps"], t["n_vectors"], round(t["threshold"], 3)) for t in tasks])
