"""What trains, on "cuda" without a GPU: torch computes shapes and devices, but no values.

A tensor on the wrong device, a value read back within a step (``.item()``, a boolean index) and an
operation without a CUDA kernel are errors there. The backward pass isn't computed.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from proxyhpo.data.datasets import Augmentation, Feed, Split, load_dataset
from proxyhpo.hpo.stand_ins import make_stand_in
from proxyhpo.models import build_network, place
from proxyhpo.training import Device, train

EPOCHS, SIDE, BATCH = 2, 16, 4


class Fake(Device):
    """A GPU that nobody has."""

    def synchronise(self):
        pass

    def precision(self, network, side):
        return self.label


class OnlyCuda(TorchDispatchMode):
    """Refuses what has no CUDA kernel where a tensor on the GPU is involved."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tensors = torch.utils._pytree.tree_leaves((arguments, options))
        devices = {one.device.type for one in tensors if isinstance(one, torch.Tensor)}
        name = function.name()
        if name == "aten::_fused_sgd_":  # in place; torch can't compute its shapes
            assert devices == {"cuda"}
            result = None
        else:
            result = function(*arguments, **(options or {}))
        if "cuda" in devices:
            if torch.version.cuda and not name.startswith("prim::"):
                computed = torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, "CUDA")
                assert computed, f"{name}: no CUDA kernel"
            self.seen.add(name)
        return result


def move(module, device=None, memory_format=torch.preserve_format):
    """``Module.to``, which can't move tensors without values: they are made anew."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                made = torch.empty(old.shape, dtype=old.dtype, device=device or old.device)
                made = made.to(memory_format=memory_format) if made.dim() == 4 else made
                own = isinstance(old, nn.Parameter)
                tensors[name] = nn.Parameter(made, old.requires_grad) if own else made
    return module


def backward(loss):
    """``Tensor.backward``, whose engine asks for a real device: weights get empty gradients."""
    assert loss.device.type == "cuda"
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)


def watch(monkeypatch):
    """What ``.item()`` will read back from the device; a read in any other way raises."""
    found = []
    monkeypatch.setattr(nn.Module, "to", move)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: found.append(tensor) or 0.5)
    return found


def feed(count, augmentation=None):
    """Batches of pictures without values, on the GPU."""
    split = Split(
        torch.zeros(count, SIDE, SIDE, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    )
    return Feed(
        split, mean=(0.5,), std=(0.2,), batch_size=BATCH, device="cuda",
        augmentation=augmentation, drop_last=augmentation is not None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", subset=40, resolution=SIDE)


@pytest.mark.parametrize(
    ("network", "name", "precision"),
    [
        ("resnet8", "base", "fp32"),
        ("resnet8", "snip", "bf16"),
        ("resnet8", "frozen@0.5", "bf16"),
        ("vgg11_bn_x0.25", "uniform", "bf16"),
        ("mobilenetv2_x0.35", "base", "bf16"),
    ],
)
def test_a_training_stays_on_the_gpu_and_reads_back_after_its_epochs(
    network, name, precision, digits, monkeypatch
):
    def base(seed):
        return build_network(network, classes=10, channels=1, seed=seed)

    made = make_stand_in(name, base, digits, EPOCHS, 0.75)
    one = made.build(0)
    reads = watch(monkeypatch)
    with FakeTensorMode(), OnlyCuda() as kernels:
        rules = Augmentation(crop=2, flip=True, cutout=4)
        frozen = [p for p in one.parameters() if not p.requires_grad]
        outcome = train(
            one, feed(3 * BATCH, rules), feed(2 * BATCH + 1), {"momentum": 0.8},
            epochs=EPOCHS, seed=0, device=Fake("cuda", precision, 1), average=1, microbatches=2,
        )  # fmt: skip
        weights = list(one.parameters())
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            computed = one(torch.zeros(2, 1, SIDE, SIDE, device="cuda")).dtype
    assert computed == {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    assert all(isinstance(w, FakeTensor) and w.device.type == "cuda" for w in weights)
    assert (len(frozen) > 0) == (name == "frozen@0.5")
    assert all((w.grad is None) == (not w.requires_grad) for w in weights)
    assert outcome.state == "complete"
    # accuracy and loss of each evaluation: two epochs, and the first one's averaged weights
    assert len(reads) == 2 * (EPOCHS + 1)
    assert {"aten::_fused_sgd_", "aten::convolution"} <= kernels.seen


def test_what_would_go_wrong_shows(monkeypatch):
    network = build_network("resnet8", classes=10, channels=1)
    watch(monkeypatch)
    with FakeTensorMode(), OnlyCuda():
        place(network, "cuda")
        pictures, labels = next(feed(BATCH).epoch())
        with pytest.raises(RuntimeError, match="device"):
            network(pictures.cpu())
        with pytest.raises(Exception, match="nonzero"):
            pictures[labels > 0]
        with pytest.raises(Exception, match="_local_scalar_dense"):
            bool(labels[0] > 0)
        with pytest.raises(AssertionError, match="no CUDA kernel"):
            torch.ops.mkldnn._linear_pointwise(pictures, pictures, None, "none", [], "")
