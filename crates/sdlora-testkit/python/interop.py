"""Round trips between sdlora and timm, transformers and peft on small models.

Usage: interop.py --sdlora BINARY --data-dir DATASETS --table TABLE.md [--golden FOLDER]

Every line of the table compares numbers computed by the other library with numbers computed by
sdlora; the program fails when one differs by more than its bound.
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version

import timm
import torch
from peft import AutoPeftModel, PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification

SHAPE = dict(img_size=28, patch_size=7, in_chans=1, embed_dim=32, depth=2, num_heads=4)
BOUND = 1e-4


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
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "timm", "transformers", "peft")
    )
    lines = [f"Versions: {versions}.", ""]
    lines += ["| from | to | compared | largest difference | bound |", "|---|---|---|---|---|"]
    failed = False
    for source, target, what, difference, *bound in rows:
        bound = bound[0] if bound else BOUND
        lines.append(f"| {source} | {target} | {what} | {difference:.1e} | {bound:.0e} |")
        failed |= not difference <= bound
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


def shape_of(token):
    return json.dumps(dict(
        image_size=28, patch_size=7, n_channels=1, d_model=32, depth=2, n_heads=4, d_mlp=128,
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


@torch.no_grad()
def image_trips(args, work):
    """From a picture to logits: the preparation of a run in timm and transformers."""
    folder = work / "pictures"
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    pictures = []
    for i, (height, width) in enumerate([(105, 105), (64, 90), (130, 71)]):
        small = torch.rand(1, 3, 9, 9, generator=generator)
        large = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")[0]
        array = (255 * large).byte().permute(1, 2, 0).contiguous().numpy()
        pictures.append(Image.fromarray(array))
        pictures[-1].save(folder / f"{i}.png")
    weights = work / "True.safetensors"
    steps = "{train=[{random_resized_crop={size=28}}]," \
            "test=[{resize={size=35,interpolation='bicubic'}},{center_crop=28}]}"
    rows = []
    for kind, options in (("resize 35, crop 28", ["--set", f"transform.pipeline={steps}"]),
                          ("drawing transform", [])):
        name = "prepared" if options else "drawn"
        run = work / "runs" / name
        sdlora(args, "train", "--preset", "omniglot-10x20", "--data-dir", args.data_dir, "--quiet",
               "--runs", work / "runs", "--name", name, "--set", "n_epochs=1", "--set", "stream.n_tasks=1",
               "--set", "stream.split={increment={init_cls=3,increment=3}}",
               "--set", f"backbone.weights={weights}", *options)
        out = work / f"{name}.safetensors"
        sdlora(args, "features", "--run", run, "--data-dir", args.data_dir, "--input", folder, "--out", out)
        head = load_file(run / "model" / "head.safetensors")
        logits = load_file(out)["features"] @ head["weight"].T + head["bias"]
        for form in ("timm", "hf"):
            sdlora(args, "export", "--run", run, "--format", form, "--out", work / f"{form}_{name}",
                   "--data-dir", args.data_dir, "--quiet")
        model = timm.create_model(f"local-dir:{work / f'timm_{name}'}", pretrained=True).eval()
        config = timm.data.resolve_model_data_config(model)
        prepare = timm.data.create_transform(**config, is_training=False)
        batch = torch.stack([prepare(picture.convert("L")) for picture in pictures])
        rows.append((f"sdlora ({kind})", "timm, from pictures", "logits", difference(model(batch), logits)))
        if not options:
            continue  # No processor averages areas, which the export says.
        hf = work / f"hf_{name}"
        model = ViTForImageClassification.from_pretrained(hf).eval()
        processor = AutoImageProcessor.from_pretrained(hf, backend="pil")
        batch = processor(pictures, return_tensors="pt")["pixel_values"]
        # Gray of resized colours and resized gray differ by the rounding of bytes.
        rows.append((f"sdlora ({kind})", "transformers, from pictures", "logits",
                     difference(model(batch).logits, logits), 1e-2))
    return rows


if __name__ == "__main__":
    main()
