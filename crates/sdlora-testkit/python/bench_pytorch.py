# The counterpart of crates/sdlora-train/benches/step.rs in PyTorch, for cargo xtask bench --against pytorch.
#
# python bench_pytorch.py MODEL MODE PAST THREADS BATCH PRECISION DEVICE VARIANT
#   MODEL      small, vit-ti, vit-b: the shapes of step.rs
#   MODE       train or infer
#   PRECISION  f32, or with autocast and frozen weights in the type: bf16, f16
#   DEVICE     cpu or cuda
#   VARIANT    optimised: fused attention, past factors side by side, the effective weight formed once per step,
#              merged once for inference
#              compiled: the same through torch.compile
#              published: every past direction in activation space, divided by its norms on every forward, as the code
#              published with the paper computes it
# MODEL product times a product of two matrices [BATCH, BATCH] instead: the rate that the device reaches at most.
# Answers every line N of the input, a number of steps, with WALL PROCESSOR PEAK: seconds of one step by the clock and by
# the processor (all threads together), and the bytes the process grew since the model stood, or those its device held
# at most.
import sys
import time

import torch
import torch.nn.functional as F

N_CLASSES, RANK, MAGNITUDE = 10, 10, 0.8
NAME, MODE, N_PAST, THREADS, BATCH, PRECISION, DEVICE, VARIANT = sys.argv[1:]
#         side patch width depth heads
SHAPES = {
    "small": (32, 4, 192, 6, 3),
    "vit-ti": (224, 16, 192, 12, 3),
    "vit-b": (224, 16, 768, 12, 12),
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def drawn(*shape, scale=0.02):
    return torch.randn(*shape) * scale


def frozen(*shape):
    return drawn(*shape).to(DTYPES[PRECISION])


class Site:
    """Query or value of one block: past factors [n, rank, d] and [n, d, rank], and the ones in training."""

    def __init__(self, d, n_past, train):
        self.past_a = torch.empty(n_past, RANK, d).uniform_(-(d ** -0.5), d ** -0.5)
        self.past_b = drawn(n_past, d, RANK)
        self.a = torch.empty(RANK, d).uniform_(-(d ** -0.5), d ** -0.5).requires_grad_(train)
        self.b = drawn(d, RANK).requires_grad_(train)
        norms = self.past_a.flatten(1).norm(dim=1) * self.past_b.flatten(1).norm(dim=1)
        self.inverse_norms = 1.0 / norms
        # Side by side, so that all past directions are one product.
        self.all_a = self.past_a.reshape(n_past * RANK, d)
        self.all_b = self.past_b.permute(1, 0, 2).reshape(d, n_past * RANK).contiguous()

    def delta(self, past, current):
        update = (self.b * current) @ self.a
        if len(self.past_a):
            scale = (past * self.inverse_norms).repeat_interleave(RANK)
            update = torch.addmm(update, self.all_b * scale, self.all_a)
        return update

    def published(self, x, past, current):
        out = F.linear(F.linear(x, self.a), self.b) * current
        for k in range(len(self.past_a)):
            a, b = self.past_a[k], self.past_b[k]
            out = out + past[k] * F.linear(F.linear(x, a), b) / (torch.norm(a) * torch.norm(b))
        return out


class Block:
    def __init__(self, d, n_heads, n_past, train):
        self.n_heads = n_heads
        self.ones, self.zeros = torch.ones(d), torch.zeros(d)
        self.qkv, self.qkv_bias = frozen(3 * d, d), frozen(3 * d)
        self.proj, self.proj_bias = frozen(d, d), frozen(d)
        self.fc1, self.fc1_bias = frozen(4 * d, d), frozen(4 * d)
        self.fc2, self.fc2_bias = frozen(d, 4 * d), frozen(d)
        self.q, self.v = Site(d, n_past, train), Site(d, n_past, train)
        self.merged = None

    def effective(self, past, current):
        q, k, v = self.qkv.chunk(3)
        return torch.cat((q + self.q.delta(past, current), k, v + self.v.delta(past, current)))

    def project(self, x, past, current, variant):
        if self.merged is not None:
            return F.linear(x, self.merged, self.qkv_bias)
        if variant != "published":
            return F.linear(x, self.effective(past, current), self.qkv_bias)
        d = x.shape[-1]
        qkv = F.linear(x, self.qkv, self.qkv_bias)
        qkv[:, :, :d] += self.q.published(x, past, current)
        qkv[:, :, -d:] += self.v.published(x, past, current)
        return qkv

    def forward(self, x, past, current, variant):
        batch, n_tokens, d = x.shape
        normed = F.layer_norm(x, (d,), self.ones, self.zeros, 1e-6)
        qkv = self.project(normed, past, current, variant)
        q, k, v = qkv.view(batch, n_tokens, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, n_tokens, d)
        x = x + F.linear(attended, self.proj, self.proj_bias)
        normed = F.layer_norm(x, (d,), self.ones, self.zeros, 1e-6)
        return x + F.linear(F.gelu(F.linear(normed, self.fc1, self.fc1_bias)), self.fc2, self.fc2_bias)


class Model:
    def __init__(self, name, n_past, train, variant):
        side, patch, d, depth, n_heads = SHAPES[name]
        self.batch = int(BATCH)
        self.patch, self.d, self.variant = patch, d, variant
        self.embed, self.embed_bias = frozen(d, 3, patch, patch), frozen(d)
        self.cls, self.positions = frozen(1, 1, d), frozen(1, (side // patch) ** 2 + 1, d)
        self.blocks = [Block(d, n_heads, n_past, train) for _ in range(depth)]
        self.past = torch.full((n_past,), MAGNITUDE, requires_grad=train and n_past > 0)
        self.current = torch.full((1,), MAGNITUDE, requires_grad=train)
        self.ones, self.zeros = torch.ones(d), torch.zeros(d)
        self.head = drawn(N_CLASSES, d).requires_grad_(train)
        self.head_bias = torch.zeros(N_CLASSES, requires_grad=train)
        self.images = torch.rand(self.batch, 3, side, side) * 2 - 1
        self.labels = torch.arange(self.batch) % N_CLASSES

    def parameters(self):
        sites = [site for block in self.blocks for site in (block.q, block.v)]
        factors = [p for site in sites for p in (site.a, site.b)]
        past = [self.past] if self.past.requires_grad else []
        return [*factors, *past, self.current, self.head, self.head_bias]

    def merge(self):
        for block in self.blocks:
            block.merged = block.effective(self.past, self.current)

    def logits(self):
        tokens = F.conv2d(self.images, self.embed, self.embed_bias, stride=self.patch).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(self.batch, -1, -1), tokens), 1) + self.positions
        for block in self.blocks:
            x = block.forward(x, self.past, self.current, self.variant)
        # Only the class token is read, and the norm of a token does not depend on the others.
        feature = F.layer_norm(x[:, 0], (self.d,), self.ones, self.zeros, 1e-6)
        return F.linear(feature, self.head, self.head_bias)


def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main():
    torch.set_num_threads(int(THREADS))
    torch.manual_seed(0)
    torch.set_default_device(DEVICE)
    on_cuda = DEVICE.startswith("cuda")
    if NAME == "product":
        n = int(BATCH)
        left, right = (drawn(n, n, scale=n ** -0.5).to(DTYPES[PRECISION]) for _ in range(2))

        def step():
            nonlocal left
            left = left @ right

        return serve(step, on_cuda)
    model = Model(NAME, int(N_PAST), MODE == "train", VARIANT)
    half = torch.autocast(DEVICE.split(":")[0], DTYPES[PRECISION], enabled=PRECISION != "f32")
    if MODE == "train":
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

        def loss():
            with half:
                return F.cross_entropy(model.logits().float(), model.labels)

        if VARIANT == "compiled":
            loss = torch.compile(loss)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()
    else:
        with torch.no_grad(), half:
            if VARIANT != "published":
                model.merge()
        logits = torch.compile(model.logits) if VARIANT == "compiled" else model.logits

        # torch.compile does without inference_mode.
        guard = torch.no_grad if VARIANT == "compiled" else torch.inference_mode

        @guard()
        def step():
            with half:
                logits().tolist()

    serve(step, on_cuda)


def serve(step, on_cuda):
    if not on_cuda:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    before = status("VmRSS")
    print("ready", flush=True)
    for line in sys.stdin:
        n = int(line)
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(n):
            step()
        if on_cuda:
            torch.cuda.synchronize()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        peak = torch.cuda.max_memory_reserved() if on_cuda else status("VmHWM") - before
        print(wall / n, processor / n, peak, flush=True)


main()
