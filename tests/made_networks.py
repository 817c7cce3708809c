"""Networks, and what tests read off them and their proxies."""

from functools import partial

import torch
import torchvision
from torch import nn
from torch.nn import functional

from proxyhpo.pruning.measure import logits


class Branching(nn.Module):
    """A user's own network: branches, concatenation, gates, groups, a flattened picture."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(32, 48, 5, padding=2), nn.BatchNorm2d(48), nn.ReLU())
        self.grouped = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1, groups=8), nn.BatchNorm2d(64), nn.ReLU()
        )
        self.gate = nn.Linear(112, 112)
        self.mixed = nn.Sequential(nn.Conv2d(112, 24, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.hidden = nn.Linear(24 * 16, 40)
        self.head = nn.Linear(40, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.wide(x), self.grouped(x)], 1)
        x = x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]
        x = functional.adaptive_avg_pool2d(self.mixed(x), 4).flatten(1)
        return self.head(functional.relu(self.hidden(x)))


class Halves(nn.Module):
    """Its first layer is split in two at a fixed position, so it has to stay as wide as it is."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.left, self.right = nn.Conv2d(8, 32, 3), nn.Conv2d(8, 32, 3)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.first(x).relu()
        return self.head((self.left(x[:, :8]) + self.right(x[:, -8:])).relu().mean((2, 3)))


class Gated(nn.Module):
    """The halves of a split meet again: their channels can only leave in pairs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(16, 20, 3)
        self.head = nn.Linear(20, 10)

    def forward(self, x):
        value, gate = self.first(x).chunk(2, 1)
        return self.head(self.second(value * gate.sigmoid()).relu().mean((2, 3)))


class Functional(nn.Module):
    """Calls functions with its layers' weights; the layers themselves never run."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3)
        self.hidden, self.head = nn.Linear(64, 48), nn.Linear(48, 10)

    def forward(self, x):
        x = functional.conv2d(x, self.first.weight).relu()
        x = functional.conv2d(x, self.second.weight).relu().mean((2, 3))
        x = functional.linear(x, self.hidden.weight, self.hidden.bias).relu()
        return functional.linear(x, self.head.weight, self.head.bias)


class EfficientChannelAttention(nn.Module):
    """Its gates come from a convolution along the channels, by a single filter."""

    def __init__(self):
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 32, 3), nn.Conv1d(1, 1, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.first(x).relu()
        gate = self.gate(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]
        return self.head((x * gate).mean((2, 3)))


def torchvision_network(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.get_model(name, num_classes=10, **options)


NAMES = ("resnet18", "densenet121", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny")
OTHERS = {
    **{name: partial(torchvision_network, name) for name in NAMES},
    "vit_b_16": partial(torchvision_network, "vit_b_16", image_size=32),
    "googlenet": partial(torchvision_network, "googlenet", init_weights=False),
    "branching": Branching,
}

PICTURES = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BATCH = PICTURES, torch.arange(16) % 10


def snapshot(network):
    """All of a network that must not change."""
    return (
        {name: value.clone() for name, value in network.state_dict().items()},
        [module.training for module in network.modules()],
        [(p.requires_grad, p.grad) for p in network.parameters()],
        list(map(str, network.modules())),
    )


def widths(proxy):
    for path, (before, after) in proxy.plan["widths"].items():
        if path.endswith(("out_channels", "out_features")):
            yield path, before, after


def expanded(spans):
    ends = [list(map(int, span.split("-"))) for span in spans.split(",")]
    return {
        position for first, *last in ends for position in range(first, (last or [first])[0] + 1)
    }


def losses(network, pictures, labels, lr=0.02, steps=8):
    """Train the network; return the loss before each step."""
    optimiser = torch.optim.SGD(network.train().parameters(), lr, momentum=0.9)
    values = []
    for _ in range(steps):
        loss = functional.cross_entropy(logits(network, pictures), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    return values
