"""Golden values of slots and chains: golden/slots.json.

Ports of published formulas in float64, every matrix formed as a whole, gradients by hand. Where a code is released it
was read and its behaviour is written down anew:

- SoRA, `src/sparse_optimizer.py` and `src/trainer.py` of TsinghuaC3I/SoRA
- BeamLoRA, `peft/src/peft/tuners/lora/model.py` and `train.py` of gccnlp/BeamLoRA
- PRoLoRA, `modules/chunkwise_sharing_LoRA.py` of Forence1999/PRoLoRA
- RAC-LoRA, `rac_lora_mnist/models/lit_mnist_lora.py` of hammoudhasan/RACLora
- E2-LoRA, `class_incremental_learning/utils/inc_net.py` and `models/e2lora.py` of kiddo127/E2-LoRA

PRILoRA, LoRA Dropout, XGBLoRA and DualLoRA have no released code: those are the formulas of their papers, and where a
paper says nothing, those of docs/methods. Made with Python 3.11.7 and NumPy 2.4.6; run it from the repository root:

    python crates/sdlora-testkit/python/make_slot_golden.py
"""

import itertools
import json
import math
import pathlib

import numpy as np

rng = np.random.default_rng(2311)


def exact(values):
    """Numbers that float32 has."""
    return np.asarray(values, np.float32).astype(np.float64)


def drawn(*shape, bound=1.0):
    return exact(rng.uniform(-bound, bound, shape))


def plain(value):
    """Arrays as flat lists, also inside lists and dictionaries."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return value.ravel().tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value


# A site is fitted to targets: the mean over rows of half the squared error of x (w + update).


def problem(d_input, d_output, n_rows=6):
    return {
        "d_input": d_input,
        "d_output": d_output,
        "x": drawn(n_rows, d_input),
        "w": drawn(d_input, d_output, bound=0.5),
        "y": drawn(n_rows, d_output),
    }


def fitted(site, update):
    """Loss and its gradient to the update."""
    error = site["x"] @ (site["w"] + update) - site["y"]
    n = len(error)
    return 0.5 * (error**2).sum() / n, site["x"].T @ error / n


def numeric(loss, value, eps=1e-6):
    """Central differences, to check a gradient that is written by hand."""
    out = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        for sign in (1, -1):
            moved = value.copy()
            moved[index] += sign * eps
            out[index] += sign * loss(moved) / (2 * eps)
    return out


def check(gradient, loss, value):
    assert np.abs(gradient - numeric(loss, value)).max(initial=0) < 1e-7


# SoRA -----------------------------------------------------------------------------------------------------------------


def soft(values, threshold):
    """The proximal step of the paper."""
    return np.sign(values) * np.maximum(np.abs(values) - threshold, 0)


def released_soft(values, threshold):
    """Three assignments one after another: what the first two leave below the threshold, the third clears."""
    values = values.copy()
    values[values > threshold] -= threshold
    values[values < -threshold] += threshold
    values[np.abs(values) < threshold] = 0
    return values


def sora():
    rank, lr, gate_lr, threshold, penalty = 6, 0.1, 0.5, 0.06, 0.4
    gates = [[0.9, -0.75, 0.075, -0.02, 0.3, -0.2], [-0.12, 0.5, 0.01, -1.1, 0.06, 0.4]]
    sites = [problem(8, 7) for _ in gates]
    out = {
        "rank": rank,
        "lr": lr,
        "gate_lr": gate_lr,
        "threshold": threshold,
        "penalty": penalty,
        "loss": 0.0,
        "sites": sites,
    }
    n_gates = rank * len(sites)
    for site, gate in zip(sites, gates):
        a, b, g = drawn(8, rank), drawn(rank, 7), exact(gate)
        of = lambda a, b, g: fitted(site, (a * g) @ b)[0]
        value, slope = fitted(site, (a * g) @ b)
        out["loss"] += value + penalty * np.abs(g).sum() / n_gates
        grad_a, grad_b = slope @ b.T * g, (a * g).T @ slope
        of_task = np.diag(a.T @ slope @ b.T)
        check(grad_a, lambda v: of(v, b, g), a)
        check(grad_b, lambda v: of(a, v, g), b)
        check(of_task, lambda v: of(a, b, v), g)
        grad_g = of_task + penalty * np.sign(g) / n_gates
        stepped = g - lr * gate_lr * grad_g
        after, released = soft(stepped, threshold), released_soft(stepped, threshold)
        a_after, b_after = a - lr * grad_a, b - lr * grad_b
        live = [k for k in range(rank) if after[k] != 0]
        site |= {
            "a": a,
            "b": b,
            "gate": g,
            "grad_a": grad_a,
            "grad_b": grad_b,
            "grad_gate": grad_g,
            "a_after": a_after,
            "b_after": b_after,
            "gate_stepped": stepped,
            "gate_after": after,
            "gate_after_released": released,
            "live": live,
            "a_compacted": (a_after * after)[:, live],
            "b_compacted": b_after[live],
        }
        size = np.abs(stepped)
        assert 0 < len(live) < rank and (np.abs(size / threshold - 1) > 0.05).all()
        between = (size > threshold) & (size < 2 * threshold)
        assert between.any() and (released[between] == 0).all()
        assert np.allclose(released[~between], after[~between])
    return out


# BeamLoRA -------------------------------------------------------------------------------------------------------------


def softmax(values):
    shares = np.exp(values - values.max())
    return shares / shares.sum()


def beam_masks(importances, share):
    """Pruned ranks by site: of all ranks, strongest first, those from the first one whose sum is above the share."""
    every = np.concatenate(importances)
    order = np.argsort(-every, kind="stable")
    sums = np.cumsum(every[order])
    above = np.nonzero(sums > share * every.sum())[0]
    assert len(above) > 0 and np.abs(sums - share * every.sum()).min() > 0.05
    mask = np.zeros(len(every), bool)
    mask[order[above[0] :]] = True
    ends = np.cumsum([len(values) for values in importances])[:-1]
    return np.split(mask, ends)


def beamlora():
    rank, lr, temperature = 4, 0.1, 0.5
    n_steps, n_period, start = 12, 4, 0.8
    gates = [[0.6, -0.2, 0.1, -0.4], [0.3, 0.1, -0.1, 0.2]]
    sites = [problem(6, 5) for _ in gates]
    out = {
        "rank": rank,
        "lr": lr,
        "temperature": temperature,
        "n_steps": n_steps,
        "period": n_period / n_steps,
        "start_share": start,
        # Steps after whose update something happens, from 0.
        "step_of_snapshot": n_period // 2 - 1,
        "step_of_exchange": n_period - 1,
        "share": 1 - (1 - start) * (1 + math.cos(math.pi * n_period / n_steps)) / 2,
        "loss": 0.0,
        "sites": sites,
    }
    importances = []
    for site, gate in zip(sites, gates):
        old_a, old_b = drawn(6, rank), drawn(rank, 5)
        a, b, g = exact(old_a + drawn(6, rank, bound=0.2)), exact(old_b + drawn(rank, 5, bound=0.2)), exact(gate)
        factors = rank * softmax(g / temperature)
        of = lambda a, b, g: fitted(site, (a * (rank * softmax(g / temperature))) @ b)[0]
        value, slope = fitted(site, (a * factors) @ b)
        out["loss"] += value
        to_factors = np.diag(a.T @ slope @ b.T)
        grad_a, grad_b = slope @ b.T * factors, (a * factors).T @ slope
        grad_g = factors / temperature * (to_factors - (factors / rank * to_factors).sum())
        check(grad_a, lambda v: of(v, b, g), a)
        check(grad_b, lambda v: of(a, v, g), b)
        check(grad_g, lambda v: of(a, b, v), g)
        site |= {
            "snapshot_a": old_a,
            "snapshot_b": old_b,
            "a": a,
            "b": b,
            "gate": g,
            "factors": factors,
            "grad_a": grad_a,
            "grad_b": grad_b,
            "grad_gate": grad_g,
            "a_stepped": a - lr * grad_a,
            "b_stepped": b - lr * grad_b,
            "gate_stepped": g - lr * grad_g,
        }
        site["importance"] = rank * softmax(site["gate_stepped"] / temperature)
        importances.append(site["importance"])
    for site, mask in zip(sites, beam_masks(importances, out["share"])):
        pruned = np.nonzero(mask)[0]
        # The code puts the copies in a random order; here the strongest one comes first.
        copied = np.argsort(-site["importance"], kind="stable")[: len(pruned)]
        assert len(pruned) <= rank // 2
        a, b, g = site["a_stepped"].copy(), site["b_stepped"].copy(), site["gate_stepped"].copy()
        a[:, pruned], b[pruned] = site["snapshot_a"][:, copied], site["snapshot_b"][copied]
        g[pruned] = (g[pruned] + g[copied]) / 2
        g[copied] = g[pruned]
        site |= {"pruned": pruned, "copied": copied, "a_after": a, "b_after": b, "gate_after": g}
    assert sum(len(site["pruned"]) for site in sites) >= 2
    return out


# PRoLoRA --------------------------------------------------------------------------------------------------------------


def places(n_chunks, n_shared, width):
    """Row and rank of the chunk that stands at every row and rank of the factor: the code gathers rank k + j s."""
    size, stride = math.ceil(width / n_chunks), max(n_shared // n_chunks, 1)
    rows, ranks = np.arange(width)[:, None], np.arange(n_shared)[None]
    return rows % size, (ranks + rows // size * stride) % n_shared


def prolora_case(rank, unshared, n_chunks, site, lr=0.1):
    shared = rank - unshared
    d_input, d_output = site["d_input"], site["d_output"]
    a0, b0 = drawn(math.ceil(d_input / n_chunks), shared), drawn(shared, math.ceil(d_output / n_chunks))
    own_a, own_b = drawn(d_input, unshared), drawn(unshared, d_output)
    of_a, of_b = places(n_chunks, shared, d_input), places(n_chunks, shared, d_output)

    def expanded(a0, b0, own_a, own_b):
        return np.hstack([a0[of_a], own_a]), np.vstack([b0.T[of_b].T, own_b])

    def of(*parts):
        a, b = expanded(*parts)
        return fitted(site, a @ b)[0]

    parts = [a0, b0, own_a, own_b]
    a, b = expanded(*parts)
    value, slope = fitted(site, a @ b)
    to_a, to_b = slope @ b.T, a.T @ slope
    grad_a0, grad_b0 = np.zeros_like(a0), np.zeros_like(b0)
    np.add.at(grad_a0, of_a, to_a[:, :shared])
    np.add.at(grad_b0.T, of_b, to_b[:shared].T)
    gradients = [grad_a0, grad_b0, to_a[:, shared:], to_b[shared:]]
    for i, gradient in enumerate(gradients):
        check(gradient, lambda v: of(*parts[:i], v, *parts[i + 1 :]), parts[i])
    names = ["a0", "b0", "unshared_a", "unshared_b"]
    out = {"rank": rank, "unshared": unshared, "chunks": n_chunks, "lr": lr, "loss": value, "a": a, "b": b}
    for name, part, gradient in zip(names, parts, gradients):
        out |= {name: part, f"grad_{name}": gradient, f"{name}_after": part - lr * gradient}
    # Kaiming's uniform bound with a = sqrt(5) and the fan-in of the whole factor.
    out["bound"] = math.sqrt(3) * math.sqrt(2 / (1 + 5)) / math.sqrt(d_input)
    return out


def prolora():
    site = problem(7, 6)
    layouts = [(5, 1, 3), (6, 2, 2), (4, 0, 2)]
    return {"site": site, "cases": [prolora_case(*layout, site) for layout in layouts]}


# A small ViT ----------------------------------------------------------------------------------------------------------

WIDTH, N_HEADS, SIDE, PATCH = 6, 2, 4, 2


def layer_norm(x, weight, bias, eps=1e-6):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight + bias


class Vit:
    """Two blocks. The first adds nothing, the second has an attention and no MLP, so that what both project from is
    known in a line and features still depend on updates."""

    def __init__(self):
        norms = lambda: (exact(1 + rng.uniform(-0.3, 0.3, WIDTH)), drawn(WIDTH, bound=0.2))
        self.patches, self.patch_bias = drawn(PATCH**2, WIDTH), drawn(WIDTH, bound=0.2)
        self.positions = drawn(SIDE // PATCH * (SIDE // PATCH), WIDTH, bound=0.3)
        self.norm1, self.norm = [norms(), norms()], norms()
        self.qkv, self.proj = drawn(WIDTH, 3 * WIDTH, bound=0.7), drawn(WIDTH, WIDTH, bound=0.7)

    def tokens(self, images):
        n, rows = len(images), SIDE // PATCH
        cut = images.reshape(n, rows, PATCH, rows, PATCH).transpose(0, 1, 3, 2, 4)
        return cut.reshape(n, rows * rows, PATCH**2) @ self.patches + self.patch_bias + self.positions

    def inputs(self, images):
        """What both blocks project from, `[n, n_tokens, WIDTH]` each."""
        tokens = self.tokens(images)
        return [layer_norm(tokens, *norm) for norm in self.norm1]

    def features(self, images, of_value):
        """With an update of the value projection of the second block."""
        tokens, x = self.tokens(images), self.inputs(images)[1]
        query, key, value = np.split(x @ self.qkv, 3, axis=-1)
        value = value + x @ of_value
        heads = lambda v: v.reshape(*v.shape[:2], N_HEADS, -1).transpose(0, 2, 1, 3)
        query, key, value = heads(query), heads(key), heads(value)
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(WIDTH // N_HEADS)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ value
        mixed = mixed.transpose(0, 2, 1, 3).reshape(tokens.shape)
        return layer_norm(tokens + mixed @ self.proj, *self.norm).mean(1)

    def written(self):
        return {
            "width": WIDTH,
            "n_heads": N_HEADS,
            "side": SIDE,
            "patch": PATCH,
            "patches": self.patches,
            "patch_bias": self.patch_bias,
            "positions": self.positions,
            "norm1": [{"weight": w, "bias": b} for w, b in self.norm1],
            "norm": {"weight": self.norm[0], "bias": self.norm[1]},
            "qkv": self.qkv,
            "proj": self.proj,
        }


def pictures(n):
    return drawn(n, SIDE, SIDE)


# PRILoRA --------------------------------------------------------------------------------------------------------------


def ranks_by_depth(first, last, depth):
    steps = max(depth - 1, 1)
    return [math.floor(first + (last - first) * block / steps + 0.5) for block in range(depth)]


def prilora(vit):
    first, last, every, share, decay = 2, 4, 3, 0.4, 0.8
    batches = [pictures(n) for n in (3, 3, 2)]
    ranks = ranks_by_depth(first, last, 2)
    sites = [{"rank": rank, "a": drawn(WIDTH, rank), "b": drawn(rank, WIDTH)} for rank in ranks]
    norms, running = [], None
    for images in batches:
        found = np.stack([np.sqrt((x**2).sum((0, 1))) for x in vit.inputs(images)])
        running = found if running is None else decay * running + (1 - decay) * found
        norms.append(running)
    for site, norm in zip(sites, running):
        importance = np.abs(site["a"]) * norm[:, None]
        order = np.argsort(importance, axis=0, kind="stable")[: math.floor(share * WIDTH)]
        gone = np.zeros_like(importance, bool)
        np.put_along_axis(gone, order, True, 0)
        by_size = np.argsort(np.abs(site["a"]), axis=0, kind="stable")[: math.floor(share * WIDTH)]
        # The norms matter: by magnitude alone other entries would go.
        assert (np.sort(order, 0) != np.sort(by_size, 0)).any()
        site |= {"pruned": gone.astype(int), "a_after": np.where(gone, 0, site["a"])}
    return {
        "first_rank": first,
        "last_rank": last,
        "every": every,
        "share": share,
        "decay": decay,
        "ranks_by_depth": [
            {"first": 4, "last": 12, "ranks": ranks_by_depth(4, 12, depth)} for depth in (1, 2, 4, 12)
        ],
        "batches": batches,
        "norms": norms,
        "sites": sites,
    }


# LoRA Dropout ---------------------------------------------------------------------------------------------------------


def lora_dropout():
    rank, share, lr, n_masks = 2, 0.3, 0.1, 3
    site = problem(5, 4)
    a, b = drawn(5, rank), drawn(rank, 4)
    masks = [([1, 0, 1, 1, 0], [0, 1, 1, 1]), ([1, 1, 0, 1, 1], [1, 1, 0, 0]), ([0, 1, 1, 1, 1], [1, 0, 1, 1])]
    masks = [(np.array(rows, float), np.array(columns, float)) for rows, columns in masks]
    assert len(masks) == n_masks

    def of(a, b):
        losses = [fitted(site, (a * rows[:, None]) @ (b * columns))[0] for rows, columns in masks]
        return sum(losses) / n_masks

    updates = [(a * rows[:, None]) @ (b * columns) for rows, columns in masks]
    grad_a, grad_b = np.zeros_like(a), np.zeros_like(b)
    for (rows, columns), update in zip(masks, updates):
        slope = fitted(site, update)[1] * rows[:, None] * columns / n_masks
        grad_a += slope @ b.T
        grad_b += a.T @ slope
    check(grad_a, lambda v: of(v, b), a)
    check(grad_b, lambda v: of(a, v), b)
    a_after, b_after = a - lr * grad_a, b - lr * grad_b
    # The mean over every mask there is, by its probability.
    mean = np.zeros((5, 4))
    for bits in itertools.product([0, 1], repeat=9):
        bits = np.array(bits)
        chance = np.where(bits == 1, 1 - share, share).prod()
        mean += chance * (a_after * bits[:5, None]) @ (b_after * bits[5:])
    return {
        "rank": rank,
        "dropout": share,
        "lr": lr,
        "site": site,
        "a": a,
        "b": b,
        "masks": [{"rows": rows, "columns": columns} for rows, columns in masks],
        "updates": updates,
        "loss": of(a, b),
        "grad_a": grad_a,
        "grad_b": grad_b,
        "a_after": a_after,
        "b_after": b_after,
        "mean_update": mean,
    }


# Chains ---------------------------------------------------------------------------------------------------------------


def chain(method, options, frozen, rate, n_rounds=2, every=2, rank=2, lr=0.2):
    """Rounds of plain gradient steps; `frozen` is the factor that every round draws and keeps, or none."""
    site = problem(6, 5)
    merged, rounds = np.zeros((6, 5)), []
    for _ in range(n_rounds):
        a, b = drawn(6, rank), np.zeros((rank, 5))
        if frozen == "b":
            a, b = np.zeros((6, rank)), drawn(rank, 5)
        steps = []
        start = {"a": a, "b": b}
        for _ in range(every):
            value, slope = fitted(site, merged + a @ b)
            grad_a, grad_b = slope @ b.T, a.T @ slope
            check(grad_a, lambda v: fitted(site, merged + v @ b)[0], a)
            check(grad_b, lambda v: fitted(site, merged + a @ v)[0], b)
            a = a if frozen == "a" else a - lr * grad_a
            b = b if frozen == "b" else b - lr * grad_b
            step = {"loss": value, "a_after": a, "b_after": b}
            step |= {} if frozen == "a" else {"grad_a": grad_a}
            step |= {} if frozen == "b" else {"grad_b": grad_b}
            steps.append(step)
        merged = merged + rate * a @ b
        rounds.append({**start, "steps": steps, "merged": merged})
    options = f"rank = {rank}\nevery = {every}\n{options}"
    return {"method": method, "options": options, "frozen": frozen, "lr": lr, "site": site, "rounds": rounds}


def chains():
    return [
        chain("raclora", 'frozen = "a"', "a", 1),
        chain("raclora", 'frozen = "b"\nsketch = "orthonormal"', "b", 1),
        chain("raclora", 'frozen = "none"', "none", 1),
        chain("xgblora", "blocks = 1.0\nrate = 0.5", "none", 0.5),
    ]


# E2-LoRA --------------------------------------------------------------------------------------------------------------


def kept_by_energy(energies, share):
    return max(1, int((np.cumsum(energies) <= share * energies.sum()).sum()) + 1)


def released_ranks(energies, pool, share, step=1e-5):
    """The loop of the code: the share falls until the old tasks leave a part of the pool."""
    n_tasks = len(energies)
    while sum(kept_by_energy(row, share) for row in energies) > n_tasks * pool // (n_tasks + 1):
        share -= step
    return [kept_by_energy(row, share) for row in energies]


def principal(outputs):
    """Energies and directions as the code finds them, around the mean."""
    centred = outputs - outputs.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    return sizes**2 / (len(outputs) - 1), directions


def e2lora_ranks():
    def case(pool, share, rows, ranks=None):
        """`rows` are the energies of old tasks, `ranks` what they have."""
        rows = [exact(row) for row in rows]
        kept = released_ranks(rows, pool, share)
        ranks = ranks or [pool // len(rows) + (k < pool % len(rows)) for k in range(len(rows))]
        assert sum(ranks) == pool and all(k <= r for k, r in zip(kept, ranks)), (kept, ranks)
        energies = [np.concatenate([row, np.zeros(pool - len(row))]) for row in rows]
        return {"pool": pool, "energy": share, "ranks": ranks, "energies": energies, "kept": kept}

    flat = np.linspace(1, 0.5, 12)
    steep = 0.5 ** np.arange(12)
    return [
        case(12, 0.99, [steep]),
        case(12, 0.99999, [flat]),
        case(12, 0.9, [steep[:6], flat[:6]]),
        case(12, 0.99999, [flat[:4], 3 * flat[:4], steep[:4]]),
        case(12, 0.5, [[90, 9, 0.9, 0.1, 0, 0], [50, 30, 15, 5, 0, 0]]),
    ]


def e2lora(vit):
    pool, energy, lr, distill, temperature = 5, 0.9, 0.2, 0.4, 1.7
    seen, sites = pictures(4), []
    for inputs in vit.inputs(seen):
        site = problem(WIDTH, WIDTH)
        a, b = drawn(WIDTH, pool), drawn(pool, WIDTH)
        outputs = inputs.reshape(-1, WIDTH) @ a @ b
        # Around 0: the rows and their mirror images have the mean 0, and one degree of freedom less than rows.
        both = np.vstack([outputs, -outputs])
        energies, directions = principal(both)
        energies, directions = energies[:pool] * (len(both) - 1) / len(both), directions[:pool]
        assert (energies[:-1] / energies[1:] > 1.05).all()
        [kept] = released_ranks([energies], pool, energy)
        old = a @ b @ directions[:kept].T @ directions[:kept]
        rest = directions[kept:]
        value, slope = fitted(site, old)
        # The new A starts at 0, so its gradient is the slope in the released directions.
        assert np.abs(numeric(lambda v: fitted(site, old + v @ rest)[0], np.zeros((WIDTH, pool - kept)))
                      - slope @ rest.T).max() < 1e-7
        site |= {
            "a": a,
            "b": b,
            "energies": energies,
            "turned_a": a @ b @ directions.T,
            "turned_b": directions,
            "kept": kept,
            "old": old,
            "rest": rest,
            "loss": value,
            "grad_times_rest": slope @ rest.T @ rest,
            "update_after": old - lr * slope @ rest.T @ rest,
        }
        sites.append(site)
    images, columns, biases = pictures(3), drawn(WIDTH, 4), drawn(4)
    features = drawn(3, WIDTH)

    def shares(features):
        return np.array([softmax(row) for row in (features @ columns + biases) / temperature])

    teacher = shares(vit.features(images, sites[1]["old"]))

    def divergence(features):
        student = shares(features)
        return distill * temperature**2 * (teacher * (np.log(teacher) - np.log(student))).sum() / len(features)

    gradient = distill * temperature / len(features) * (shares(features) - teacher) @ columns.T
    check(gradient, divergence, features)
    return {
        "options": f"pool = {pool}\nenergy = {energy}\ndistill = {distill}\ntemperature = {temperature}",
        "lr": lr,
        "images": seen,
        "sites": sites,
        "distillation": {
            "images": images,
            "columns": columns,
            "biases": biases,
            "features": features,
            "value": divergence(features),
            "gradient": gradient,
        },
        "ranks": e2lora_ranks(),
    }


# sdlora-merge ---------------------------------------------------------------------------------------------------------


def sdlora_merge():
    n_images, rank, lr = [3, 5, 4], 2, 0.1
    out = []
    for options, share, start in [
        ("share = 0.2", lambda t: 0.2, "previous"),
        ('share = "by-images"', lambda t: n_images[t] / sum(n_images[: t + 1]), "previous"),
        ('share = "by-tasks"\nstart = "fresh"', lambda t: 1 / (t + 1), "fresh"),
        ('share = 0.3\nstart = "merged"', lambda t: 0.3, "merged"),
        ('share = 0.25\nmerge = "factors"', lambda t: 0.25, "factors"),
    ]:
        site, tasks = problem(6, 5), []
        merged, mean_a, mean_b = np.zeros((6, 5)), None, None
        for t in range(3):
            m = 1 if t == 0 else share(t)
            a, b = drawn(6, rank), drawn(rank, 5)
            beside = merged if start == "merged" else np.zeros((6, 5))
            value, slope = fitted(site, beside + a @ b)
            grad_a, grad_b = slope @ b.T, a.T @ slope
            check(grad_a, lambda v: fitted(site, beside + v @ b)[0], a)
            task = {"a": a, "b": b, "loss": value, "grad_a": grad_a, "grad_b": grad_b}
            a, b = a - lr * grad_a, b - lr * grad_b
            if start == "factors":
                mean_a = a if t == 0 else (1 - m) * mean_a + m * a
                mean_b = b if t == 0 else (1 - m) * mean_b + m * b
                merged = mean_a @ mean_b
            else:
                merged = (1 - m) * merged + m * (beside + a @ b)
            tasks.append(task | {"a_after": a, "b_after": b, "update": merged})
        options = f"rank = {rank}\n{options}"
        out.append({"options": options, "start": start, "lr": lr, "site": site, "tasks": tasks})
    return {"n_images": n_images, "cases": out}


# DualLoRA -------------------------------------------------------------------------------------------------------------


def duallora(vit):
    """Bases as by gradient projection memory; the weights are the formula of docs/methods/duallora.md."""
    rank, energy, sharpness, calibration = 2, 0.85, 0.7, 1.3
    labels = [[0, 1, 0], [2, 3, 3]]
    images = [pictures(3), pictures(3)]
    tasks = []
    old = [np.zeros((0, WIDTH)) for _ in range(2)]
    for batch in images:
        task = {"images": batch, "own": [], "a": [], "a_after": [], "residual_a": [], "residual_a_after": []}
        for block, inputs in enumerate(vit.inputs(batch)):
            rows = inputs.reshape(-1, WIDTH)
            covariance = rows.T @ rows / len(rows)
            outside = np.eye(WIDTH) - old[block].T @ old[block]
            values, vectors = np.linalg.eigh(outside @ covariance @ outside)
            values, vectors = values[::-1], vectors[:, ::-1].T
            total = np.trace(covariance)
            held, n = total - values.sum(), 0
            while held < energy * total:
                assert abs(held / total - energy) > 0.005
                held, n = held + values[n], n + 1
            own = vectors[:n]
            assert n > 0 and (n == WIDTH or values[n - 1] > 1.02 * values[n])
            a, residual = drawn(WIDTH, rank), drawn(WIDTH, rank)
            task["own"].append(own.T @ own)
            task["a"].append(a)
            task["residual_a"].append(residual)
            task["a_after"].append(outside @ a)
            task["residual_a_after"].append(own.T @ own @ residual)
            old[block] = np.vstack([old[block], own])
        tasks.append(task)

    def share_of(batch):
        """`[n, n_tasks]`: of the energy of the inputs what lies in the bases of a task, mean over blocks."""
        blocks = vit.inputs(batch)
        of_task = lambda task: [
            ((x @ own) ** 2).sum((1, 2)) / (x**2).sum((1, 2)) for x, own in zip(blocks, task["own"])
        ]
        return np.stack([np.mean(of_task(task), axis=0) for task in tasks], axis=1)

    for i, task in enumerate(tasks):
        own = share_of(task["images"])[:, i]
        task |= {"mean": own.mean(), "deviation": max(own.std(), 0.01 * own.mean())}
    asked = pictures(4)
    shares = share_of(asked)
    means, deviations = (np.array([task[key] for task in tasks]) for key in ("mean", "deviation"))
    lacks = np.maximum(means - shares, 0) / deviations
    logs = -0.5 * (sharpness * lacks) ** 2
    weights = np.exp(logs)
    assert (weights < 0.9).any() and (weights > 0.99).any()
    confidence = logs - np.log(weights.sum(1, keepdims=True))
    class_tasks = [0, 0, 1, 1]

    # What the residual LoRAs of both tasks add to the value projection of the second block, image by image.
    x = vit.inputs(asked)[1]
    factors = [(drawn(WIDTH, rank), drawn(rank, WIDTH)) for _ in tasks]
    cotangent = drawn(*x.shape)
    added = sum(weights[:, t, None, None] * (x @ a @ b) for t, (a, b) in enumerate(factors))
    last_a, last_b = factors[-1]
    weighed = weights[:, -1, None, None] * x
    slope = np.einsum("nti,nto->io", weighed, cotangent)
    return {
        "rank": rank,
        "options": f"rank = {rank}\nresidual_rank = {rank}\nenergy = {energy}\nsharpness = {sharpness}\n"
        f"calibration = {calibration}",
        "labels": labels,
        "tasks": tasks,
        "images": asked,
        "shares": shares,
        "weights": weights,
        "shifts": calibration * confidence[:, class_tasks],
        "branch": {
            "inputs": x,
            "a": [a for a, _ in factors],
            "b": [b for _, b in factors],
            "cotangent": cotangent,
            "added": added,
            "loss": (added * cotangent).sum(),
            "grad_a": slope @ last_b.T,
            "grad_b": last_a.T @ slope,
        },
    }


vit = Vit()
out = {
    "small_vit": vit.written(),
    "sora": sora(),
    "beamlora": beamlora(),
    "prolora": prolora(),
    "prilora": prilora(vit),
    "lora_dropout": lora_dropout(),
    "chains": chains(),
    "e2lora": e2lora(vit),
    "sdlora_merge": sdlora_merge(),
    "duallora": duallora(vit),
}


def written(value, depth=0):
    """JSON with a list of numbers on one line, in as many digits as tell float32 numbers apart."""
    pad = " " * (depth + 1)
    if isinstance(value, dict):
        inside = [f"{json.dumps(key)}: {written(v, depth + 1)}" for key, v in value.items()]
        return "{\n" + ",\n".join(pad + line for line in inside) + "\n" + pad[1:] + "}"
    if isinstance(value, list):
        inside = [written(v, depth + 1) for v in value]
        if value and isinstance(value[0], (dict, list)):
            return "[\n" + ",\n".join(pad + line for line in inside) + "\n" + pad[1:] + "]"
        return "[" + ", ".join(inside) + "]"
    return f"{value + 0.0:.9g}" if isinstance(value, float) else json.dumps(value)


path = pathlib.Path("crates/sdlora-testkit/golden/slots.json")
path.write_text(written(plain(out)) + "\n")
print(path, path.stat().st_size)
