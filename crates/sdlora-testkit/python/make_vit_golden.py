"""Tiny random ViTs as timm, transformers and the DINO releases write them, with their features.

    pip install torch==2.15.0 timm==1.0.31 transformers==5.23.0 safetensors numpy
    python crates/sdlora-testkit/python/make_vit_golden.py crates/sdlora-testkit/golden/vit [CASE ...]

One folder per case: the checkpoint (with config.json where the source has one) and io.safetensors
with `input` [2, 3, side, side] and `features` [2, d_model], computed in float64 from the float32
weights and stored in float32. All weights, norms and scales included, are random, so that a tensor
in the wrong place shows.
"""

import json
import logging
import pathlib
import shutil
import sys

import timm.models.vision_transformer as timm_vit
import torch
import transformers
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

SIDE, PATCH, D, HEADS = 32, 8, 32, 2
TIMM = dict(
    img_size=SIDE, patch_size=PATCH, embed_dim=D, depth=2, num_heads=HEADS, mlp_ratio=2, num_classes=5
)


def randomise(module):
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn_like(p)
            is_scale = p.dim() == 1 and ("norm" in name or "ls" in name or "lambda" in name)
            p.copy_(1 + 0.3 * noise if is_scale and not name.endswith("bias") else 0.2 * noise)
    return module.eval()


def timm_model(**changes):
    return randomise(timm_vit.VisionTransformer(**{**TIMM, **changes}))


def image(side=SIDE):
    return torch.randn(2, 3, side, side)


def write_io(folder, x, features):
    save_file(
        {"input": x.float().contiguous(), "features": features.detach().float().contiguous()},
        folder / "io.safetensors",
    )


def timm_features(model, x):
    model, x = model.double(), x.double()
    return model.forward_head(model.forward_features(x), pre_logits=True)


def write_timm(folder, model, architecture, **more):
    state = {k: v.float().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": architecture,
        "num_classes": TIMM["num_classes"],
        "num_features": D,
        "global_pool": model.global_pool,
        "model_args": {"num_heads": HEADS},
        "pretrained_cfg": {
            "tag": "golden",
            "input_size": [3, SIDE, SIDE],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
        **more,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def timm_case(folder, architecture, **changes):
    model, x = timm_model(**changes), image()
    write_timm(folder, model, architecture)
    write_io(folder, x, timm_features(model, x))


def timm_avg(folder):
    timm_case(folder, "vit_tiny_golden", global_pool="avg")


def timm_reg4(folder):
    timm_case(
        folder, "vit_tiny_reg4_golden", init_values=1e-5, reg_tokens=4, no_embed_class=True, qkv_bias=False
    )


def timm_pre_norm(folder):
    norm = lambda d, **kw: timm_vit.LayerNorm(d, eps=1e-5, **kw)
    timm_case(folder, "vit_tiny_clip_golden", pre_norm=True, norm_layer=norm)


def timm_quickgelu(folder):
    # Only the name of the architecture tells the function in the MLP.
    norm = lambda d, **kw: timm_vit.LayerNorm(d, eps=1e-5, **kw)
    timm_case(
        folder,
        "vit_tiny_patch8_clip_quickgelu_golden",
        pre_norm=True,
        norm_layer=norm,
        act_layer="quick_gelu",
    )


def timm_resized(folder):
    # The file has positions of 4 x 4 patches; input and features are those of 7 x 7.
    model = timm_model()
    write_timm(folder, model, "vit_tiny_golden")
    large = timm_model(img_size=56)
    state = dict(model.state_dict())
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [7, 7], num_prefix_tokens=1)
    large.load_state_dict(state)
    x = image(56)
    write_io(folder, x, timm_features(large, x))
    small = timm_model(img_size=24)
    state["pos_embed"] = resample_abs_pos_embed(model.state_dict()["pos_embed"].float(), [3, 3], num_prefix_tokens=1)
    small.load_state_dict(state)
    x = image(24)
    save_file(
        {"input": x, "features": timm_features(small, x).detach().float().contiguous()},
        folder / "io_24.safetensors",
    )


def hf(folder, model, cut=lambda m: m):
    randomise(model).save_pretrained(folder)
    for stale in folder.glob("generation_config.json"):
        stale.unlink()
    x = image()
    out = cut(model.double())(pixel_values=x.double())
    write_io(folder, x, out.last_hidden_state[:, 0])


HF = dict(
    hidden_size=D, num_hidden_layers=2, num_attention_heads=HEADS, image_size=SIDE, patch_size=PATCH
)


def hf_vit(folder):
    config = transformers.ViTConfig(**HF, intermediate_size=2 * D, layer_norm_eps=1e-12)
    hf(folder, transformers.ViTForImageClassification(config), lambda m: m.vit)
    processor = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
        "size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "resample": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")


def hf_dinov2_reg(folder):
    config = transformers.Dinov2WithRegistersConfig(**HF, mlp_ratio=2, num_register_tokens=4)
    hf(folder, transformers.Dinov2WithRegistersModel(config))


def hf_dinov2_resized(folder):
    # The file has positions of 4 x 4 patches; of io_48 input and features are those of 6 x 6, to which
    # transformers brings them. The MLP has the GELU by the hyperbolic tangent.
    config = transformers.Dinov2Config(**HF, mlp_ratio=2, hidden_act="gelu_pytorch_tanh")
    model = transformers.Dinov2Model(config)
    hf(folder, model)
    x = image(48)
    features = model.double()(pixel_values=x.double()).last_hidden_state[:, 0]
    save_file(
        {"input": x, "bicubic_features": features.detach().float().contiguous()},
        folder / "io_48.safetensors",
    )


def dino_pth(folder):
    # A training checkpoint of DINO: student and teacher, each wrapped twice, among other things.
    teacher, student = timm_model(num_classes=0), timm_model(num_classes=0)
    x = image()
    wrap = lambda m: {f"module.backbone.{k}": v.float() for k, v in m.state_dict().items()}
    head = {"module.head.mlp.0.weight": torch.randn(4, D)}
    torch.save(
        {"student": wrap(student) | head, "teacher": wrap(teacher) | head, "epoch": 3},
        folder / "checkpoint.pth",
    )
    write_io(folder, x, timm_features(teacher, x))


def dinov2_pth(folder):
    # A DINOv2 release with registers: positions for class token and patches, none for registers.
    model = timm_model(init_values=1.0, reg_tokens=4, no_embed_class=True, num_classes=0)
    x = image()
    features = timm_features(model, x)
    state = {k: v.float() for k, v in model.state_dict().items()}
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.randn(1, D)
    of_class = torch.randn(1, 1, D)
    state["cls_token"] = state["cls_token"] - of_class
    state["pos_embed"] = torch.cat([of_class, state["pos_embed"]], 1)
    torch.save(state, folder / "dinov2_pretrain.pth")
    write_io(folder, x, features)


CASES = [
    timm_avg,
    timm_reg4,
    timm_pre_norm,
    timm_resized,
    hf_vit,
    hf_dinov2_reg,
    dino_pth,
    dinov2_pth,
    timm_quickgelu,
    hf_dinov2_resized,
]

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    root, chosen = pathlib.Path(sys.argv[1]), sys.argv[2:]
    for seed, case in enumerate(CASES):
        if chosen and case.__name__ not in chosen:
            continue
        torch.manual_seed(seed)
        folder = root / case.__name__
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        case(folder)
        size = sum(f.stat().st_size for f in folder.iterdir())
        sys.stdout.write(f"{case.__name__}: {size // 1024} KiB\n")
