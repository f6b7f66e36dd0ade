# Makes golden/transform: what torchvision's transforms make of synthetic PIL images.
#
# Versions the files were made with: torch 2.15.0, torchvision 0.29.2, pillow 13.0.0, numpy 2.4.6.
# Run from anywhere: python make_transform_golden.py
# The images are gradients, shapes and noise drawn here; none comes from a data set.
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

OUT = Path(__file__).resolve().parent.parent / "golden" / "transform"
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
rng = np.random.default_rng(1993)
cases = []


def synthetic(width, height, mode="RGB", noise=12.0):
    """A gradient with shapes and noise."""
    y, x = np.mgrid[0:height, 0:width]
    n = 3 if mode == "RGB" else 1
    planes = []
    for _ in range(n):
        a, b, c = rng.uniform(-1, 1, 3)
        plane = 128 + 100 * (a * x / max(width, 2) + b * y / max(height, 2)) + 25 * c
        planes.append(plane)
    image = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(image if n == 3 else image[..., 0])
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x0, x1 = sorted(rng.integers(0, width, 2).tolist())
        y0, y1 = sorted(rng.integers(0, height, 2).tolist())
        fill = tuple(rng.integers(0, 256, n).tolist()) if n == 3 else int(rng.integers(0, 256))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)([x0, y0, x1, y1], fill=fill)
    levels = np.asarray(image).astype(np.float64)
    levels = levels + rng.normal(0, noise, levels.shape)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def save(image, name):
    image.save(OUT / name, optimize=True)
    return name


def case(op, source, result, **settings):
    name = save(result, f"{op}_{sum(c['op'] == op for c in cases)}.png")
    cases.append({"op": op, "input": source, "output": name, **settings})


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in [*OUT.glob("*.png"), *OUT.glob("*.jpg")]:
        old.unlink()
    shapes = {
        "wide": (61, 37, "RGB"),
        "tall": (30, 53, "RGB"),
        "square": (32, 32, "RGB"),
        "gray": (39, 48, "L"),
        "column": (1, 37, "RGB"),
        "row": (45, 1, "RGB"),
        "large": (113, 86, "RGB"),
    }
    images = {}
    for name, (width, height, mode) in shapes.items():
        image = synthetic(width, height, mode)
        images[save(image, f"in_{name}.png")] = image

    for source, image in images.items():
        for mode, filter in MODES.items():
            for _ in range(2):
                width, height = rng.integers(1, 45, 2).tolist()
                result = F.resize(image, [height, width], filter)
                case("resize", source, result, size=[height, width], interpolation=mode)
        # A strip of 1 pixel would grow to a thousand times its length.
        if min(image.size) > 1:
            side = int(rng.integers(16, 45))
            result = F.resize(image, side, MODES["bicubic"])
            case("resize", source, result, size=side, interpolation="bicubic")
    for source in ["in_wide.png", "in_tall.png", "in_gray.png", "in_large.png"]:
        image = images[source]
        for mode, filter in MODES.items():
            width = int(rng.integers(1, image.width + 1))
            height = int(rng.integers(1, image.height + 1))
            left = int(rng.integers(0, image.width - width + 1))
            top = int(rng.integers(0, image.height - height + 1))
            result = F.resized_crop(image, top, left, height, width, [24, 24], filter)
            window = [left, top, width, height]
            case("resized_crop", source, result, window=window, size=24, interpolation=mode)
    for source, side in [("in_wide.png", 24), ("in_wide.png", 37), ("in_tall.png", 31),
                         ("in_wide.png", 46), ("in_column.png", 24), ("in_gray.png", 50)]:
        case("center_crop", source, F.center_crop(images[source], [side, side]), size=side)
    for source in ["in_wide.png", "in_gray.png", "in_column.png"]:
        case("flip", source, F.hflip(images[source]))
    # The published evaluation transform at an eighth of its size, to the numbers a model reads.
    for source in ["in_wide.png", "in_large.png"]:
        image = F.center_crop(F.resize(images[source], 32, MODES["bicubic"]), [28, 28])
        tensor = F.normalize(F.to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        corner = tensor[:, 10:12, 10:12].reshape(-1).tolist()
        case("evaluation", source, image, resize=32, size=28, corner=corner)

    color = ["in_square.png"]
    for source in color:
        image = images[source]
        for factor in [0.0, 0.37, 1.0, 1.73]:
            case("brightness", source, F.adjust_brightness(image, factor), value=factor)
            case("contrast", source, F.adjust_contrast(image, factor), value=factor)
            case("saturation", source, F.adjust_saturation(image, factor), value=factor)
            case("sharpness", source, F.adjust_sharpness(image, factor), value=factor)
        for factor in [-0.5, -0.13, 0.08, 0.31]:
            case("hue", source, F.adjust_hue(image, factor), value=factor)
        for bits in [8, 6, 4]:
            case("posterize", source, F.posterize(image, bits), value=float(bits))
        for threshold in [255.0, 178.5, 0.0]:
            case("solarize", source, F.solarize(image, threshold), value=threshold)
        case("autocontrast", source, F.autocontrast(image), value=0.0)
        case("equalize", source, F.equalize(image), value=0.0)
    for source in ["in_wide.png", "in_tall.png", "in_gray.png"]:
        image = images[source]
        plain = {"angle": 0.0, "scale": 1.0, "translate": [0, 0], "shear": [0.0, 0.0]}
        for value in [-0.27, 0.09]:
            degrees = math.degrees(math.atan(value))
            shear = F.affine(image, **{**plain, "shear": [degrees, 0.0]}, center=[0, 0])
            case("shear_x", source, shear, value=value)
            shear = F.affine(image, **{**plain, "shear": [0.0, degrees]}, center=[0, 0])
            case("shear_y", source, shear, value=value)
        for value in [-7.7, 9.3]:
            moved = F.affine(image, **{**plain, "translate": [int(value), 0]})
            case("translate_x", source, moved, value=value)
            moved = F.affine(image, **{**plain, "translate": [0, int(value)]})
            case("translate_y", source, moved, value=value)
        for value in [-27.0, 9.0, 30.0]:
            case("rotate", source, F.rotate(image, value), value=value)
        if image.mode == "L":
            for op, result in [
                ("brightness", F.adjust_brightness(image, 1.4)),
                ("contrast", F.adjust_contrast(image, 1.4)),
                ("saturation", F.adjust_saturation(image, 1.4)),
                ("sharpness", F.adjust_sharpness(image, 1.4)),
            ]:
                case(op, source, result, value=1.4)
            case("hue", source, F.adjust_hue(image, 0.2), value=0.2)
            case("equalize", source, F.equalize(image), value=0.0)

    for i, (quality, subsampling) in enumerate([(90, "4:4:4"), (75, "4:2:0"), (85, "4:2:2")]):
        name = f"in_photo_{i}.jpg"
        synthetic(60, 44, noise=4.0).save(OUT / name, quality=quality, subsampling=subsampling)
        case("decode", name, Image.open(OUT / name).convert("RGB"))

    lines = ["# Made by python/make_transform_golden.py; paths are relative to this file.", ""]
    for entry in cases:
        lines.append("[[case]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
        lines.append("")
    (OUT / "cases.toml").write_text("\n".join(lines))


main()
