# Makes golden/heads.json: heads in closed form on features that move, by dense inverses, determinants and refits.
#
# Version the file was made with: see "numpy" in the file.
# Run from anywhere: python make_head_golden.py
# Nothing of the Rust code's shortcuts is used: maps are fitted again without every class, covariances of classes are
# formed and inverted whole. Features are random numbers.
import json
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "golden" / "heads.json"
STRENGTHS = [10.0**e for e in range(2, -9, -1)]


def linear_map(before, after, labels):
    """M of after = M before, as heads/drift/linear.rs says."""
    n, d = before.shape
    moves = after - before
    size = (before**2).sum() / n

    def fit(rows, strength):
        x, y = before[rows], moves[rows]
        return y.T @ x @ np.linalg.inv(x.T @ x + strength * size * np.eye(d))

    classes = sorted(set(labels))
    groups = [np.where(labels == c)[0] for c in classes]
    if len(classes) == 1:
        groups = [np.array([i]) for i in range(n)]
    least, best = (moves**2).sum(), None
    for strength in STRENGTHS:
        error = 0.0
        for group in groups:
            others = np.setdiff1d(np.arange(n), group)
            delta = fit(others, strength)
            error += ((before[group] @ delta.T - moves[group]) ** 2).sum()
        if error < least * (1 - 1e-9):
            least, best = error, strength
    return np.eye(d) if best is None else np.eye(d) + fit(np.arange(n), best)


def oas(s, n):
    p = len(s)
    t2, tr = (s**2).sum(), np.trace(s)
    return min(1.0, ((1 - 2 / p) * t2 + tr**2) / ((n + 1 - 2 / p) * (t2 - tr**2 / p)))


def qda(tasks, test, rank, shrinkage, prior, drift):
    d = test.shape[1]
    prior = d if prior is None else prior
    means, counts, own = {}, {}, {}
    scatter, degrees = np.zeros((d, d)), 0

    def shared():
        s = scatter / degrees
        share = oas(s, degrees) if shrinkage is None else shrinkage
        return (1 - share) * s + share * np.trace(s) / d * np.eye(d)

    for before, after, labels in tasks:
        if drift == "linear" and means:
            m = linear_map(before, after, labels)
            means = {c: m @ v for c, v in means.items()}
            own = {c: v @ m.T for c, v in own.items()}
            scatter = m @ scatter @ m.T
        new = [c for c in sorted(set(labels)) if c not in means]
        for c in sorted(set(labels)):
            x = after[labels == c]
            mean = x.mean(0)
            scatter = scatter + (x - mean).T @ (x - mean)
            if c in new:
                means[c], counts[c] = mean, len(x)
                degrees += len(x) - 1
            else:
                n, k = counts[c], len(x)
                scatter = scatter + n * k / (n + k) * np.outer(mean - means[c], mean - means[c])
                means[c] = (n * means[c] + k * mean) / (n + k)
                counts[c] = n + k
                degrees += k
        root = np.linalg.cholesky(shared())
        for c in new:
            x = after[labels == c]
            n = len(x) - 1
            own[c] = np.zeros((rank, d))
            if n < 1:
                continue
            white = np.linalg.solve(root, (x - x.mean(0)).T)
            values, vectors = np.linalg.eigh(white @ white.T / n)
            for i in range(rank):
                value, vector = values[-1 - i], vectors[:, -1 - i]
                if value > 1:
                    own[c][i] = np.sqrt(n / (n + prior) * (value - 1)) * (root @ vector)
    logits = []
    for c in sorted(means):
        sigma = shared() + own[c].T @ own[c]
        y = test - means[c]
        logits.append(-0.5 * ((y @ np.linalg.inv(sigma)) * y).sum(1) - 0.5 * np.linalg.slogdet(sigma)[1])
    return np.array(logits).T


def ncm(tasks, test, drift):
    means = {}
    for before, after, labels in tasks:
        if drift == "linear" and means:
            m = linear_map(before, after, labels)
            means = {c: m @ v for c, v in means.items()}
        for c in sorted(set(labels)):
            means[c] = means.get(c, 0) + after[labels == c].sum(0)
    rows = np.array([means[c] / np.linalg.norm(means[c]) for c in sorted(means)])
    return test @ rows.T


def stream(rng, d, tasks, repeats):
    """Features before and after every task; the space moves by a linear map and a little noise."""
    move = np.eye(d)
    out, n_classes = [], 0
    for sizes in tasks:
        labels, rows = [], []
        for size in sizes:
            centre, turn = rng.normal(size=d), 0.4 * rng.normal(size=(d, d))
            for _ in range(size):
                rows.append(centre + turn @ rng.normal(size=d))
                labels.append(n_classes)
            n_classes += 1
        if repeats and n_classes > len(sizes):
            for _ in range(3):
                rows.append(rng.normal(size=d))
                labels.append(0)
        x = np.array(rows)
        before = x @ move.T + 0.01 * rng.normal(size=x.shape)
        move = (np.eye(d) + 0.2 * rng.normal(size=(d, d))) @ move
        after = x @ move.T + 0.01 * rng.normal(size=x.shape)
        near = lambda a: a.astype(np.float32).astype(np.float64)
        out.append((near(before), near(after), np.array(labels)))
    return out


def main():
    rng = np.random.default_rng(1993)
    streams = {
        "more images than features": (5, stream(rng, 5, [[9, 7, 12], [10, 8], [6, 11]], True)),
        "fewer images than features": (24, stream(rng, 24, [[4, 5, 3], [6, 4], [3, 1, 5]], False)),
        "one class a task": (6, stream(rng, 6, [[5], [7], [1], [6]], False)),
    }
    settings = [
        ("qda", {"rank": 0, "shrinkage": 0.25}),
        ("qda", {"rank": 0}),
        ("qda", {"rank": 2, "shrinkage": 0.1, "prior": 2.0}),
        ("qda", {"rank": 3, "drift": "linear"}),
        ("qda", {"rank": 2, "shrinkage": 0.3, "prior": 1.5, "drift": "linear"}),
        ("ncm", {"mean": "features"}),
        ("ncm", {"mean": "features", "drift": "linear"}),
    ]
    cases = []
    for name, (d, tasks) in streams.items():
        test = rng.normal(size=(7, d)).astype(np.float32).astype(np.float64)
        runs = []
        for head, options in settings:
            drift = options.get("drift", "none")
            if head == "ncm":
                logits = ncm(tasks, test, drift)
            else:
                own = (options.get(k) for k in ("rank", "shrinkage", "prior"))
                logits = qda(tasks, test, *own, drift)
            runs.append({"head": head, "options": options, "logits": logits.flatten().tolist()})
        flat = lambda a: a.flatten().tolist()
        cases.append(
            {
                "name": name,
                "d_model": d,
                "tasks": [
                    {"before": flat(b), "after": flat(a), "labels": labels.tolist()}
                    for b, a, labels in tasks
                ],
                "test": flat(test),
                "runs": runs,
            }
        )
    golden = {"numpy": np.__version__, "streams_of_features": cases}
    OUT.write_text(json.dumps(golden) + "\n")
    print(OUT, OUT.stat().st_size)


main()
