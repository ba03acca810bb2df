"""Divergences, and log-densities carried along a flow."""

import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from flowbook.likelihood import (
    Exact,
    Hutchinson,
    Transport,
    divergence,
    log_prob,
    standard_normal_log_prob,
    transport,
    velocity_and_divergence,
)
from flowbook.solvers import RK4, Dopri5, Euler, Heun, solve

from ..given import F64, points, seeded

A = torch.tensor([[0.7, -1.2, 0.3], [0.4, 0.5, 2.0], [-0.9, 0.1, -0.2]], dtype=F64)


def linear(x, t):
    return x @ A.to(x).T


def curved(x, t):  # each coordinate's own sine, a cube on the first, and a rotation
    flat = x.flatten(1)
    first = torch.cat((flat[:, :1] ** 3, torch.zeros_like(flat[:, 1:])), 1)
    v = flat.sin() * (1 + t[:, None]) + first
    if flat.shape[1] > 1:  # off the diagonal: no part of the divergence
        v = v + torch.cat((flat[:, 1:] ** 2, torch.zeros_like(flat[:, :1])), 1)
    return v.view_as(x)


def curved_divergence(x, t):
    flat = x.flatten(1)
    return (flat.cos() * (1 + t[:, None])).sum(1) + 3 * flat[:, 0] ** 2


@pytest.mark.parametrize("chunk", [None, 1, 2, 5, 100])
@pytest.mark.parametrize("shape", [(5, 3), (5, 1), (5, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_exact_divergence(shape, chunk, dtype):
    """Catches a direction lost or doubled by chunking, a wrong diagonal, images."""
    x = points(*shape, dtype=dtype)
    t = torch.linspace(0, 1, 5, dtype=dtype)
    v, div = velocity_and_divergence(curved, x, t, chunk=chunk)
    assert_close(v, curved(x, t), rtol=0, atol=0)
    assert_close(div, curved_divergence(x, t))
    assert_close(divergence(curved, x, t, Exact(chunk)), div, rtol=0, atol=0)


def test_divergence_of_a_full_matrix_is_its_trace():
    """Catches off-diagonal entries counted (the sum of the Jacobian)."""
    x = points(5, 3)
    assert_close(divergence(linear, x, 0.3), A.trace().expand(5))


def test_divergence_takes_a_scalar_time():
    """Catches t not expanded, or replaced."""
    x = points(5, 3)
    expected = curved_divergence(x, torch.full((5,), 0.25, dtype=F64))
    assert_close(divergence(curved, x, 0.25), expected)
    assert_close(velocity_and_divergence(curved, x, 0.25)[1], expected)


def test_the_batch_is_never_cut():
    """Catches chunking over samples, where a label bound by closure cannot follow."""
    label = points(5, 3, seed=3)
    sizes = []

    def conditional(x, t):
        sizes.append(len(x))
        return label * x**2

    x = points(5, 3)
    assert_close(divergence(conditional, x, 0.5, Exact(2)), (2 * label * x).sum(1))
    assert sizes == [5]


class Counted(torch.autograd.Function):
    """The identity, with a count of its backward passes: a batched one counts once."""

    generate_vmap_rule = True
    passes = 0

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        Counted.passes += 1
        return g


def passes(x, *method) -> int:
    before = Counted.passes
    divergence(lambda x, t: Counted.apply(x), x, 0.5, *method)
    return Counted.passes - before


def test_memory_is_bounded_by_the_chunk():
    """Catches all d directions at once whatever `chunk` says."""
    assert passes(points(5, 7), Exact(3)) == 3  # ceil(7 / 3)
    assert passes(points(5, 7), Exact(1)) == 7
    assert passes(points(5, 7), Exact(100)) == 1
    assert passes(points(5, 7), Hutchinson(6, chunk=4)) == 2


class LargestTensor(TorchDispatchMode):
    """Notes the largest result, in numbers, of any operation within."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        sizes = [
            x.untyped_storage().nbytes() // x.element_size()
            for x in made
            if isinstance(x, torch.Tensor)
        ]
        self.numel = max(self.numel, *sizes, 0)
        return out


def test_exact_log_prob_of_images_fits_in_memory():
    """Catches all 784 directions of a 28 × 28 image held at once by default."""
    images, once = points(4, 1, 28, 28), Euler(1)
    with LargestTensor() as bounded:
        value = log_prob(curved, images, solver=once)
    with LargestTensor() as whole:
        log_prob(curved, images, solver=once, divergence=Exact(784))
    one = torch.ones(4, dtype=F64)
    x0 = images - curved(images, one)
    expected = standard_normal_log_prob(x0) - curved_divergence(images, one)
    assert_close(value, expected)
    assert bounded.numel <= 2**20 < 4 * 784**2 <= whole.numel


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 3), 3),  # a loop below four directions
        ((5, 4), 1),
        ((512, 16), 4),  # 2048 rows: four directions at a time
        ((4096, 5), 5),  # a batch beyond that: a loop
        ((2, 2, 100, 10), 8),  # 2**20 numbers: 524 rows, 262 directions
        ((0, 4), 1),
    ],
)
def test_default_chunk(shape, expected):
    """Catches a change of the measured rule."""
    assert passes(torch.zeros(shape)) == expected


def test_a_gpu_takes_eight_times_as_many():
    """Catches the CPU's rule on another device."""
    from flowbook.likelihood import _chunk

    assert _chunk(torch.zeros(512, 64), 64) == 4
    assert _chunk(torch.zeros(512, 64, device="meta"), 64) == 32


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3, 4)])
def test_hutchinson_is_the_mean_of_quadratic_forms(shape, chunk):
    """Catches a probe lost, a sum for the mean, z·v for z·Jz."""
    x, t = points(*shape), torch.linspace(0, 1, 5, dtype=F64)
    z = Hutchinson(3, seeded(), "gaussian").draw(x)
    flat, n = z.flatten(2), x[0].numel()
    jacobian = torch.func.vmap(
        torch.func.jacrev(lambda y, s: curved(y[None], s[None])[0])
    )(x, t).view(5, n, n)
    expected = torch.einsum("pbi,bij,pbj->b", flat, jacobian, flat) / 3
    got = velocity_and_divergence(curved, x, t, probes=z, chunk=chunk)[1]
    assert_close(got, expected)
    drawn = divergence(curved, x, t, Hutchinson(3, seeded(), chunk=chunk))
    signs = Hutchinson(3, seeded()).draw(x).flatten(2)
    expected = torch.einsum("pbi,bij,pbj->b", signs, jacobian, signs) / 3
    assert_close(drawn, expected)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_probes(dtype):
    """Catches wrong values, moments, shape or dtype; a generator that is ignored."""
    x = points(500, 4, dtype=dtype)
    signs = Hutchinson(3, seeded()).draw(x)
    assert signs.dtype == dtype and signs.shape == (3, 500, 4)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean().item()) < 4 / 6000**0.5
    normal = Hutchinson(3, seeded(), "gaussian").draw(x)
    assert normal.shape == (3, 500, 4) and normal.dtype == dtype
    assert abs(normal.mean().item()) < 4 / 6000**0.5
    assert abs(normal.var().item() - 1) < 4 * (2 / 6000) ** 0.5
    assert (normal.abs() > 1.5).any()
    assert torch.equal(signs, Hutchinson(3, seeded()).draw(x))
    assert Hutchinson().draw(x).shape == (1, 500, 4) and Exact().draw(x) is None


def test_standard_normal_log_prob():
    """Catches a sign, a factor, d counted wrongly for images."""
    x = points(5, 2, 3, 4)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)
    assert_close(standard_normal_log_prob(x), expected)


def linear_truth(x):
    """Log-density of e^A X_0, X_0 ~ N(0, I)."""
    E = torch.linalg.matrix_exp(A)
    law = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=F64), E @ E.T)
    return law.log_prob(x)


def test_log_prob_of_a_linear_flow():
    """Catches a flipped sign, a lost divergence, backwards for forwards."""
    x = points(5, 3)
    lp = log_prob(linear, x, solver=Dopri5(1e-09, 1e-09))
    assert_close(lp, linear_truth(x), rtol=1e-7, atol=1e-7)
    assert lp.shape == (5,)
    by_rk4 = log_prob(linear, x, solver=RK4(40))
    assert_close(by_rk4, linear_truth(x), rtol=1e-5, atol=1e-5)
    grid = torch.linspace(1, 0, 41)
    assert_close(log_prob(linear, x, solver=RK4(grid=grid)), by_rk4, rtol=1e-6, atol=0)


def test_log_prob_on_images_equals_that_of_flat_points():
    """Catches a state unflattened wrongly."""
    x, t_span = points(5, 1, 3, 1), (0.0, 1.0)
    flat = log_prob(linear, x.flatten(1), solver=RK4(5), t_span=t_span)

    def image_field(x, t):
        assert x.shape == (5, 1, 3, 1)
        return linear(x.flatten(1), t).view_as(x)

    assert_close(log_prob(image_field, x, solver=RK4(5)), flat)


def test_transport_of_a_linear_flow():
    """Catches x for log_det, times swapped, nfe lost."""
    x = points(5, 3)
    end = transport(linear, x, solver=Dopri5(1e-09, 1e-09), t0=0.2, t1=0.7)
    assert isinstance(end, Transport)
    expected = x @ torch.linalg.matrix_exp(0.5 * A).T
    assert_close(end.x, expected, rtol=1e-7, atol=1e-7)
    assert_close(end.log_det, 0.5 * A.trace().expand(5), rtol=1e-7, atol=1e-7)
    assert (end.nfe > 7).all() and end.nfe.shape == (5,)


def test_nfe_counts_every_call():
    """Catches a call left out, or a call beyond the solver's own."""
    net = torch.nn.Linear(3, 3).double()
    for field in (linear, lambda x, t: net(x)):
        for x in (points(1, 3), points(1, 3).requires_grad_()):
            calls = []

            def counted(x, t, calls=calls, field=field):
                calls.append(t)
                return field(x, t)

            end = transport(counted, x)
            assert end.nfe.tolist() == [len(calls)] == [end.calls]
            calls.clear()
            heun = transport(counted, x, solver=Heun(3))
            assert heun.nfe.tolist() == [len(calls)] == [6] == [heun.calls]
            calls.clear()
            with torch.no_grad():
                heun = transport(counted, x, solver=Heun(3))
            assert heun.nfe.tolist() == [len(calls)] == [6] == [heun.calls]


def test_defaults_run_from_noise_to_data():
    """Catches transport's default times changed."""
    x = points(5, 3)
    end = transport(linear, x)
    assert_close(end.x, x @ torch.linalg.matrix_exp(A).T, rtol=1e-3, atol=1e-3)


def test_t_span_and_prior():
    """Catches the span ignored or swapped, the prior ignored or at the wrong end."""
    x = points(5, 3)

    def field(x, t):  # depends on t: integral over (0.1, 0.6) is 0.175
        return x * t[:, None]

    def prior(x):
        return -x.abs().sum(1)

    lp = log_prob(field, x, solver=Dopri5(1e-09, 1e-09), prior=prior, t_span=(0.1, 0.6))
    start = x * math.exp(-0.175)
    assert_close(lp, prior(start) - 3 * 0.175, rtol=1e-7, atol=1e-7)


def only_log_det_moves(d: int, tol: float) -> Transport:
    """At x = 0 the field is zero, and one coordinate's divergence is 10 sin 40t."""

    def still(x, t):
        return 10 * torch.sin(40 * t)[:, None] * x * (torch.arange(d) == 0)

    x = torch.zeros(2, d, dtype=F64)
    end = transport(still, x, solver=Dopri5(tol, tol), divergence=Hutchinson())
    assert_close(end.x, x, rtol=0, atol=0)
    return end


def test_the_error_control_sees_log_det():
    """Catches ℓ left out of the error norm, or carried in other units."""
    for tol in (1e-4, 1e-6):
        end = only_log_det_moves(1, tol)
        allowed = 2**0.5 * tol * 1.5  # in each step; |ℓ| is at most 1/2
        off = (end.log_det - (1 - math.cos(40)) / 4).abs().max()
        assert off < end.nfe.max() / 6 * allowed


def test_log_det_is_one_number_of_a_sample():
    """Catches ℓ entered d times, or with another weight than one coordinate's."""
    for d in (7, 31, 2047):  # the error may be sqrt((d + 1) / 2) times that of d = 1
        line = only_log_det_moves(1, 1e-4)
        among = only_log_det_moves(d, 1e-4 / math.sqrt((d + 1) / 2))
        assert torch.equal(among.nfe, line.nfe)
        assert_close(among.log_det, line.log_det, rtol=0, atol=1e-13)


def test_dopri5_steps_as_over_the_flat_state():
    """Catches an error norm of its own, where `solve`'s is documented."""
    x = points(5, 3)

    def moving(state, t):
        v = curved(state[:, :3], t)
        return torch.cat((v, curved_divergence(state[:, :3], t)[:, None]), 1)

    end = transport(curved, x, t0=1.0, t1=0.0)
    start = torch.cat((x, torch.zeros(5, 1, dtype=F64)), 1)
    by_hand = solve(moving, start, t0=1.0, t1=0.0)
    assert torch.equal(end.nfe, by_hand.nfe) and end.calls == by_hand.calls
    assert_close(end.x, by_hand.x[:, :3], rtol=0, atol=1e-12)
    assert_close(end.log_det, by_hand.x[:, 3], rtol=0, atol=1e-12)


def test_a_point_does_not_depend_on_its_batch():
    """Catches an error norm or a step shared by the batch."""
    x = points(7, 3)
    x[5:] *= 2  # harder neighbours
    alone = transport(curved, x[:5], t0=1.0, t1=0.0)
    among = transport(curved, x, t0=1.0, t1=0.0)
    assert torch.equal(alone.nfe, among.nfe[:5])
    assert_close(alone.log_det, among.log_det[:5], rtol=0, atol=1e-12)
    assert_close(log_prob(curved, x[:5]), log_prob(curved, x)[:5], rtol=0, atol=1e-12)


def test_fixed_probes_and_generator():
    """Catches fresh probes at each evaluation; generator or count ignored."""
    x = points(5, 3)
    for probes in (1, 2):
        z = Hutchinson(probes, seeded(7)).draw(x)
        forms = torch.einsum("pbi,ij,pbj->b", z, A, z) / probes
        method = Hutchinson(probes, seeded(7))
        got = transport(linear, x, solver=Euler(4), divergence=method).log_det
        assert_close(got, forms)
        exact = log_prob(linear, x, solver=Euler(4))
        method = Hutchinson(probes, seeded(7))
        lp = log_prob(linear, x, solver=Euler(4), divergence=method)
        assert_close(lp, exact + A.trace() - forms)


def test_training_through_it():
    """Catches a graph cut in the velocity or the divergence, or in x."""
    weight = (A / 3).clone().requires_grad_()
    x = points(2, 3).requires_grad_()

    def value(w, x):
        return log_prob(lambda x, t: (x @ w.T).tanh(), x, solver=RK4(2)).sum()

    assert torch.autograd.gradcheck(value, (weight, x))


def test_divergence_is_differentiable_and_sees_only_the_field():
    """Catches what the caller computed from x counted as ∂v/∂x."""
    x = points(5, 3).requires_grad_()
    condition = x * 2  # a condition made from x, bound by closure
    v, div = velocity_and_divergence(lambda y, t: y**2 + condition, x, torch.rand(5))
    assert_close(div, 2 * x.sum(1))
    (grad,) = torch.autograd.grad(div.sum(), x)
    assert_close(grad, torch.full_like(x, 2))
    (grad,) = torch.autograd.grad(v.sum(), x)
    assert_close(grad, 2 * x + 2)


def test_no_graph_where_none_is_wanted():
    """Catches a trajectory's graph kept under no_grad, or where nothing is trained."""
    net, x = torch.nn.Linear(3, 3).double(), points(5, 3)

    def field(x, t):
        return net(x).tanh()

    plain = log_prob(field, x, solver=RK4(2))
    assert plain.requires_grad
    with torch.no_grad():
        bare = log_prob(field, x, solver=RK4(2))
        v, div = velocity_and_divergence(field, x, torch.rand(5))
    assert not bare.requires_grad and not v.requires_grad and not div.requires_grad
    assert_close(bare, plain.detach(), rtol=0, atol=1e-14)
    assert not log_prob(curved, x, solver=RK4(2)).requires_grad
    with torch.inference_mode():
        inference = log_prob(field, x.clone(), solver=RK4(2))
    assert_close(inference.clone(), bare, rtol=0, atol=1e-14)
    assert not x.requires_grad


def test_a_graph_where_something_is_trained():
    """Catches a weight, a time or a probe that is overlooked, or x's copy found."""
    x, bias = points(5, 3), torch.ones(5, 3, dtype=F64, requires_grad=True)
    t, z = torch.rand(5, dtype=F64), Hutchinson(2, seeded()).draw(x)

    def pair(field, t=t, z=None):
        v, div = velocity_and_divergence(field, x, t, probes=z)
        return v.requires_grad, div.requires_grad

    late = t.clone().requires_grad_()
    assert pair(curved) == pair(lambda x, t: x) == (False, False)
    assert pair(lambda x, t: torch.ones_like(x)) == (False, False)
    assert pair(lambda x, t: x + x * x) == (False, False)  # x in two places
    assert pair(lambda x, t: bias * x) == pair(curved, late) == (True, True)
    assert pair(lambda x, t: (bias * 2).sin() * x) == (True, True)  # no leaf itself
    assert pair(lambda x, t: bias) == pair(lambda x, t: 2 * bias) == (True, False)
    with torch.no_grad():
        assert pair(lambda x, t: bias * x) == pair(curved, late) == (False, False)
    z.requires_grad_()
    div = velocity_and_divergence(linear, x, t, probes=z)[1]
    (grad,) = torch.autograd.grad(div.sum(), z)
    assert_close(grad, (z @ (A + A.T) / 2).detach())


def test_constant_fields_have_no_divergence_and_hidden_ones_are_refused():
    """Catches a silent zero for a field that autograd cannot follow."""
    x, bias = points(5, 3), torch.ones(3, dtype=F64, requires_grad=True)
    zero = torch.zeros(5, dtype=F64)
    assert_close(divergence(lambda x, t: torch.ones_like(x), x, 0.5), zero)
    shifted = divergence(lambda x, t: bias.expand_as(x), x, 0.5)
    assert_close(shifted.detach(), zero)
    with pytest.raises(ValueError, match="autograd cannot follow"):
        divergence(lambda x, t: x.detach().sin(), x, 0.5)
    with pytest.raises(ValueError, match="autograd cannot follow"):
        divergence(lambda x, t: x.detach().sin() + bias, x, 0.5)


def test_bad_input():
    """Catches a silent broadcast, a negative chunk that skips all, a name unknown."""
    x, t = points(5, 3), torch.rand(5)
    for call in (
        lambda method: divergence(linear, x, t, method),
        lambda method: transport(linear, x, divergence=method),
        lambda method: log_prob(linear, x, divergence=method),
    ):
        for method in ("exact", Exact, None):
            with pytest.raises(TypeError, match=r"Exact\(\) or Hutchinson\(\), got"):
                call(method)
    with pytest.raises(ValueError, match="'rademacher' or 'gaussian', got 'normal'"):
        Hutchinson(distribution="normal")
    with pytest.raises(TypeError, match="generator must be a Generator, got 0"):
        Hutchinson(generator=0)
    for make, name in (
        (lambda n: Hutchinson(n), "probes"),
        (lambda n: Hutchinson(chunk=n), "chunk"),
        (lambda n: Exact(n), "chunk"),
        (lambda n: velocity_and_divergence(linear, x, t, chunk=n), "chunk"),
    ):
        for count in (0, -1):
            with pytest.raises(ValueError, match=f"{name} must be at least 1, got"):
                make(count)
        for count in (True, 1.0):
            with pytest.raises(TypeError, match=f"{name} must be an integer, got"):
                make(count)
    for shape in ((2, 5, 2), (5, 3), (0, 5, 3)):
        with pytest.raises(ValueError, match="probes must be"):
            velocity_and_divergence(linear, x, t, probes=torch.ones(shape, dtype=F64))
    with pytest.raises(ValueError, match=r"float64, got \(2, 5, 3\) torch.float32"):
        velocity_and_divergence(linear, x, t, probes=torch.ones(2, 5, 3))
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        velocity_and_divergence(linear, x, t[:3])
    with pytest.raises(
        ValueError, match=r"must return shape \(5, 3\), as x, got \(5, 1\)"
    ):
        divergence(lambda x, t: x[:, :1], x, t)
    with pytest.raises(ValueError, match=r"prior must return shape \(5,\), got \(5, 1"):
        log_prob(linear, x, prior=lambda x: x[:, :1])
    with pytest.raises(ValueError, match="finite"):
        log_prob(linear, x * math.nan)
    with pytest.raises(TypeError, match="floating point"):
        log_prob(linear, x.long())
    with pytest.raises(TypeError, match="floating point"):
        velocity_and_divergence(linear, x.long(), t)
    with pytest.raises(ValueError, match=r"\(B, \*D\)"):
        divergence(linear, x[0, 0], t)
    with pytest.raises(TypeError, match=r"solver must be a .* got 'rk4'"):
        log_prob(linear, x, solver="rk4")
    with pytest.raises(RuntimeError, match="max_steps = 3"):
        log_prob(linear, x, solver=Dopri5(1e-09, 1e-09, max_steps=3))


def test_the_field_is_asked_within_the_span_only():
    """Catches a first look at the field at a time where it may be singular."""
    seen = []

    def field(x, t):
        seen.extend(t.tolist())
        return linear(x, t)

    transport(field, points(2, 3), solver=Euler(2), t0=0.3, t1=0.8)
    assert seen == pytest.approx([0.3] * 2 + [0.55] * 2)
