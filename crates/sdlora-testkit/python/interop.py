"""Round trips between sdlora and timm, transformers and peft on small models.

Usage: interop.py --sdlora BINARY --data-dir DATASETS --table TABLE.md [--golden FOLDER]

Every line of the table compares numbers computed by the other library with numbers computed by
sdlora; the program fails when one differs by more than its bound. A line without a bound shows what
becomes of the logits where the pixels of both sides are rounded otherwise.
"""

import argparse
import contextlib
import datetime
import io
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from peft import AutoPeftModel, PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.models.vision_transformer import VisionTransformer
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification

SHAPE = dict(img_size=28, patch_size=7, in_chans=1, embed_dim=32, depth=2, num_heads=4)
BOUND = 1e-4
LUMA = torch.tensor([0.299, 0.587, 0.114])
LIBRARIES = (
    "torch", "torchvision", "timm", "transformers", "peft", "pillow", "onnx", "onnxruntime", "tensorboard",
)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sdlora", required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--table", required=True)
    parser.add_argument("--golden")
    args = parser.parse_args()
    torch.manual_seed(7)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        rows = in_trips(args, work) + trips(args, work) + image_trips(args, work)
        rows += onnx_trips(args, work) + onnx_labels(args, work) + tensorboard_trips(args, work)
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = [f"`cargo xtask interop` on {datetime.date.today()} with {versions}.", ""]
    lines += ["| from | to | compared | largest difference | bound |", "|---|---|---|---|---|"]
    failed = False
    for source, target, what, difference, *bound in rows:
        bound = bound[0] if bound else BOUND
        cells = f"{difference:.1e} | {'–' if bound is None else f'{bound:.0e}'}"
        if what.startswith("pixels"):
            cells = f"{difference:.2f} levels | {bound:.2f} levels"
        if what.startswith("labels"):
            cells = f"{difference} of 1,000 | {'–' if bound is None else bound}"
        lines.append(f"| {source} | {target} | {what} | {cells} |")
        failed |= bound is not None and not difference <= bound
    text = "\n".join(lines) + "\n"
    print(text)
    pathlib.Path(args.table).write_text(text)
    if failed:
        sys.exit("a difference is above its bound")


def sdlora(args, *words):
    command = [args.sdlora, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout + done.stderr


def difference(a, b):
    if a.shape != b.shape:
        sys.exit(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    return (a - b).abs().max().item()


def backbone(token):
    pool = dict(class_token=True, global_pool="token") if token else dict(
        class_token=False, global_pool="avg", fc_norm=False
    )
    model = VisionTransformer(**SHAPE, **pool, num_classes=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def shape_of(token, width=32, heads=4):
    return json.dumps(dict(
        image_size=28, patch_size=7, n_channels=1, d_model=width, depth=2, n_heads=heads, d_mlp=4 * width,
        class_token=token, pooling="class-token" if token else "average", norm_eps=1e-6,
    ))


@torch.no_grad()
def trips(args, work):
    rows = []
    images = torch.randn(6, 1, 28, 28)
    prepared = work / "input.safetensors"
    save_file({"input": images}, prepared)
    for token in (True, False):
        kind = "class token" if token else "average"
        model = backbone(token)
        weights = work / f"{token}.safetensors"
        save_file(dict(model.state_dict()), weights, metadata={"sdlora.vit": shape_of(token)})
        out = work / f"features_{token}.safetensors"
        sdlora(args, "features", "--backbone", weights, "--input", prepared, "--out", out,
               "--layer", "0,1")
        found = load_file(out)
        blocks = model.forward_intermediates(
            images, indices=[0, 1], intermediates_only=True, output_fmt="NLC",
            return_prefix_tokens=token,
        )
        if token:
            blocks = [torch.cat([prefix, patches], 1) for patches, prefix in blocks]
        rows.append((f"timm ({kind})", "sdlora", "features", difference(model(images), found["features"])))
        for i, block in enumerate(blocks):
            rows.append((f"timm ({kind})", "sdlora", f"tokens after block {i}",
                         difference(block, found[f"block.{i}"])))
        rows += out_trips(args, work, token, kind, weights, images, prepared)
    return rows


NAMES = {
    "timm_avg": "timm (fc_norm)",
    "timm_reg4": "timm (LayerScale, 4 registers)",
    "timm_pre_norm": "timm (norm_pre)",
    "hf_vit": "transformers (ViTForImageClassification)",
    "hf_dinov2_reg": "transformers (Dinov2WithRegisters)",
    "dino_pth": "DINO training checkpoint (.pth)",
    "dinov2_pth": "DINOv2 release (.pth)",
    "timm_quickgelu": "timm (quickgelu, told by name)",
    "hf_dinov2_resized": "transformers (Dinov2, tanh GELU, another side)",
}

# Cases at another side: the file with input and features, its tensor, and what the command line is told.
RESIZED = {
    "hf_dinov2_resized": ("io_48.safetensors", "bicubic_features", ["--side", "48", "--positions", "bicubic"]),
}


def in_trips(args, work):
    """Checkpoints as others write them, made anew by make_vit_golden.py, read by sdlora."""
    script = pathlib.Path(__file__).with_name("make_vit_golden.py")
    subprocess.run([sys.executable, script, work / "vit"], check=True, stdout=subprocess.DEVNULL)
    rows = []
    for case, label in NAMES.items():
        folder = work / "vit" / case
        weights = next(folder.glob("*.pth"), folder)
        out = work / f"in_{case}.safetensors"
        io, key, options = RESIZED.get(case, ("io.safetensors", "features", []))
        sdlora(args, "features", "--backbone", weights, "--heads", "2", "--input", folder / io,
               "--out", out, "--quiet", *options)
        expected = load_file(folder / io)[key]
        rows.append((label, "sdlora", "features", difference(expected, load_file(out)["features"])))
    return rows


def out_trips(args, work, token, kind, weights, images, prepared):
    rows = []
    for method in ('sdlora', 'paper'):
        runs, name = work / "runs", f"{method}_{token}"
        run = runs / name
        variant = "paper" if method == "paper" else "reference"
        sdlora(args, "train", "--preset", "omniglot-10x20", "--data-dir", args.data_dir, "--quiet",
               "--runs", runs, "--name", name, "--set", "n_epochs=2", "--set", "stream.n_tasks=2",
               "--set", "stream.split={increment={init_cls=3,increment=3}}",
               "--set", f"method.variant={variant}", "--set", "method.rank=4",
               "--set", f"backbone.weights={weights}")
        out = work / f"own_{name}.safetensors"
        sdlora(args, "features", "--run", run, "--data-dir", args.data_dir, "--input", prepared,
               "--out", out)
        features = load_file(out)["features"]
        head = load_file(run / "model" / "head.safetensors")
        logits = features @ head["weight"].T + head["bias"]
        n = len(head["bias"])
        label = f"sdlora ({variant}, {kind})"

        def export(form, path):
            sdlora(args, "export", "--run", run, "--format", form, "--out", path,
                   "--data-dir", args.data_dir, "--quiet")
            return path

        folder = export("timm", work / f"timm_{name}")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        rows.append((label, "timm, folder", "logits", difference(model(images), logits)))
        file = export("timm", work / f"timm_{name}.safetensors")
        pool = dict(global_pool="token") if token else dict(
            class_token=False, global_pool="avg", fc_norm=False)
        plain = VisionTransformer(**SHAPE, **pool, num_classes=n).eval()
        plain.load_state_dict(load_file(file))
        rows.append((label, "timm, file", "logits", difference(plain(images), logits)))

        folder = export("safetensors", work / f"adapter_{name}")
        out = work / f"applied_{name}.safetensors"
        sdlora(args, "features", "--backbone", weights, "--adapter", folder, "--input", prepared,
               "--out", out)
        rows.append((label, "adapter folder", "features",
                     difference(load_file(out)["features"], features)))
        if not token:
            continue
        colours = images.expand(-1, 3, -1, -1)
        folder = export("hf", work / f"hf_{name}")
        model = ViTForImageClassification.from_pretrained(folder).eval()
        AutoImageProcessor.from_pretrained(folder)
        rows.append((label, "transformers", "logits", difference(model(colours).logits, logits)))
        folder = export("peft", work / f"peft_{name}")
        base = ViTForImageClassification.from_pretrained(folder / "base")
        model = PeftModel.from_pretrained(base, folder).eval()
        rows.append((label, "peft", "logits", difference(model(colours).logits, logits)))
        with elsewhere():
            for loader, source in ((AutoPeftModel, "peft, AutoPeftModel"),
                                   (AutoModelForImageClassification, "transformers, adapter folder")):
                auto = loader.from_pretrained(str(folder)).eval()
                rows.append((label, source, "logits", difference(auto(colours).logits, logits)))
            AutoImageProcessor.from_pretrained(str(folder))
        merged = model.merge_and_unload()
        rows.append((label, "peft, merged", "logits", difference(merged(colours).logits, logits)))
        if args.golden and variant == "paper":
            golden = pathlib.Path(args.golden)
            shutil.rmtree(golden, ignore_errors=True)
            golden.mkdir(parents=True)
            shutil.copytree(work / f"adapter_{name}", golden / "adapter")
            shutil.copy(weights, golden / "backbone.safetensors")
            save_file({"input": images, "logits": model(colours).logits.contiguous()},
                      golden / "expected.safetensors")
    return rows


@contextlib.contextmanager
def elsewhere():
    """A working directory that has nothing to do with the exports."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield


# Bounds on the pixels of pictures, in levels of 255. Both sides compute the same weighted sums and
# differ in what they round to whole levels, by at most 0.5 each time. A later sum carries an earlier
# rounding along, times the magnitudes of its weights: 1 of averages, below 1.3 of the cubic.
CUBIC = 1.3
TWICE = 0.5 * CUBIC + 0.5  # Rows, then columns.
EQUAL = 1e-3  # The same bytes; all of it is normalised in f32.
# torch rounds weights to at least 15 binary places: 15 of them move a sum of levels by 0.06.
WEIGHTS = 0.06 * (CUBIC + 1)
# Both are whole numbers. Inverting before or after the resize rounds halves to other sides, and
# Pillow and torch may take rows and columns in another order.
ROUNDED = int(2 * TWICE + WEIGHTS) + EQUAL
# The run rounds the gray of the colours before the resize, transformers resizes the colours.
COLOURS = 2 * TWICE + 0.5 * CUBIC**2 + WEIGHTS + EQUAL
# The run rounds its base image, of which 2 x 2 are averaged; Pillow rounds rows and columns.
AVERAGED = 0.5 + 2 * 0.5 + EQUAL

# ONNX Runtime has Pillow's arithmetic with the factor of shrinking in f32: a sum moves by less than a level, and a
# second one carries that along.
ONNX_LEVELS = 1 + CUBIC + EQUAL


def window():
    """A backbone whose tokens after block 0 are the pixels of their patches."""
    model = VisionTransformer(**SHAPE | dict(embed_dim=49, num_heads=7), num_classes=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        first = model.blocks[0]
        for silent in (model.patch_embed.proj.bias, model.pos_embed, *first.attn.proj.parameters(),
                       *first.mlp.fc2.parameters()):
            silent.zero_()
        model.patch_embed.proj.weight.copy_(torch.eye(49).view(49, 1, 7, 7))
    return model


def draw(folder, sizes, colours, generator):
    """Noise on a coarse pattern; pictures of 35 x 35 have colours whose gray is half a level.

    Levels stay between 53 and 202: the cubic overshoots by a factor of at most 1.3 x 1.3, so that no
    side cuts at black or white, which each does at another place.
    """
    folder.mkdir()
    pictures = []
    for i, (height, width) in enumerate(sizes):
        coarse = torch.rand(1, 3, 9, 9, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
        noise = torch.rand(3, height, width, generator=generator)
        array = (53 + 75 * (smooth + noise)).byte().permute(1, 2, 0).contiguous()
        if (height, width) == (35, 35):
            levels = torch.arange(53, 203)
            every = torch.cartesian_prod(levels, levels, levels)
            halves = every[every @ torch.tensor([299, 587, 114]) % 1000 == 500].byte()
            array = halves[torch.randint(len(halves), (35, 35), generator=generator)]
        picture = Image.fromarray(array.numpy())
        pictures.append(picture if colours else picture.convert("L").convert("RGB"))
        pictures[-1].save(folder / f"{i}.png")
    return pictures


class PictureRun:
    """A run with a transform, and what it makes of a folder of pictures."""

    def __init__(self, args, work, kind, options):
        name = re.sub("[^a-z0-9]+", "-", kind)
        self.args, self.work, self.kind, self.name = args, work, kind, name
        self.run = work / "runs" / name
        weights = work / "window.safetensors"
        sdlora(args, "train", "--preset", "omniglot-10x20", "--data-dir", args.data_dir, "--quiet",
               "--runs", work / "runs", "--name", name, "--set", "n_epochs=1", "--set", "stream.n_tasks=1",
               "--set", "stream.split={increment={init_cls=3,increment=3}}",
               "--set", f"backbone.weights={weights}", *options)
        plan = tomllib.loads((self.run / "plan.toml").read_text())
        # Levels that one unit of a normalised pixel is worth.
        self.levels = 255 * plan["transform"]["normalise"]["std"][0]

    def prepare(self, source):
        """Pixels [n, 1, 28, 28] and logits [n, classes] of a folder or a file of prepared pixels."""
        out = self.work / f"{self.name}_out.safetensors"
        sdlora(self.args, "features", "--run", self.run, "--data-dir", self.args.data_dir,
               "--input", source, "--out", out, "--layer", "0")
        found = load_file(out)
        head = load_file(self.run / "model" / "head.safetensors")
        patches = found["block.0"][:, 1:].view(-1, 4, 4, 7, 7)
        pixels = patches.transpose(2, 3).reshape(-1, 1, 28, 28)
        return pixels, found["features"] @ head["weight"].T + head["bias"]

    def export(self, form, says=None):
        """The exported folder; fails when `export` does not announce a loss that the table shows."""
        out = self.work / f"{form}_{self.name}"
        said = sdlora(self.args, "export", "--run", self.run, "--format", form, "--out", out,
                      "--data-dir", self.args.data_dir)
        if says not in said if says else "note:" in said:
            sys.exit(f"export to {form} of `{self.name}` should say {says!r} and says:\n{said}")
        return out

    def rows(self, target, folder, theirs, logits, bound):
        """Pixels against pixels, the logits of the same pixels, and those of the pictures."""
        source = f"sdlora ({self.kind})"
        pixels, from_pictures = self.prepare(folder)
        gray = (theirs * LUMA.view(1, 3, 1, 1)).sum(1, keepdim=True) if theirs.shape[1] == 3 else theirs
        same = self.work / "same.safetensors"
        save_file({"input": gray.contiguous()}, same)
        _, from_same = self.prepare(same)
        return [
            (source, target, "pixels", self.levels * difference(pixels, gray), bound),
            (source, target, "logits of these pixels", difference(from_same, logits)),
            (source, target, "logits of the pictures", difference(from_pictures, logits),
             BOUND if bound == EQUAL else None),
        ]


@torch.no_grad()
def image_trips(args, work):
    """From a picture to logits: the preparation of a run in timm and transformers."""
    save_file(dict(window().state_dict()), work / "window.safetensors",
              metadata={"sdlora.vit": shape_of(True, 49, 7)})
    generator = torch.Generator().manual_seed(3)
    # Resized to 36 no side has 3, 7, 11 or so pixels to spare, where transformers cuts elsewhere.
    sizes = [(105, 105), (64, 90), (130, 71)]
    whole = [(56, 56), (84, 140), (112, 168)]
    pictures = {
        name: draw(work / name, sizes, colours, generator)
        for name, sizes, colours in (
            ("colours", [*sizes, (35, 35)], True), ("gray", sizes, False),
            ("square", sizes[:1], False), ("whole", whole, True),
        )
    }
    rows = []

    def crops(side):
        steps = "{train=[{random_resized_crop={size=28}}]," \
                f"test=[{{resize={{size={side},interpolation='bicubic'}}}},{{center_crop=28}}]}}"
        return ["--set", f"transform.pipeline={steps}"]

    def timm_rows(run, kind, bound, says=None):
        model = timm.create_model(f"local-dir:{run.export('timm', says)}", pretrained=True).eval()
        config = timm.data.resolve_model_data_config(model)
        prepare = timm.data.create_transform(**config, is_training=False)
        batch = torch.stack([prepare(picture.convert("L")) for picture in pictures[kind]])
        return run.rows("timm", work / kind, batch, model(batch), bound)

    odd = PictureRun(args, work, "resize 35, crop 28", ["--set", "transform.polarity=as_is", *crops(35)])
    rows += timm_rows(odd, "colours", EQUAL)
    # transformers cuts at 3 of the 7 spare pixels, not at 4, and `export` says so.
    folder = odd.export("hf", "the centre of 28 of 35 pixels lies one pixel further")
    batch = AutoImageProcessor.from_pretrained(folder, backend="pil")(
        pictures["square"], return_tensors="pt")["pixel_values"][:, :1]
    pixels, _ = odd.prepare(work / "square")
    rows.append((f"sdlora ({odd.kind})", "transformers, Pillow, gray", "pixels, moved by one",
                 odd.levels * difference(pixels[..., :-1, :-1], batch[..., 1:, 1:]), EQUAL))

    even = PictureRun(args, work, "resize 36, crop 28, inverted", crops(36))
    rows += timm_rows(even, "colours", ROUNDED)
    folder = even.export("hf", "where the longer side becomes 3, 7, 11 or so")
    model = ViTForImageClassification.from_pretrained(folder).eval()
    for backend, name in (("pil", "Pillow"), ("torchvision", "torchvision")):
        processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
        for kind, bound in (("gray", ROUNDED), ("colours", COLOURS)):
            batch = processor(pictures[kind], return_tensors="pt")["pixel_values"]
            rows += even.rows(f"transformers, {name}, {kind}", work / kind, batch, model(batch).logits, bound)

    for run in (odd, even):
        rows.append(onnx_pixels(run, work / "colours", pictures["colours"]))

    # No processor averages areas, which `export` says, and timm's averages whole pixels.
    drawn = PictureRun(args, work, "drawing transform", [])
    drawn.export("hf", "another filter")
    rows += timm_rows(drawn, "whole", AVERAGED, "over whole pixels")
    rows.append(onnx_pixels(drawn, work / "colours", pictures["colours"]))
    return rows


# Shapes that ONNX graphs are compared on: what timm calls it, what the shape of the file says, and the
# settings of the run, every head once.
GRAPHS = {
    "class token, linear": ({}, {}, ["--set", "head=linear"]),
    "average, ncm": (
        dict(class_token=False, global_pool="avg", fc_norm=False),
        dict(class_token=False, pooling="average"),
        ["--set", "head=ncm"],
    ),
    "average behind a norm, ridge": (
        dict(global_pool="avg", fc_norm=True),
        dict(pooling="average", fc_norm=True),
        ["--set", "head=ridge"],
    ),
    "LayerScale, cosine": (dict(init_values=0.5), dict(layer_scale=True), ["--set", "head=cosine"]),
    "4 registers, gaussian": (
        dict(reg_tokens=4, no_embed_class=True),
        dict(n_registers=4, pos_embed="patches"),
        ["--set", "head=gaussian"],
    ),
    "norm before the blocks, ridge of random features": (
        dict(pre_norm=True),
        dict(pre_norm=True, patch_bias=False),
        ["--set", "head={name='ridge',projection=64}"],
    ),
    "quick GELU": (dict(act_layer="quick_gelu"), dict(activation="quick-gelu"), ["--set", "head=linear"]),
    "tanh GELU": (dict(act_layer="gelu_tanh"), dict(activation="gelu-tanh"), ["--set", "head=linear"]),
}

GOLDEN_GRAPHS = (
    "class token, linear", "average behind a norm, ridge", "4 registers, gaussian",
    "norm before the blocks, ridge of random features",
)
# Small enough to keep.
SMALL = dict(img_size=28, patch_size=14, in_chans=1, embed_dim=16, depth=2, num_heads=2)


def session(path, extra=()):
    """ONNX Runtime on the CPU, after the checker; `extra` names values inside that are returned too."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    if (model.ir_version, [entry.version for entry in model.opset_import]) != (8, [18]):
        sys.exit(f"{path} has other versions")
    for name in extra:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def stored(path):
    """Tensors of a file."""
    model = onnx.load(path)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def onnx_file(args, run, out, *options):
    said = sdlora(args, "export", "--run", run, "--format", "onnx", "--out", out, "--data-dir", args.data_dir,
                  "--force", "--verify", sys.executable, *options)
    if "gives the logits of the run" not in said:
        sys.exit(f"export did not verify {out}:\n{said}")
    return out


@torch.no_grad()
def onnx_trips(args, work):
    """Logits of graphs from prepared images, on every shape and with every head."""
    rows = []
    images = torch.randn(6, 1, 28, 28)
    prepared = work / "input_onnx.safetensors"
    save_file({"input": images}, prepared)
    for kind, (options, shape, settings) in GRAPHS.items():
        name = "onnx-" + re.sub("[^a-z0-9]+", "-", kind.lower())
        model = VisionTransformer(**SMALL, **dict(num_classes=0) | options).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        weights = work / f"{name}.safetensors"
        save_file(dict(model.state_dict()), weights,
                  metadata={"sdlora.vit": json.dumps(json.loads(shape_of(True, 16, 2)) | dict(patch_size=14) | shape)})
        run = work / "runs" / name
        sdlora(args, "train", "--preset", "omniglot-10x20", "--data-dir", args.data_dir, "--quiet",
               "--runs", work / "runs", "--name", name, "--set", "n_epochs=2", "--set", "stream.n_tasks=2",
               "--set", "stream.split={increment={init_cls=3,increment=3}}", "--set", "method.rank=4",
               "--set", f"backbone.weights={weights}", *settings)
        out = work / f"{name}_features.safetensors"
        sdlora(args, "features", "--run", run, "--data-dir", args.data_dir, "--input", prepared, "--out", out)
        features = load_file(out)["features"]
        head = load_file(run / "model" / "head.safetensors")
        if "projection" in head:
            features = torch.relu(features @ head["projection"].T)
        logits = features @ head["weight"].T + head["bias"]
        for bits, bound in (("f32", BOUND), ("f16", None), ("int8", None)):
            file = onnx_file(args, run, work / f"{name}.onnx", "--preprocess", "normalise", "--weights", bits)
            tensors = stored(file)
            levels = images.numpy() * tensors["std"] + tensors["mean"]
            # One by one and all at once: the batch has any size.
            runtime = session(file)
            found = runtime.run(None, {"pixels": levels})[0]
            alone = runtime.run(None, {"pixels": levels[:1]})[0]
            if np.abs(alone - found[:1]).max() > BOUND:
                sys.exit(f"{file}: an image alone has other logits")
            if args.golden and bits == "f32" and kind in GOLDEN_GRAPHS:
                keep_graph(pathlib.Path(args.golden).parent / "onnx" / name.removeprefix("onnx-"), work, run, file, images, found)
            rows.append((f"sdlora ({kind})", f"ONNX Runtime, {bits}", "logits",
                         difference(torch.from_numpy(found), logits), bound))
    return rows


def keep_graph(golden, work, run, file, images, logits):
    """A graph with the run that it was made of, and what ONNX Runtime computed, for the tests of the workspace."""
    shutil.rmtree(golden, ignore_errors=True)
    (golden / "model").mkdir(parents=True)
    for name in ("vit.safetensors", "head.safetensors", "classes.json"):
        shutil.copy(run / "model" / name, golden / "model")
    (golden / "plan.toml").write_text((run / "plan.toml").read_text().replace(f"{work}/", ""))
    shutil.copy(file, golden / "model.onnx")
    save_file({"input": images, "logits": torch.from_numpy(logits)}, golden / "expected.safetensors")


def onnx_pixels(run, folder, pictures):
    """What a graph makes of pictures of several sizes, against what the run makes of them."""
    file = onnx_file(run.args, run.run, run.work / f"{run.name}.onnx", "--preprocess", "full")
    nodes = onnx.load(file).graph.node
    # The backbone starts with its patches; a graph of gray starts with a kernel of one pixel.
    patches = [node for node in nodes if node.op_type == "Conv"][-1]
    runtime = session(file, [patches.input[0]])
    found = [runtime.run(None, {"pictures": np.asarray(picture)[None]})[1] for picture in pictures]
    pixels, _ = run.prepare(folder)
    return (f"sdlora ({run.kind})", "ONNX Runtime, pictures", "pixels",
            run.levels * difference(torch.from_numpy(np.concatenate(found)), pixels), ONNX_LEVELS)


def tensorboard_trips(args, work):
    """Event files of a run that is stopped in its second task and continued, as TensorBoard itself reads them."""
    runs, board, name = work / "board-runs", work / "board", "stopped"
    words = ["train", "--preset", "omniglot-10x20", "--data-dir", args.data_dir, "--quiet", "--runs", runs,
             "--name", name, "--tensorboard", board, "--set", "n_epochs=60", "--set", "stream.n_tasks=3",
             "--set", "stream.split={increment={init_cls=3,increment=3}}"]
    events = runs / name / "log.jsonl"

    def told():
        lines = events.read_text().splitlines(keepends=True) if events.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    running = subprocess.Popen([args.sdlora, *map(str, words)])
    while running.poll() is None:
        if any(line["event"] == "task_started" and line["task"] == 1 for line in told()):
            running.send_signal(signal.SIGINT)
            break
        time.sleep(0.005)
    if running.wait() != 130:
        sys.exit("the run was not stopped in its second task")
    sdlora(args, *words, "--resume")

    accumulator = EventAccumulator(str(board / name), size_guidance=dict(scalars=0, images=0)).Reload()
    expected = [(line["loss"], line["lr"]) for line in told() if line["event"] == "step"]
    matrix = json.loads((runs / name / "metrics.json").read_text())["log"]["matrix"]["acc"]
    rows = []

    def compare(what, tag, values):
        scalars = accumulator.Scalars(tag)
        if [scalar.step for scalar in scalars] != list(range(len(values))):
            sys.exit(f"{tag}: a step is missing or stands twice")
        largest = max(abs(scalar.value - value) for scalar, value in zip(scalars, values))
        rows.append(("sdlora, stopped and continued", "tensorboard", what, largest, 1e-6))

    compare("loss of every step", "train/loss", [loss for loss, _ in expected])
    compare("rate of every step", "train/learning_rate", [rate for _, rate in expected])
    compare("accuracy after every task", "task/accuracy_over_tasks", [sum(row) / len(row) for row in matrix])
    pictures = accumulator.Images("task/accuracy_matrix")
    sizes = [(Image.open(io.BytesIO(p.encoded_image_string)).size, (p.width, p.height)) for p in pictures]
    if [p.step for p in pictures] != [0, 1, 2] or any(found != said for found, said in sizes):
        sys.exit(f"pictures of the matrix: {sizes}")
    return rows


def onnx_labels(args, work):
    """Labels of 1,000 test images of the main job, from the files."""
    run = work / "runs" / "main"
    sdlora(args, "train", "--preset", "omniglot-10x20", "--data-dir", args.data_dir, "--quiet",
           "--runs", work / "runs", "--name", "main", "--set", "n_epochs=2")
    classes = json.loads((run / "model" / "classes.json").read_text())
    files = []
    with zipfile.ZipFile(pathlib.Path(args.data_dir) / "omniglot" / "images_evaluation.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        for name in classes:
            own = [file for file in names if f"/{name}/" in f"/{file}"]
            files += own[-5:]
        archive.extractall(work / "omniglot", files)
    if len(files) != 1000:
        sys.exit(f"{len(files)} images instead of 1,000")
    paths = [work / "omniglot" / file for file in files]
    lines = sdlora(args, "predict", "--run", run, "--data-dir", args.data_dir, *paths).splitlines()
    expected = [line.split("\t")[1] for line in lines]
    pictures = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    rows = []
    for bits, bound in (("f32", 0), ("f16", None), ("int8", None)):
        runtime = session(onnx_file(args, run, work / f"main_{bits}.onnx", "--weights", bits))
        batches = np.array_split(pictures, 10)
        labels = np.concatenate([runtime.run(None, {"pictures": b})[0].argmax(1) for b in batches])
        differ = sum(classes[label] != name for label, name in zip(labels, expected))
        rows.append(("sdlora (main job, 2 epochs)", f"ONNX Runtime, {bits}, pictures", "labels that differ",
                     differ, bound))
    return rows


if __name__ == "__main__":
    main()
