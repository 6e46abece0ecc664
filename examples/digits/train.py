"""Train both networks of the digits example and write their weights beside this file: under two minutes on two cores."""

from __future__ import annotations

import time

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digits_models import NETWORKS, Digits, load_data, weights_path

EPOCHS = {"cnn": 40, "vit": 120}
BATCH = 100


def shift(images: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel along each axis; what comes in is background."""
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    rows, columns = torch.randint(3, (len(images), 2)).unbind(1)
    height, width = images.shape[-2:]
    return torch.stack([image[:, r : r + height, c : c + width] for image, r, c in zip(padded, rows, columns, strict=True)])


def train(network: nn.Module, data: Digits, epochs: int) -> None:
    """AdamW with a one-cycle rate on randomly shifted images."""
    steps = len(data.train_images) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=epochs * steps)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.train_images)).split(BATCH)[:steps]:
            loss = F.cross_entropy(network(shift(data.train_images[chosen])), data.train_labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def main() -> None:
    """Train, report the accuracy on the held-out digits, save."""
    data = load_data()
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        network, start = make(), time.perf_counter()
        train(network, data, EPOCHS[name])
        with torch.inference_mode():
            correct = int((network(data.test_images).argmax(1) == data.test_labels).sum())
        safetensors.torch.save_file(network.state_dict(), weights_path(name))
        seconds = time.perf_counter() - start
        print(f"{name}: {correct} of {len(data.test_labels)} held-out digits right after {seconds:.0f} s; wrote {weights_path(name).name}")


if __name__ == "__main__":
    main()
