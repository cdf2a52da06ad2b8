"""TorchRL: functions that are told of both ends, and of the value of the true successor."""

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import functional

from benchmarks.audit.driver import EPSILON, Audited, Batch, Case, main, monte_carlo

RAISES = (
    "It is documented as a vectorised form of the function above, and equal to it, but at λ = 0, "
    "where it raises."
)


def gae(case: Case, gamma: float, gae_lambda: float) -> torch.Tensor:
    reward, value, next_value, done, terminated = _tensors(case)
    ends = {"done": done, "terminated": terminated}
    found, _ = functional.generalized_advantage_estimate(
        gamma, gae_lambda, value, next_value, reward, **ends
    )
    return found[..., 0].T


def vec_gae(case: Case, gamma: float, gae_lambda: float) -> torch.Tensor:
    reward, value, next_value, done, terminated = _tensors(case)
    ends = {"done": done, "terminated": terminated}
    found, _ = functional.vec_generalized_advantage_estimate(
        gamma, gae_lambda, value, next_value, reward, **ends
    )
    return found[..., 0].T


def td_lambda(case: Case, gamma: float, gae_lambda: float) -> torch.Tensor:
    reward, _, next_value, *ends = _tensors(case)
    found = functional.td_lambda_return_estimate(gamma, gae_lambda, next_value, reward, *ends)
    return found[..., 0].T


def vec_td_lambda(case: Case, gamma: float, gae_lambda: float) -> torch.Tensor:
    reward, _, next_value, *ends = _tensors(case)
    found = functional.vec_td_lambda_return_estimate(gamma, gae_lambda, next_value, reward, *ends)
    return found[..., 0].T


def td0(case: Case, gamma: float, gae_lambda: float) -> torch.Tensor:
    reward, value, next_value, *ends = _tensors(case)
    found = functional.td0_advantage_estimate(gamma, value, next_value, reward, *ends)
    return found[..., 0].T


def td1(case: Case, gamma: float, gae_lambda: float) -> torch.Tensor:
    reward, _, next_value, *ends = _tensors(case)
    return functional.td1_return_estimate(gamma, next_value, reward, *ends)[..., 0].T


def vec_td1(case: Case, gamma: float, gae_lambda: float) -> torch.Tensor:
    reward, _, next_value, *ends = _tensors(case)
    return functional.vec_td1_return_estimate(gamma, next_value, reward, *ends)[..., 0].T


def vtrace_advantage(case: Case, gamma: float, gae_lambda: float) -> torch.Tensor:
    return _vtrace(case, gamma)[0][..., 0].T


def vtrace_target(case: Case, gamma: float, gae_lambda: float) -> torch.Tensor:
    return _vtrace(case, gamma)[1][..., 0].T


def _vtrace(case: Case, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    reward, value, next_value, *ends = _tensors(case)
    log_pi = torch.zeros_like(value)
    inputs = (log_pi, log_pi, value, next_value, reward, *ends)
    return functional.vtrace_advantage_estimate(gamma, *inputs)


def surrogate(batch: Batch) -> torch.Tensor:
    return _ppo_gradient(batch, "loss_objective")


def entropy(batch: Batch) -> torch.Tensor:
    return _ppo_gradient(batch, "loss_entropy")


def _ppo_gradient(batch: Batch, loss: str) -> torch.Tensor:
    """The derivative of one of its losses in the logits, which are its only parameters."""

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = torch.nn.Parameter(torch.from_numpy(batch.logits))

        def forward(self, row: torch.Tensor) -> torch.Tensor:
            return self.all[row]

    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(Logits(), in_keys=["row"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(
            in_keys=["logits"],
            out_keys=["action"],
            distribution_class=torch.distributions.Categorical,
            return_log_prob=True,
        ),
    )
    rule = ClipPPOLoss(actor, clip_epsilon=EPSILON, entropy_coeff=1.0, critic_coeff=None)
    told = {
        "row": torch.arange(len(batch.action)),
        "action": torch.from_numpy(batch.action),
        "action_log_prob": torch.from_numpy(batch.old_log_prob),
        "advantage": torch.from_numpy(batch.advantage)[:, None],
        ("collector", "mask"): torch.from_numpy(batch.valid),
    }
    rule(TensorDict(told, [len(batch.action)]))[loss].backward()
    (logits,) = rule.parameters()
    return logits.grad


def _tensors(case: Case) -> list[torch.Tensor]:
    """Reward, V(s), V(s'), done, terminated: [N, T, 1].

    In float32, as it is used: γ times a flag is float32 in torch, whatever the rewards are.
    """
    floats = (case.reward, case.value, case.next_value)
    arrays = (*(x.astype(np.float32) for x in floats), case.done, case.terminated)
    return [torch.from_numpy(x).T[..., None].contiguous() for x in arrays]


if __name__ == "__main__":
    main(
        "torchrl",
        [
            Audited("generalized_advantage_estimate", "GAE", gae),
            Audited(
                "vec_generalized_advantage_estimate",
                "GAE",
                vec_gae,
                why=RAISES,
            ),
            Audited("td_lambda_return_estimate", "λ-return", td_lambda),
            Audited("vec_td_lambda_return_estimate", "λ-return", vec_td_lambda, why=RAISES),
            Audited("td0_advantage_estimate", "TD error", td0),
            Audited("td1_return_estimate", "discounted return", td1),
            Audited("vec_td1_return_estimate", "discounted return", vec_td1),
            Audited("vtrace_advantage_estimate: vs", "λ-return", vtrace_target, can=monte_carlo),
            Audited("vtrace_advantage_estimate", "GAE", vtrace_advantage, can=monte_carlo),
            Audited("ClipPPOLoss: loss_objective", "clipped surrogate", surrogate),
            Audited("ClipPPOLoss: loss_entropy", "entropy bonus", entropy),
        ],
    )
