"""Prefixes and tokens in front of the tiny ViT, with features and gradients, in float64.

    pip install torch==2.15.0 timm==1.0.31 safetensors
    python crates/sdlora-testkit/python/make_prompt_golden.py crates/sdlora-testkit/golden

Reads tiny_vit_timm.safetensors and the input of tiny_vit_io.safetensors, writes
prompts.safetensors. A prefix [4, n, 48] of keys and values is concatenated in front of what the
block's own projection gives, before the heads are split; attention is PyTorch's own function.
"""

import pathlib
import sys
import types

import timm.models.vision_transformer as timm_vit
import torch
from safetensors.torch import load_file, save_file

BLOCKS = (0, 2)


def attend(layer, x, prefix):
    batch, n, d = x.shape
    query, key, value = layer.qkv(x).split(d, dim=-1)
    key = torch.cat([prefix[0], key], dim=1)
    value = torch.cat([prefix[1], value], dim=1)
    heads = [t.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for t in (query, key, value)]
    out = torch.nn.functional.scaled_dot_product_attention(*heads)
    return layer.proj(out.transpose(1, 2).reshape(batch, n, d))


def main(folder):
    torch.manual_seed(6)
    model = timm_vit.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, mlp_ratio=4, num_classes=0
    )
    model.load_state_dict(load_file(folder / "tiny_vit_timm.safetensors"))
    model.double().eval().requires_grad_(False)
    images = load_file(folder / "tiny_vit_io.safetensors")["input"].double()

    out = {}
    parts = {f"block{i}.{kind}": torch.randn(4, 5, 48) for i in BLOCKS for kind in ("keys", "values")}
    parts["cotangent"] = torch.randn(4, 48)
    parts["front"] = torch.randn(4, 6, 48)
    out.update(parts)
    leaves = {name: part.double().requires_grad_() for name, part in parts.items()}

    front = torch.cat([leaves["front"], model._pos_embed(model.patch_embed(images))], dim=1)
    prompts = model.norm(model.blocks(front))[:, :6].mean(dim=1)
    (prompts * leaves["cotangent"]).sum().backward()
    out["front.features"] = prompts
    out["front.grad"] = leaves["front"].grad

    for i in BLOCKS:
        prefix = (leaves[f"block{i}.keys"], leaves[f"block{i}.values"])
        layer = model.blocks[i].attn
        layer.forward = types.MethodType(lambda self, x, prefix=prefix, **_: attend(self, x, prefix), layer)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    (features * leaves["cotangent"]).sum().backward()
    out["prefix.features"] = features
    for name in parts:
        if name.startswith("block"):
            out[f"{name}.grad"] = leaves[name].grad
    save_file({k: v.detach().float().contiguous() for k, v in out.items()}, folder / "prompts.safetensors")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
