"""Writes golden/containers/: small PyTorch and safetensors files and what is in them.

Made with Python 3.11.7, torch 2.15.0+cu132, safetensors 0.8.0, numpy 2.4.6.
Run from anywhere: python make_containers.py [FOLDER]. The numbers are formulas, no random draw, so any version
writes the same tensors; the bytes around them may differ.
"""

import argparse
import json
import os
import pathlib
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy
import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "golden" / "containers"


def ramp(*shape, dtype=torch.float32):
    """0, 0.25, 0.5, ... : exact in every format up to 63.75, bf16 included."""
    n = int(numpy.prod(shape))
    return (torch.arange(n, dtype=torch.float32) * 0.25).reshape(shape).to(dtype)


class Evil:
    """Unpickling it the usual way would run a command."""

    def __reduce__(self):
        return (os.system, ("touch EXECUTED",))


def state_dict():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(ramp(*parameter.shape))
    return model.state_dict()


def containers():
    base = ramp(3, 4)
    shared = ramp(10)
    yield "state_dict.pth", state_dict(), {}
    yield "module_prefix.pth", {
        "model": OrderedDict(("module." + k, v) for k, v in state_dict().items()),
        "epoch": 3,
        "optimizer": {"state": {0: {"exp_avg": ramp(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    }, {}
    yield "half.pth", {
        "f16": ramp(2, 3, dtype=torch.float16),
        "bf16": ramp(2, 3, dtype=torch.bfloat16),
        "f64": ramp(2, 3, dtype=torch.float64),
        "i64": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "u16": torch.tensor([1, 2], dtype=torch.uint16),
        "scalar": torch.tensor(0.5),
        "empty": torch.zeros(0, 4),
    }, {}
    yield "views.pth", {
        "transposed": base.t(),
        "permuted": ramp(2, 3, 4).permute(2, 0, 1),
        "column": base[:, 1],
        "every_second": shared[1::2],
        "tail": shared[4:],
        "whole": shared,
        "expanded": torch.tensor([0.5]).expand(6),
        "channels_last": ramp(1, 2, 2, 3).to(memory_format=torch.channels_last),
    }, {}
    with_attribute = ramp(3)
    with_attribute.note = "attributes make another call"
    yield "parameter.pth", {
        "weight": torch.nn.Parameter(ramp(2, 2)),
        "frozen": torch.nn.Parameter(ramp(2), False),
        "with_attribute": with_attribute,
    }, {}
    yield "args_beside.pth", {
        "teacher": {"backbone.norm.weight": ramp(2) + 1},
        "student": {"module.backbone.norm.weight": ramp(2)},
        "args": argparse.Namespace(lr=0.1, arch="vit_tiny"),
        "best": numpy.float64(0.75),
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
    }, {}
    yield "executes.pth", {"weight": ramp(2), "payload": Evil()}, {}
    yield "protocol4.pth", {"model": state_dict()}, {"pickle_protocol": 4}
    yield "protocol5.pth", {"model": state_dict()}, {"pickle_protocol": 5}
    yield "legacy.pth", {"weight": ramp(2)}, {"_use_new_zipfile_serialization": False}


def whole_module():
    return torch.nn.Linear(2, 1)


def expected(value, prefix, out):
    if isinstance(value, torch.Tensor):
        out[prefix] = {
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "values": value.detach().to(torch.float64).reshape(-1).tolist(),
        }
    elif isinstance(value, dict):
        for key, inner in value.items():
            expected(inner, f"{prefix}.{key}" if prefix else str(key), out)


def repack(path, to, edit, compression=zipfile.ZIP_STORED):
    """A copy of a zip file; `edit(name, data)` gives the new data."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", compression) as new:
        for name in old.namelist():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            new.writestr(info, edit(name, old.read(name)))


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, value, options in containers():
        torch.save(value, folder / name, **options)
        if name != "legacy.pth":
            tensors[name] = {}
            expected(value, "", tensors[name])

    torch.save(whole_module(), folder / "whole_module.pth")
    repack(folder / "views.pth", folder / "deflated.pth", lambda _, data: data, zipfile.ZIP_DEFLATED)
    tensors["deflated.pth"] = tensors["views.pth"]
    repack(
        folder / "parameter.pth",
        folder / "big_endian.pth",
        lambda name, data: b"big" if name.endswith("/byteorder") else data,
    )
    cyclic = {}
    cyclic["self"] = cyclic
    repack(
        folder / "parameter.pth",
        folder / "cyclic.pth",
        lambda name, data: pickle.dumps(cyclic, 2) if name.endswith("/data.pkl") else data,
    )

    small = {"a": ramp(2, 3), "b": ramp(4, dtype=torch.bfloat16), "c": torch.arange(3)}
    save_file(small, folder / "small.safetensors", metadata={"format": "pt"})
    tensors["small.safetensors"] = {}
    expected(small, "", tensors["small.safetensors"])

    (folder / "expected.json").write_text(json.dumps(tensors, indent=1) + "\n")


main()
