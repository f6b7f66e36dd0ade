# Compares the loader with PyTorch's DataLoader over PIL images, from JPEG files to normalised 224 x 224 numbers.
#
# Versions of the reported numbers: torch 2.15.0, torchvision 0.29.2, pillow 13.0.0.
# python bench_loader.py FOLDER PROGRAM [N_IMAGES] [N_ROUNDS]
#   FOLDER   is filled with synthetic JPEGs, 500 x 375, if it has none
#   PROGRAM  is the built benchmark: cargo bench -p sdlora-data --bench loader --no-run prints its path
# Both run in turn, N_ROUNDS times, each with a first epoch that is not counted for the rate. The processor time of an
# image, over both epochs and all threads and processes, is the better number where others use the machine too.
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


def make(folder, n):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        # Coarse and fine detail, so that a file has about the bytes a photograph has.
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        image = np.asarray(coarse.resize((500, 375), Image.BICUBIC)).astype(float)
        fine = Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8))
        fine = np.asarray(fine.filter(ImageFilter.GaussianBlur(1.5))).astype(float) - 128
        image = Image.fromarray((image + fine).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{i:05}.jpg", quality=90, subsampling="4:2:0")


class Folder(Dataset):
    def __init__(self, folder):
        self.paths = sorted(folder.glob("*.jpg"))
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(224, scale=(0.05, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with Image.open(self.paths[i]) as image:
            return self.transform(image.convert("RGB"))


def processor_seconds():
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measured(run, n_images):
    """Images a second of the second epoch, and milliseconds of processor time for one image."""
    before = processor_seconds()
    rate = run()
    return rate, (processor_seconds() - before) / (2 * n_images) * 1000


def pytorch(folder, workers):
    # Workers stay alive over the epochs, so that their start is not counted.
    loader = DataLoader(Folder(folder), batch_size=64, shuffle=True, num_workers=workers,
                        persistent_workers=workers > 0)
    for _ in range(2):
        start = time.perf_counter()
        n = sum(len(batch) for batch in loader)
        rate = n / (time.perf_counter() - start)
    # Ends the workers, so that their time is known.
    del loader
    return rate


def ours(folder, program, workers):
    output = subprocess.run([program, str(folder), str(workers)], capture_output=True, text=True, check=True).stdout
    return float(output.split("epoch 1: ")[1].split()[0])


def main():
    folder, program = Path(sys.argv[1]), sys.argv[2]
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 512
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    if not any(folder.glob("*.jpg")):
        make(folder, n)
    paths = list(folder.glob("*.jpg"))
    size = sum(path.stat().st_size for path in paths) / len(paths)
    torch.set_num_threads(1)
    workers = os.cpu_count() or 1
    print(f"{len(paths)} files of {size / 1000:.0f} kB, {workers} workers each")
    rates, times = [], []
    for i in range(rounds):
        here, here_ms = measured(lambda: ours(folder, program, workers), len(paths))
        there, there_ms = measured(lambda: pytorch(folder, workers), len(paths))
        rates.append(here / there)
        times.append(there_ms / here_ms)
        print(f"round {i}: ours {here:.0f} images/s, {here_ms:.2f} ms of processor; "
              f"PyTorch {there:.0f} images/s, {there_ms:.2f} ms", flush=True)
    for name, ratios in [("images/s", rates), ("processor time", times)]:
        print(f"{name}: {statistics.median(ratios):.2f} times PyTorch's, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"load average {os.getloadavg()[0]:.1f}")


main()
