"""Natural gradients: steps whose length is measured between policies, not between parameters.

    g = ∇L(θ),    F = E[∇ log π ∇ log πᵀ],    x = (F + c I)⁻¹ g

F is the Fisher matrix, the curvature of the mean KL(π_old ‖ π) at π = π_old. It is never written
down: conjugate gradients find x from products with it. NPG goes -α x. TRPO goes along -x as far as
a bound on the KL allows, and not at all where that does not improve the policy.

Source: Kakade 2001, A natural policy gradient (NIPS 14); Schulman et al. 2015 (arXiv:1502.05477).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd import grad
from torch.nn.utils import vector_to_parameters

from torch_ref import gradient, learner
from torch_ref.config import Config
from torch_ref.losses import masked_mean
from torch_ref.types import Algorithm, Batch, Fitted, Learned

RESIDUAL = 1e-10  # |r|² at which conjugate gradients stop, as in OpenAI Baselines
SHRINK = 0.8  # from one attempt of the line search to the next, as in Spinning Up


def fit_npg(
    config: Config, algorithm: Algorithm, learned: Learned, batch: Batch
) -> tuple[Learned, Fitted]:
    """θ - α_u x, then value_steps steps of the critic (if there is one)."""
    params = learned.params
    found = natural_gradient(config, algorithm, params, batch)
    rate = learner.rates(config, learned.update)["policy"]
    with torch.no_grad():
        old_outputs = algorithm.networks.policy(params, batch.obs)
        placed(algorithm, params, as_vector(params) - rate * found.direction)
        kl = mean_kl(algorithm, old_outputs, params, batch)
    learned, critic = gradient.fit_value(config, algorithm, learned, batch)
    return _together(learned, found, {"kl": kl}, critic)


def fit_trpo(
    config: Config, algorithm: Algorithm, learned: Learned, batch: Batch
) -> tuple[Learned, Fitted]:
    """The longest step along -x that is good enough, then value_steps steps of the critic (if there
    is one).
    """
    params = learned.params
    found = natural_gradient(config, algorithm, params, batch)
    step = step_length(found.curvature, max_kl=config.max_kl) * found.direction
    _, told = line_search(config, algorithm, params, batch, step)
    learned, critic = gradient.fit_value(config, algorithm, learned, batch)
    return _together(learned, found, told, critic)


class Natural(NamedTuple):
    """A natural gradient, and what it was found from; P parameters."""

    parts: dict[str, torch.Tensor]  # of the objective, by name
    gradient: dict[str, torch.Tensor]  # g
    norm: torch.Tensor  # |g|
    direction: torch.Tensor  # x [P]
    curvature: torch.Tensor  # xᵀ (F + c I) x


def natural_gradient(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, batch: Batch
) -> Natural:
    """x = (F + c I)⁻¹ g with c = `damping`, as far as `cg_steps` steps find it."""
    names, policy = zip(*params["policy"].named_parameters(), strict=True)
    loss, parts = surrogate_objective(config, algorithm, params, batch)
    gradient = dict(zip(names, grad(loss, policy), strict=True))
    g = _raveled(gradient.values())
    fisher = fisher_product(algorithm, params, batch)

    def product(vector: torch.Tensor) -> torch.Tensor:
        return fisher(vector) + config.damping * vector

    x = conjugate_gradients(product, g, steps=config.cg_steps)
    parts = {name: part.detach() for name, part in parts.items()}
    return Natural(parts, gradient, torch.sqrt(dot(g, g)), x, dot(x, product(x)))


def surrogate_objective(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, batch: Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of ρ = π(a|s) / π_old(a|s) in the place of log π - ent_coef · entropy, and the two
    apart."""
    outputs = algorithm.networks.policy(params, batch.obs)
    ratio = torch.exp(learner.log_ratio(algorithm, outputs, batch))
    return learner.regularized(config, algorithm, outputs, ratio, batch)


def mean_kl(
    algorithm: Algorithm, old_outputs: torch.Tensor, params: nn.ModuleDict, batch: Batch
) -> torch.Tensor:
    """KL(π_old ‖ π) in nats, its mean over valid steps.

    Args:
      old_outputs: of the policy network, which are π_old, [T, N, K].
      params: π.
    """
    outputs = algorithm.networks.policy(params, batch.obs)
    return masked_mean(algorithm.distribution.kl(old_outputs, outputs), batch.valid)


def fisher_product(algorithm: Algorithm, params: nn.ModuleDict, batch: Batch) -> Callable:
    """v ↦ F v, both float [P]: how ∇ KL(π_old ‖ π) changes along v, at π = π_old.

    It is the gradient of the gradient's part along v, reverse over reverse. Over the actions F is
    an exact expectation; over the states it is a mean over those in the batch.

    Source: Pearlmutter 1994 (Neural Computation 6); Schulman et al. 2015, appendix C.
    """
    policy = list(params["policy"].parameters())
    old_outputs = algorithm.networks.policy(params, batch.obs).detach()
    divergence = mean_kl(algorithm, old_outputs, params, batch)
    slope = _raveled(grad(divergence, policy, create_graph=True))

    def product(vector: torch.Tensor) -> torch.Tensor:
        along = grad(dot(slope, vector), policy, retain_graph=True, materialize_grads=True)
        return _raveled(along)

    return product


def conjugate_gradients(
    product: Callable, b: torch.Tensor, *, steps: torch.Tensor | int, tolerance: float = RESIDUAL
) -> torch.Tensor:
    """x with A x = b, of a symmetric positive definite A, from x = 0 in at most so many steps.

        α = |r|² / pᵀ A p,   x ← x + α p,   r' = r - α A p,   p ← r' + (|r'|² / |r|²) p

    with r = p = b at first. In exact arithmetic the residuals r are orthogonal, and P steps
    suffice. In floating point they cease to be, once a large eigenvalue's part is found, and then
    rounding grows, by 10^15 in ten steps on some batches. So what a new residual has of those
    before it is taken away.

    Args:
      product: p ↦ A p, both float [P].
      b: float [P].
      steps: at most so many, in [0, MOST_CG_STEPS].
      tolerance: |r|² at which it is done, absolute: a gradient as small as that has no direction.

    Source: Hestenes & Stiefel 1952; Shewchuk 1994, An introduction to the conjugate gradient method
    without the agonizing pain; Parlett 1998, The symmetric eigenvalue problem, §13.
    """
    assert b.ndim == 1
    x, r, p, square = torch.zeros_like(b), b, b, dot(b, b)
    basis: list[torch.Tensor] = []
    for _ in range(int(steps)):
        if square <= tolerance:
            break
        basis.append(r / torch.sqrt(square))
        image = product(p)
        alpha = square / dot(p, image)
        x, r = x + alpha * p, r - alpha * image
        for q in basis:
            r = r - dot(q, r) * q
        after = dot(r, r)
        p, square = r + after / square * p, after
    return x


def step_length(curvature: torch.Tensor, *, max_kl: float) -> torch.Tensor:
    """β = √(2 δ / xᵀ (F + c I) x): ½ (β x)ᵀ (F + c I) (β x) is δ. 0 where nothing curves.

    Args:
      curvature: xᵀ (F + c I) x, a scalar.
      max_kl: δ > 0, a scalar.

    Source: Schulman et al. 2015, appendix C; the damping in it as in the authors' code.
    """
    curves = curvature > 0.0
    return torch.where(curves, torch.sqrt(2.0 * max_kl / torch.where(curves, curvature, 1.0)), 0.0)


@torch.no_grad()
def line_search(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, batch: Batch, step: torch.Tensor
) -> tuple[nn.ModuleDict, dict[str, torch.Tensor]]:
    """θ less the longest of step, ρ step, ρ² step, … (ρ = SHRINK, `backtrack_steps` of them) with
    KL(π_old ‖ π) ≤ `max_kl` and a better surrogate; θ itself, if none has both.

    Args:
      step: float [P].

    Returns:
      The parameters, and by name: `kl` of the step taken, `full_kl` of the whole one, and whether
      one was `accepted`, 1 or 0.

    Source: Schulman et al. 2015, appendix C.
    """
    start = as_vector(params)
    old_outputs = algorithm.networks.policy(params, batch.obs)
    before, _ = surrogate_objective(config, algorithm, params, batch)
    one, zero = torch.ones_like(before), torch.zeros_like(before)
    share, full_kl = one, zero
    for tried in range(config.backtrack_steps):
        placed(algorithm, params, start - share * step)
        kl = mean_kl(algorithm, old_outputs, params, batch)
        loss, _ = surrogate_objective(config, algorithm, params, batch)
        full_kl = full_kl if tried else kl
        if kl <= config.max_kl and loss < before:
            return params, {"kl": kl, "full_kl": full_kl, "accepted": one}
        share = share * SHRINK
    vector_to_parameters(start, params["policy"].parameters())
    return params, {"kl": zero, "full_kl": full_kl, "accepted": zero}


def as_vector(params: nn.ModuleDict) -> torch.Tensor:
    """The policy's parameters, float [P], in torch's order."""
    return _raveled(params["policy"].parameters()).detach()


def placed(algorithm: Algorithm, params: nn.ModuleDict, policy: torch.Tensor) -> nn.ModuleDict:
    """The parameters with these of the policy, float [P], rounded on the grid; in place."""
    vector_to_parameters(policy, params["policy"].parameters())
    with torch.no_grad():
        for param in params["policy"].parameters():
            param.copy_(algorithm.rounded(param))
    return params


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Σ a b."""
    return torch.sum(a * b)


def _raveled(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """All of them as one vector, in whatever order their entries lie in memory: torch's own
    `parameters_to_vector` refuses the gradient of a convolution of several channels."""
    return torch.cat([x.reshape(-1) for x in tensors])


def _together(
    learned: Learned, found: Natural, told: dict[str, torch.Tensor], critic: Fitted
) -> tuple[Learned, Fitted]:
    """The policy's step and the critic's fit as one."""
    losses = {**found.parts, "policy_grad_norm": found.norm, **told, **critic.losses}
    return learned, Fitted(losses, {"policy": [found.gradient], **critic.gradients})
