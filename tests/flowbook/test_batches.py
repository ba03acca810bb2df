"""What a step sees."""

import hashlib
import itertools
import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from flowbook import batches
from flowbook.batches import (
    batch_rows,
    draw_seeds,
    draw_step,
    other_seed,
    require_batch,
    time_quantile,
    training_data,
)

from ..given import F64, seeded
from ..runs import REFUSED, examples


def unchanged(u):
    return u


def test_seeds_come_from_the_generator_alone():
    """Catches a seed from global state, two seeds that are one, few bits."""
    torch.manual_seed(1)
    first = draw_seeds(seeded(5))
    torch.manual_seed(2)
    assert draw_seeds(seeded(5)) == first
    assert draw_seeds(seeded(6)) != first
    assert first[0] != first[1]
    torch.manual_seed(2)
    from_global = draw_seeds()
    torch.manual_seed(2)
    assert draw_seeds() == from_global
    many = [seed for k in range(50) for seed in draw_seeds(seeded(k))]
    assert max(many) > 2**31 and max(many) < 2**32 and min(many) >= 0


def test_a_step_draws_t_then_x0():
    """Catches another order, seed − step, a dtype of its own, t not handed on."""
    x1 = examples(5)
    t, x0 = draw_step(100, 7, x1, torch.square)
    g = seeded(107)
    assert torch.equal(t, torch.rand(5, generator=g, dtype=F64).square())
    assert torch.equal(x0, torch.randn(5, 3, generator=g, dtype=F64))
    again = draw_step(100, 7, x1, torch.square)
    assert torch.equal(again[0], t) and torch.equal(again[1], x0)


def test_a_share_of_the_noise():
    """Catches rows of another share; a view that keeps the whole batch alive."""
    t, x0 = draw_step(100, 7, examples(6), unchanged)
    own = draw_step(100, 7, examples(6), unchanged, slice(2, 4))
    assert torch.equal(own[0], t[2:4]) and torch.equal(own[1], x0[2:4])
    assert own[1].untyped_storage().nbytes() == 2 * 3 * 8
    alone = draw_step(100, 7, examples(6), unchanged, slice(0, 6))
    assert torch.equal(alone[1], x0)


def test_other_seeds():
    """Catches layers that get the noise's seed, at whatever step or process; seeds
    that forget the step, the place or the kind, or run them into one another."""
    seeds = set()
    for seed in (0, 5, 2**31, 2**32 - 1):
        for kind, step, place in itertools.product(
            ("layers", "item"), range(9), range(9)
        ):
            found = other_seed(seed, kind, step, place)
            assert 0 <= found < 2**32 and (found - seed) % 2**32 >= 2**31
            seeds.add(found)
    assert len(seeds) == 4 * 2 * 81
    assert other_seed(1, "item", 11, 1) != other_seed(1, "item", 1, 11)
    spread = [other_seed(0, "layers", k, 0) - 2**31 for k in range(1000)]
    mean = sum(spread) / 1000 / 2**31 - 0.5
    assert abs(mean) < 4 / (12 * 1000) ** 0.5  # 4 standard errors of a uniform mean
    by_hand = hashlib.sha256(b"7 item 2 3").hexdigest()[:8]
    assert other_seed(7, "item", 2, 3) == 7 + 2**31 + int(by_hand, 16) % 2**31


def test_an_order_without_waiting():
    """Catches a copy to a GPU that waits: from pageable memory, or blocking."""
    done = []

    class Order:
        def pin_memory(self):
            done.append("pinned")
            return self

        def to(self, device, non_blocking=False):
            done.append((device, non_blocking))
            return torch.arange(6)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", lambda *_, **given: Order())
        next(batch_rows(6, 2, 0, device="cuda:1"))
        assert done == ["pinned", ("cuda:1", True)]
        next(batch_rows(6, 2, 0, device="meta"))
        assert done[2:] == [("meta", True)]


def test_seeds_wrap():
    """Catches a seed past 32 bits, of which a CPU's generator would drop the rest."""
    far = draw_step(2**32 - 1, 3, examples(5), unchanged)
    assert torch.equal(far[1], draw_step(0, 2, examples(5), unchanged)[1])
    assert batches._seeded(2**32 + 5).initial_seed() == 5


def test_rows_deal_every_point_once():
    """Catches draws with replacement, one shuffle for ever, a short last batch."""
    dealt = list(itertools.islice(batch_rows(7, 2, 0), 9))
    assert all(rows.shape == (2,) for rows in dealt)
    epochs = [torch.cat(dealt[i : i + 3]).tolist() for i in (0, 3, 6)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_rows_are_a_function_of_seed_and_step():
    """Catches a start that shuffles again, the epoch left out of the seed."""
    whole = list(itertools.islice(batch_rows(7, 2, 9), 12))
    for first in range(9):
        rest = list(itertools.islice(batch_rows(7, 2, 9, first=first), 3))
        assert all(map(torch.equal, rest, whole[first : first + 3]))
    second = torch.randperm(7, generator=seeded(9 + 1))
    assert torch.equal(torch.cat(whole[3:6]), second[:6])


@pytest.mark.parametrize("batch_size", [0, 7])
def test_rows_refuse_a_size(batch_size):
    """Catches epochs without a batch, which loop for ever."""
    with pytest.raises(ValueError, match=rf"lie in \[1, 6\], got {batch_size}"):
        next(batch_rows(6, batch_size, 0))


def test_named_times():
    """Catches strata of the wrong width or place, a logit that isn't undone."""
    u = torch.tensor([0.1, 0.5, 0.75, 0.999], dtype=F64)
    assert torch.equal(time_quantile("uniform")(u), u)
    stratified = time_quantile("stratified")(u)
    assert_close(stratified, torch.tensor([0.1, 1.5, 2.75, 3.999], dtype=F64) / 4)
    t = time_quantile("logit-normal")(u)
    assert t.dtype == F64
    normal = 0.5 * (1 + torch.erf(torch.logit(t) / math.sqrt(2)))  # Φ(logit t) = u
    assert_close(normal, u)
    ends = time_quantile("logit-normal")(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [0.0, 1.0]


def test_times_of_your_own():
    """Catches a function that is not used."""
    assert time_quantile(torch.sqrt) is torch.sqrt


@pytest.mark.parametrize(
    ("times", "match"),
    [
        ("cosine", r"in \['uniform', 'logit-normal', 'stratified'\], got 'cosine'"),
        (["uniform"], r"times must be a function or in .* got \['uniform'\]"),
        (None, r"times must be a function or in .* got None"),
        (lambda u: 2 * u, r"lie in \[0, 1\]"),
        (lambda u: u - 0.1, r"lie in \[0, 1\]"),
        (lambda u: torch.where(u == 1, 2, u), r"lie in \[0, 1\]"),
        (lambda u: u / 0 * 0, r"lie in \[0, 1\]"),
        (lambda u: u.mean(), r"keep the shape \(101,\)"),
    ],
)
def test_refuses_times(times, match):
    """Catches times outside the path, or one time for a whole batch."""
    with pytest.raises(ValueError, match=match):
        time_quantile(times)


@pytest.mark.parametrize(
    ("times", "got"),
    [(lambda u: 0.5, "float"), (lambda u: (u > 0.5).long(), "torch.int64")],
)
def test_refuses_times_of_another_type(times, got):
    """Catches an error that a step makes of them, a thousand lines away."""
    with pytest.raises(TypeError, match=f"times must be a floating-.*, got {got}"):
        time_quantile(times)


KINDS = ["tensor", "labels", "dataset", "dataset of one", "labelled dataset"]


@pytest.mark.parametrize("kind", KINDS)
def test_data_in_every_form(kind):
    """Catches labels that don't go with their points, a dtype left as it was."""
    x1, y = examples(11), torch.arange(11)
    data = {
        "tensor": x1,
        "labels": (x1, y),
        "dataset": Bare(x1),
        "dataset of one": TensorDataset(x1),
        "labelled dataset": TensorDataset(x1, y),
    }[kind]
    before = x1.clone()
    source = training_data(data, torch.empty(0))
    assert (source.count, source.shape) == (11, (3,))
    rows = torch.tensor([7, 2, 5, 0])
    found, labels = source.fetch(rows)
    assert torch.equal(found, x1[rows].float())
    assert torch.equal(x1, before)
    if "label" in kind:
        assert torch.equal(labels, rows)
    else:
        assert labels is None


class Bare(Dataset):
    """Points without labels."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row]


class Odd(IterableDataset):
    """Points that come by themselves, and of which nobody knows how many."""

    def __iter__(self):
        return iter(examples(6))


@pytest.mark.parametrize("data", [Odd(), Dataset()])
def test_refuses_data_without_an_index(data):
    """Catches torch's NotImplementedError in the first step."""
    with pytest.raises(TypeError, match=f"must have a length .*{type(data).__name__}"):
        training_data(data, torch.empty(0))


class Moved(Bare):
    """Points that are moved at random when they are read."""

    def __getitem__(self, row):
        return super().__getitem__(row) + torch.rand(3, dtype=F64)


def test_a_dataset_that_draws():
    """Catches draws of the generator as it stands, or that is left elsewhere; items
    that change with the share, or don't with the seed, the step, the place."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    source = training_data(Moved(examples(11)), torch.empty(0, dtype=F64))
    rows = torch.tensor([4, 4, 7, 1])
    found = source.fetch(rows, 5, 9)[0]
    assert torch.equal(torch.get_rng_state(), before)
    for place, row in enumerate(rows):
        g = seeded(other_seed(5, "item", 9, place))
        moved = examples(11)[row] + torch.rand(3, generator=g, dtype=F64)
        assert torch.equal(found[place], moved)
    torch.manual_seed(4)
    assert torch.equal(source.fetch(rows[2:], 5, 9, 2)[0], found[2:])
    for other in ((6, 9, 0), (5, 8, 0), (5, 9, 1)):
        assert not torch.equal(source.fetch(rows, *other)[0], found)


def test_a_dataset_is_looked_at_when_it_is_read():
    """Catches NaN passed on to the network, a third column taken for nothing."""
    nan = examples(6)
    nan[4, 1] = math.nan
    source = training_data(Bare(nan), torch.empty(0))
    assert source.fetch(torch.tensor([3]))[0].isfinite().all()
    with pytest.raises(ValueError, match="data must be finite, got 1 NaN"):
        source.fetch(torch.tensor([3, 4]))
    three = TensorDataset(examples(6), torch.arange(6), torch.arange(6))
    with pytest.raises(ValueError, match="expected points and labels, got 3 of each"):
        training_data(three, torch.empty(0))


def test_data_that_is_trained_itself():
    """Catches a gradient for all the data, added up in every step."""
    x1 = examples(6).requires_grad_()
    found, _ = training_data(x1, x1.detach()).fetch(torch.tensor([0, 2]))
    assert not found.requires_grad


def test_fingerprints():
    """Catches other points or labels that pass for the same."""
    x1, y = examples(11), torch.arange(11)
    like = torch.empty(0, dtype=F64)
    given = [x1, x1.flip(0), (x1, y), (x1, y.flip(0)), Bare(x1)]
    prints = [training_data(data, like).fingerprint() for data in given]
    assert len(set(prints)) == len(prints)
    assert training_data(x1.clone(), like).fingerprint() == prints[0]


SIX = examples(6)
HUGE = torch.full((11, 3), 1e300, dtype=F64)  # finite in float64 only


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        *REFUSED,
        (HUGE, ValueError, "data must be finite, got 33 NaN or inf"),
        (SIX[0, 0], ValueError, r"data must have shape \(B, \*D\), got \(\)"),
        ((SIX, torch.arange(5)), ValueError, r"label for each of 6 points, got \(5,\)"),
        ((SIX, torch.tensor(1)), ValueError, r"a label for each of 6 points, got \(\)"),
        ((SIX, [1] * 6), ValueError, "a label for each of 6 points, got list"),
        (Bare(torch.zeros(6, 3).long()), TypeError, "data must be floating point"),
    ],
)
def test_refuses_data(data, error, match):
    """Catches bad data that fails in the thousandth step, or never."""
    with pytest.raises(error, match=match):
        training_data(data, torch.empty(0))


@pytest.mark.parametrize("batch_size", [0, 2.0, 12])
def test_refuses_batch_sizes(batch_size):
    """Catches an empty batch, whose mean is NaN."""
    with pytest.raises(ValueError, match=f"number of points in data, got {batch_size}"):
        require_batch(batch_size, 11)


def test_one_point_is_data_and_none_is_not():
    """Catches a batch size blamed for data that isn't there."""
    require_batch(1, 1)
    with pytest.raises(ValueError, match="at least one point, got none"):
        require_batch(1, 0)


def test_refuses_a_batch_that_cannot_be_shared():
    """Catches processes with unequal shares, and a gradient that isn't the batch's."""
    require_batch(9, 11, 3)
    with pytest.raises(ValueError, match="divisible by their number, 3, got 10"):
        require_batch(10, 11, 3)


def test_data_on_a_device():
    """Catches a copy to a GPU that has no room ("meta" stands in for a device)."""
    source = training_data(examples(6), torch.empty(0, device="meta"))
    assert source.device.type == "meta"
    assert training_data(Bare(examples(6)), torch.empty(0)).device.type == "cpu"


def test_a_gpu_without_room():
    """Catches data kept off a GPU that has room, or forced on one that has not."""
    device = torch.device("cuda", 0)
    x = torch.zeros(100, dtype=torch.uint8)
    with pytest.MonkeyPatch.context() as patch:
        for free, fits in ((201, True), (200, False)):
            patch.setattr(torch.cuda, "mem_get_info", lambda _, f=free: (f, 1000))
            assert batches._fits(x, device=device) is fits
