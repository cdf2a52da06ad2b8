"""Are skrl's PPO in JAX and its PPO in PyTorch one algorithm? An update of both, on one batch.

    python -m benchmarks.audit.skrl_twins gaussian|categorical [COEFFICIENT]

in an environment that has skrl (1.4 or 2), jax and torch. The networks are linear, and there is an
entropy bonus. Each agent's own update runs on the batch and hands its optimizer a gradient;
`compare` holds the policies' gradients against each other.
"""

import sys
from importlib.metadata import version
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from skrl import logger
from skrl.agents.jax import ppo as jax_ppo
from skrl.agents.torch import ppo as torch_ppo
from skrl.models import jax as jax_models
from skrl.models import torch as torch_models

from jaxpg.parity import compare, gradients

NEW = version("skrl").startswith("2")  # an output less, and other names of inputs
OBS = "observations" if NEW else "states"
B, D, A = 16, 4, 3
SETTINGS = {"learning_epochs": 1, "mini_batches": 1, "grad_norm_clip": 0, "value_loss_scale": 1.0}
NAMES = {"mean.kernel": "mean.weight", "mean.bias": "mean.bias"}


def main(kind: str, coefficient: str = "0.1") -> None:
    """Print how the two gradients compare; exit with 1 if they differ."""
    logger.setLevel("ERROR")
    batch, weights = draw(kind)
    settings = SETTINGS | {"entropy_loss_scale": float(coefficient)}
    ours = jax_gradient(kind, batch, weights, settings)
    theirs = torch_gradient(kind, batch, weights, settings)
    report = compare(ours, theirs, names=NAMES, transpose="*.kernel", tolerance=1e-5)
    print(report)
    sys.exit(not report)


def draw(kind: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A batch as an agent's memory holds it, and the policy's weights; all float32."""
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.normal(size=(D, A)), "bias": rng.normal(size=A)}
    obs, noise = rng.normal(size=(B, D)), rng.normal(size=(B, A))
    mean = obs @ weights["kernel"] + weights["bias"]
    if kind == "gaussian":  # of standard deviation 1
        action = mean + noise
        log_prob = -0.5 * np.sum(noise**2 + np.log(2 * np.pi), axis=-1, keepdims=True)
    else:
        action = rng.integers(A, size=(B, 1))
        log_pi = mean - np.log(np.exp(mean).sum(axis=-1, keepdims=True))
        log_prob = np.take_along_axis(log_pi, action, axis=-1)
    columns = {x: rng.normal(size=(B, 1)) for x in ("values", "returns", "advantages", "rewards")}
    old = log_prob + 0.1 * rng.normal(size=(B, 1))  # of the policy that acted
    batch = {OBS: obs, "actions": action, "log_prob": old, **columns}
    batch, weights = ({k: v.astype(np.float32) for k, v in x.items()} for x in (batch, weights))
    return batch, weights


def torch_gradient(kind: str, batch: dict, weights: dict, settings: dict) -> dict:
    """What the update of skrl.agents.torch.ppo.PPO leaves in the policy's parameters."""
    mixin = getattr(torch_models, f"{kind.capitalize()}Mixin")

    class Policy(mixin, torch_models.Model):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            torch_models.Model.__init__(self, **spaces(kind), device="cpu")
            mixin.__init__(self)
            self.mean = torch.nn.Linear(D, A)
            if kind == "gaussian":
                self.log_std = torch.nn.Parameter(torch.zeros(A))

        def compute(self, inputs: dict, role: str) -> tuple:
            return outputs(kind, self.mean(inputs[OBS]), getattr(self, "log_std", None))

    class Value(torch_models.DeterministicMixin, torch_models.Model):
        def __init__(self) -> None:
            torch_models.Model.__init__(self, **spaces(kind), device="cpu")
            torch_models.DeterministicMixin.__init__(self)
            self.value = torch.nn.Linear(D, 1)

        def compute(self, inputs: dict, role: str) -> tuple:
            return self.value(inputs[OBS]), {}

    policy = Policy()
    with torch.no_grad():
        policy.mean.weight.copy_(torch.from_numpy(weights["kernel"].T))
        policy.mean.bias.copy_(torch.from_numpy(weights["bias"]))
    models = {"policy": policy, "value": Value()}
    agent = torch_ppo.PPO(models=models, cfg=settings, device="cpu")
    update(agent, {name: torch.from_numpy(x) for name, x in batch.items()})
    return gradients(policy)


def jax_gradient(kind: str, batch: dict, weights: dict, settings: dict) -> dict:
    """What the update of skrl.agents.jax.ppo.PPO hands to the policy's optimizer."""
    mixin = getattr(jax_models, f"{kind.capitalize()}Mixin")

    class Policy(mixin, jax_models.Model):  # type: ignore[misc, valid-type]
        def __init__(self, **fields: Any) -> None:
            jax_models.Model.__init__(self, **fields)
            mixin.__init__(self)

        @nn.compact
        def __call__(self, inputs: dict, role: str) -> tuple:
            mean = nn.Dense(A, name="mean")(inputs[OBS])
            gaussian = kind == "gaussian"
            log_std = self.param("log_std", nn.initializers.zeros, (A,)) if gaussian else None
            return outputs(kind, mean, log_std)

    class Value(jax_models.DeterministicMixin, jax_models.Model):
        def __init__(self, **fields: Any) -> None:
            jax_models.Model.__init__(self, **fields)
            jax_models.DeterministicMixin.__init__(self)

        @nn.compact
        def __call__(self, inputs: dict, role: str) -> tuple:
            return nn.Dense(1)(inputs[OBS]), {}

    arrays = {name: jnp.asarray(x) for name, x in batch.items()}
    models: Any = {"policy": Policy(**spaces(kind)), "value": Value(**spaces(kind))}
    for role, model in models.items():
        inputs = {OBS: arrays[OBS], "taken_actions": arrays["actions"]}
        model.init_state_dict(role=role, inputs=inputs, key=jax.random.key(0))
    policy = models["policy"]
    params = {"params": {**policy.state_dict.params["params"], "mean": weights}}
    policy.state_dict = policy.state_dict.replace(params=params)
    agent = jax_ppo.PPO(models=models, cfg=settings)
    optimizer = agent.policy_optimizer = Recorder()
    update(agent, arrays)
    return optimizer.gradient["params"]


def spaces(kind: str) -> dict[str, Any]:
    """Of observations and actions."""
    action = Box(-1, 1, (A,)) if kind == "gaussian" else Discrete(A)
    return {"observation_space": Box(-1, 1, (D,)), "action_space": action}


def outputs(kind: str, mean: Any, log_std: Any) -> tuple:
    """What a policy returns; the standard deviation moved into the dict in version 2."""
    if kind == "categorical":
        return mean, {}
    return (mean, {"log_std": log_std}) if NEW else (mean, log_std, {})


def update(agent: Any, batch: dict) -> None:
    """One update of the agent, whose memory holds the batch."""
    agent.memory = Memory(batch)
    agent._current_next_states = agent._current_next_observations = batch[OBS][-1:]
    agent._tensors_names = [OBS, *(["states"] if NEW else []), "actions", "log_prob"]
    agent._tensors_names += ["values", "returns", "advantages"]
    if NEW:
        agent.update(timestep=0, timesteps=1)
    else:
        agent._update(0, 1)


class Recorder:
    """In the place of an optimizer: keeps the gradient, and takes no step."""

    def step(self, grad: dict, *_: Any, **__: Any) -> "Recorder":
        self.gradient = grad
        return self


class Memory:
    """In the place of skrl's: hands out the batch as it is, and keeps nothing."""

    def __init__(self, batch: dict) -> None:
        self.batch = {**batch, "states": batch[OBS]}
        self.batch["terminated"] = self.batch["truncated"] = batch["rewards"] > 0

    def __len__(self) -> int:
        return B

    def get_tensor_by_name(self, name: str) -> Any:
        return self.batch[name][:, None]  # [T, N, 1] of one environment

    def set_tensor_by_name(self, name: str, tensor: Any) -> None:
        """The advantages stay what they are: the twins' own differ by how they normalise."""

    def sample_all(self, names: list[str], **_: Any) -> list:
        return [[self.batch[name] for name in names]]

    sample = sample_all


if __name__ == "__main__":
    main(*sys.argv[1:])
