# Makes golden/mix.json: what torchvision's MixUp and CutMix make of a batch, and PyTorch's loss on it.
#
# Versions the file was made with: torch 2.15.0, torchvision 0.29.2.
# Run from anywhere: python make_mix_golden.py
# The images and logits are random numbers.
import json
from pathlib import Path

import torch
from torchvision.transforms import v2

OUT = Path(__file__).resolve().parent.parent / "golden" / "mix.json"
N, CHANNELS, HEIGHT, WIDTH, CLASSES = 4, 2, 5, 6, 3


class Fixed:
    """Stands for the Beta distribution."""

    def __init__(self, share):
        self.share = share

    def sample(self, shape):
        return torch.full(shape, self.share)


def main():
    generator = torch.Generator().manual_seed(1993)
    images = torch.rand((N, CHANNELS, HEIGHT, WIDTH), generator=generator)
    logits = 2.0 * torch.randn((N, CLASSES), generator=generator)
    labels = torch.tensor([0, 2, 1, 1])
    cases = []
    draws = [("mixup", 0.3, None), ("mixup", 0.95, None)]
    draws += [("cutmix", 0.6, (2, 3)), ("cutmix", 0.2, (0, 5)), ("cutmix", 0.999, (4, 0))]
    for kind, share, centre in draws:
        transform = (v2.MixUp if kind == "mixup" else v2.CutMix)(num_classes=CLASSES)
        transform._dist = Fixed(share)
        randint = torch.randint
        # CutMix draws the column, then the row of the centre.
        left = [] if centre is None else [centre[1], centre[0]]
        torch.randint = lambda *args, **kwargs: torch.tensor([left.pop(0)])
        mixed, soft = transform(images, labels)
        torch.randint = randint
        assert not left
        cases.append(
            {
                "kind": kind,
                "share": share,
                "centre": centre,
                "images": mixed.flatten().tolist(),
                "labels": soft.flatten().tolist(),
                "loss": torch.nn.functional.cross_entropy(logits, soft).item(),
            }
        )
    golden = {
        "shape": [N, CHANNELS, HEIGHT, WIDTH],
        "images": images.flatten().tolist(),
        "logits": logits.flatten().tolist(),
        "labels": labels.tolist(),
        "cases": cases,
    }
    OUT.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
