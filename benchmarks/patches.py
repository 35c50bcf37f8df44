"""Training on patches in the manner of PatchGD: what a user of large images and little memory takes without several ranks.

    python benchmarks/patches.py [--data scattered-digits:256x256x6000] [--patches 4] [--share 0.25] [--inner 4] [--epochs 8] [--lr 0.002]

One process. An image is cut into patches; one network makes a vector of each, which lie in a block of latent values, and a small
convolutional network decides from the block. For a batch the block is first filled without gradients. Then, in each of the inner
iterations, a part of the patches is computed again with gradients, the other vectors stay as they are, and both networks take a step
(after Gupta, Mago, Chavan, Prasad, arXiv 2301.13817, section 3; the backbone is ddcnn's VGG, not theirs). So the activations of a part
of the patches are in memory at a time, and those of the shared network see no neighbour of their patch. Prints JSON: accuracy on
validation images (every tenth training image) and, with --test, on test images; the peak above the start; seconds.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.networks.registry import Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.memory import take_peaks


class Patched(nn.Module):
    """Args: shape: of images; patches: along each axis; latent: values of a patch."""

    def __init__(self, shape: Shape, patches: int, design: Design, latent: int):
        super().__init__()
        rows, columns = (side // patches for side in shape.spatial)
        self.patches, self.size, self.latent = patches, (rows, columns), latent
        self.backbone = make(design, Shape((rows, columns), shape.channels, latent))  # its "classes" are the latent values
        self.head = nn.Sequential(
            nn.Conv2d(latent, 2 * latent, 3, padding=1), nn.BatchNorm2d(2 * latent), nn.ReLU(),
            nn.Conv2d(2 * latent, 2 * latent, 3, padding=1), nn.BatchNorm2d(2 * latent), nn.ReLU(),
            nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(8 * latent, shape.classes),
        )  # fmt: skip

    def vectors(self, images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Of the patches ``which`` (n,): (B, C, *image) uint8 -> (B, n, latent)."""
        (rows, columns), row, column = self.size, which // self.patches, which % self.patches
        cut = [
            images[:, :, r * rows : (r + 1) * rows, c * columns : (c + 1) * columns]
            for r, c in zip(row.tolist(), column.tolist(), strict=True)
        ]
        inputs = (torch.stack(cut, 1).flatten(0, 1).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return self.backbone(inputs).unflatten(0, (len(images), len(which)))

    @torch.no_grad()
    def filled(self, images: torch.Tensor) -> torch.Tensor:
        """The block of all vectors, (B, patches², latent), patch by patch, with running statistics."""
        training = self.training
        self.eval()
        block = torch.cat([self.vectors(images, torch.tensor([k])) for k in range(self.patches**2)], 1)
        self.train(training)
        return block

    def decided(self, block: torch.Tensor) -> torch.Tensor:
        """(B, patches², latent) -> logits (B, K)."""
        return self.head(block.unflatten(1, (self.patches, self.patches)).movedim(-1, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scattered-digits:256x256x6000")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--network", default="vgg9")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--patches", type=int, default=4, help="along each axis")
    parser.add_argument("--latent", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.25, help="of the patches, in an inner iteration")
    parser.add_argument("--inner", type=int, default=4, help="iterations for a batch")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true", help="look at the test images, too")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    random = np.random.default_rng(asked.seed)
    source = open_source(SourceOptions(asked.data, asked.data_root))
    train, classes = source.splits["train"], len(source.class_names)
    chosen = np.arange(len(train.labels))
    learnt, validation = chosen[chosen % 10 != 0], chosen[chosen % 10 == 0]
    _, rows, columns, channels = train.shape
    network = Patched(Shape((rows, columns), channels, classes), asked.patches, Design(asked.network, asked.width), asked.latent)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def images_of(split, index):
        index = np.sort(index)
        return torch.from_numpy(split.read(index)).movedim(-1, 1), torch.from_numpy(split.labels[index])

    steps = asked.epochs * asked.inner * (len(learnt) // asked.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), asked.lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, asked.lr, total_steps=steps)
    count = max(1, round(asked.share * asked.patches**2))
    take_peaks()
    start, begin = take_peaks()[0], time.perf_counter()
    for _ in range(asked.epochs):
        network.train()
        for index in np.split(
            random.permutation(learnt)[: len(learnt) // asked.batch_size * asked.batch_size], len(learnt) // asked.batch_size
        ):
            images, labels = images_of(train, index)
            block = network.filled(images)
            for _ in range(asked.inner):
                which = torch.from_numpy(random.permutation(asked.patches**2)[:count])
                vectors = network.vectors(images, which)
                block = block.index_copy(1, which, vectors.detach())
                loss = nn.functional.cross_entropy(network.decided(block.index_copy(1, which, vectors)), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    seconds, peak = time.perf_counter() - begin, take_peaks()[0] - start

    @torch.no_grad()
    def accuracy(split, index):
        network.eval()
        batches = [images_of(split, one) for one in np.array_split(index, -(-len(index) // asked.batch_size))]
        return sum(int((network.decided(network.filled(x)).argmax(1) == y).sum()) for x, y in batches) / len(index)

    found = {"validation_accuracy": accuracy(train, validation)}
    if asked.test:
        found["test_accuracy"] = accuracy(source.splits["test"], np.arange(len(source.splits["test"].labels)))
    found |= {"seconds": seconds, "peak_bytes_above_start": peak, "parameters": sum(p.numel() for p in network.parameters())}
    options = {name: str(value) for name, value in vars(asked).items()}
    print(json.dumps({"benchmark": "patches", "options": options} | found, indent=1))


if __name__ == "__main__":
    main()
