"""Stand-ins: proxies and equally cheap controls."""

import warnings

import pytest
import torch
from made_networks import torchvision_network
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from proxyhpo.config import InputError
from proxyhpo.data.datasets import load_dataset
from proxyhpo.hpo.stand_ins import STAND_INS, cost_rows, make_stand_in, prune, scored_batch
from proxyhpo.models import build_network
from proxyhpo.pruning.criteria import CRITERIA
from proxyhpo.pruning.measure import count_macs, count_parameters

EPOCHS, SHARE = 8, 0.25


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", subset=40).resized(16)


def builder(name="resnet20"):
    return lambda seed: build_network(name, classes=10, channels=1, seed=seed)


PAIRS = ("snip+epochs", "resolution+subset", "depth+random", "frozen+snip")


@pytest.mark.parametrize("name", [*STAND_INS, *PAIRS])
def test_every_stand_in_costs_what_it_says(name, digits):
    share = 0.4 if name == "frozen" else SHARE  # its forward pass alone is a third
    base = make_stand_in("base", builder(), digits, EPOCHS, share)
    stand_in = make_stand_in(name, builder(), digits, EPOCHS, share, seed=1)
    network = stand_in.build(3)
    one = torch.zeros(1, 1, stand_in.dataset.side, stand_in.dataset.side)
    assert stand_in.name == name
    assert stand_in.macs == count_macs(network, one)
    assert stand_in.parameters == count_parameters(network)
    assert stand_in.share == stand_in.cost / base.cost
    # epochs, sides and blocks come whole; a subset takes the nearest number of each class
    assert 0.6 * share < stand_in.share < share + 0.01
    assert stand_in.seconds > 0
    assert (stand_in.proxy is not None) == any(part in CRITERIA for part in name.split("+"))
    assert network.eval()(one).shape == (1, 10)
    weights = network.state_dict()
    assert all(torch.equal(t, weights[n]) for n, t in stand_in.build(3).state_dict().items())
    assert not torch.equal(weights["classifier.weight"], stand_in.build(4).classifier.weight)


def test_a_share_in_the_name_goes_before_the_callers(digits):
    asked = make_stand_in("uniform@0.5", builder(), digits, EPOCHS, SHARE)
    assert (asked.name, asked.target, asked.identity) == ("uniform", 0.5, ("uniform", 0.5))
    assert 0.4 < asked.share < 0.51
    for name in ("snip@", "snip@half", "snip@1", "snip@nan"):
        with pytest.raises(InputError, match=r"share .* between 0 and 1"):
            make_stand_in(name, builder(), digits, EPOCHS, SHARE)


def test_controls_change_what_they_name_and_nothing_else(digits):
    kinds = STAND_INS.keys() - {"frozen"}
    made = {n: make_stand_in(n, builder(), digits, EPOCHS, SHARE) for n in kinds}
    assert made["epochs"].epochs == 2
    assert len(made["subset"].dataset.train) == round(SHARE * len(digits.train))
    assert made["subset"].dataset.val is digits.val
    assert made["resolution"].dataset.side == 8
    assert made["resolution"].dataset.val.images.shape[1] == 8
    for name, stand_in in made.items():
        assert (stand_in.epochs == EPOCHS) == (name != "epochs")
        assert (len(stand_in.dataset.train) == len(digits.train)) == (name != "subset")
        assert (stand_in.dataset.side == digits.side) == (name != "resolution")
        whole = name in ("epochs", "subset", "resolution")
        assert (stand_in.parameters == made["epochs"].parameters) == whole


@pytest.mark.parametrize("name", ["resnet20", "vgg11_bn", "mobilenetv2_x0.35"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_first_layers_are_frozen_and_the_saved_backward_pass_is_counted(name, share, digits):
    base = make_stand_in("base", builder(name), digits, EPOCHS, share)
    one = make_stand_in("frozen", builder(name), digits, EPOCHS, share)
    spent = []
    for stand_in in (base, one):
        network, pictures = stand_in.build(0), torch.randn(4, 1, digits.side, digits.side)
        before = [weight.clone() for weight in network.parameters()]
        with FlopCounterMode(display=False) as counter:
            network(pictures).square().sum().backward()
        spent.append(counter.get_total_flops())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
        optimizer.step()
        moved = [not torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True)]
    # the first layers stay, the others move
    assert moved == sorted(moved)
    assert 0 < sum(moved) < len(moved)
    assert one.share == pytest.approx(spent[1] / spent[0])
    assert share - 0.15 < one.share <= share


def test_one_epoch_is_the_least(digits):
    assert make_stand_in("epochs", builder(), digits, 2, 0.1).epochs == 1


@pytest.mark.parametrize("name", ["resnet20", "vgg11_bn", "mobilenetv2_x0.35"])
def test_depth_leaves_out_parts_that_keep_the_shape(name, digits):
    shallow = make_stand_in("depth", builder(name), digits, EPOCHS, 0.75)
    assert shallow.build(0)(torch.randn(2, 1, 16, 16)).shape == (2, 10)
    assert 0.5 < shallow.share <= 0.75


def test_a_combination_gives_each_the_root_of_the_share(digits):
    both = make_stand_in("uniform+epochs", builder(), digits, EPOCHS, SHARE)
    assert both.epochs == EPOCHS // 2
    assert both.proxy.share == pytest.approx(0.5, abs=0.02)


def test_subsets_are_stratified_and_seeded(digits):
    first, again, other = (
        make_stand_in("subset", builder(), digits, EPOCHS, SHARE, seed).dataset.train
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    counts = first.labels.bincount()
    assert counts.max() - counts.min() <= 1


def test_the_scored_batch_is_normalised_as_in_training(digits):
    pictures, labels = scored_batch(digits, 0)
    assert pictures.shape == (64, 1, 16, 16)
    assert len(labels) == 64
    assert abs(pictures.mean()) < 0.1
    assert 0.8 < pictures.std() < 1.2


def test_stand_ins_are_set_side_by_side(digits):
    names = ["base", "subset", "uniform+epochs"]
    made = [make_stand_in(name, builder(), digits, EPOCHS, SHARE) for name in names]
    rows = cost_rows(made, made[0], batch_size=16, repeats=11)
    assert [row["stand_in"] for row in rows] == names
    assert [row["macs x samples"] for row in rows] == [one.share for one in made]
    assert (made[0].share, made[0].epochs, made[0].dataset) == (1, EPOCHS, digits)
    assert [row["asked"] for row in rows] == [1, SHARE, SHARE]
    assert rows[0]["time"] == pytest.approx(1, rel=0.6)  # the same network twice: noise
    # a subset's step is N_B's own; the pruned one's is cheaper, and there are half as many
    assert rows[1]["time"] == pytest.approx(SHARE * rows[0]["time"], rel=0.6)
    assert rows[2]["time"] < 0.7 * rows[0]["time"]


@pytest.mark.parametrize(
    ("name", "share", "message"),
    [
        ("snap", SHARE, "unknown stand-in 'snap': did you mean 'snip'"),
        ("snip+epocs", SHARE, "unknown stand-in 'epocs'"),
        ("snip+random", SHARE, "two different kinds"),
        ("epochs+epochs", SHARE, "two different kinds"),
        ("epochs+subset+snip", SHARE, "two different kinds"),
        ("epochs", 0, "share 0"),
        ("epochs", 1, "share 1"),
        ("uniform", 0.001, "out of reach"),
        ("frozen", 0.3, "share 0.3 is out of reach"),
    ],
)
def test_bad_input_gives_one_clear_line(name, share, message, digits):
    with pytest.raises(InputError, match=message):
        make_stand_in(name, builder(), digits, EPOCHS, share)


def test_pictures_too_small_to_shrink_are_refused(digits):
    with pytest.raises(InputError, match="8 pixels"):
        make_stand_in("resolution", builder(), digits.resized(8), EPOCHS, SHARE)


def initialised_from_outside(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Flatten())
    nn.init.normal_(network[1].weight, std=0.5)
    return network.append(nn.Linear(32 * 16, 10))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (initialised_from_outside, r"Sequential: 1 of its weights .* \(1.weight is 15 times"),
        (lambda _: torchvision_network("resnet18"), "ResNet: 2. of its weights .* reset_param"),
    ],
)
def test_weights_that_are_drawn_by_another_rule_are_told(build, told):
    with pytest.warns(UserWarning, match=told):
        prune(build, "uniform", 0.5, [torch.randn(1, 3, 8, 8)], 0)


@pytest.mark.parametrize("name", ["resnet20", "vgg11_bn_x0.25", "mobilenetv2_x0.35"])
def test_weights_of_the_networks_own_rule_are_not(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(builder(name), "uniform", 0.5, [torch.randn(1, 1, 16, 16)], 0)
