"""A network to tune."""

import torch
from torch import nn


class Small(nn.Module):
    """Branches, a concatenation, and a layer that remembers no rule of ours."""

    def __init__(self, classes=10, channels=1):
        super().__init__()
        self.stem = nn.Conv2d(channels, 12, 3, padding=1)
        self.left = nn.Conv2d(12, 8, 1)
        self.right = nn.Conv2d(12, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, classes)

    def forward(self, pictures):
        stem = self.stem(pictures).relu()
        both = torch.cat([self.left(stem), self.right(stem)], 1)
        return self.head(self.norm(both).relu().mean((2, 3)))


class Viewed(nn.Module):
    """Can't be trained in channels-last memory: its features are viewed as a row."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 6 * 6, 10)

    def forward(self, pictures):
        features = self.conv(pictures).relu()
        return self.head(features.view(len(features), -1))


class Picky(Small):
    """Takes pictures of one size."""

    def forward(self, pictures):
        assert pictures.shape[2] == 224
        return super().forward(pictures)
