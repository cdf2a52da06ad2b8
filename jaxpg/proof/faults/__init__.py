"""Mutation controls: a check that cannot fail proves nothing, so each of these must make it fail.

Every fault is planted in `torch_ref` alone, for as long as its context lasts. `examine` runs the
levels in their order on the fault's control, a small config that passes them all without it, and
reports the first that sees it. Each page spoils one subject and says at its end which control
shows what.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

from jaxpg.core.config import Config, EnvParams
from jaxpg.proof import batch
from jaxpg.proof.faults import (
    advantages,
    distributions,
    environment,
    images,
    losses,
    natural,
    penalty,
    ppo,
    start,
    statistics,
    update,
)
from jaxpg.proof.faults.plants import Fault
from jaxpg.proof.levels import LEVELS, Level, attempt
from jaxpg.proof.synthetic import DIALS

_SMALL = dataclasses.replace(
    batch.small(Config()), hidden_sizes=(5, 5), activation="tanh", gamma=0.9, gae_lambda=0.8
)
_PPO = dataclasses.replace(
    _SMALL,
    fit="ppo",
    epochs=2,
    minibatches=5,
    clip_coef=0.3,
    clip_value=0.1,
    value_steps=1,
    normalize_advantage=True,
    normalize_over="minibatch",
    ent_coef=0.1,
    optimizer_eps=1e-5,
)
_TRPO = dataclasses.replace(  # of two updates the first has its second step, the other has none
    _SMALL,
    collect="episodes",
    fit="trpo",
    max_kl=0.1,
    damping=1e-3,
    cg_steps=20,
    backtrack_steps=3,
    ent_coef=0.1,
)
CONTROLS = {
    "episodes": dataclasses.replace(
        _SMALL,
        collect="episodes",
        reduction="trajectories",
        discounting="absolute",
        normalize_advantage=True,
        ent_coef=0.1,
    ),
    "steps": dataclasses.replace(
        _SMALL,
        estimator="td_error",
        value_target="td0",
        value_data="replay",
        optimizer="sgd",
        max_grad_norm=None,
    ),
    "returns": dataclasses.replace(
        _SMALL,
        collect="episodes",
        estimator="reward_to_go",
        value_target="monte_carlo",
        optimizer="rmsprop",
        max_grad_norm=None,
    ),
    "absolute": dataclasses.replace(  # Ψ as it is: to normalise it would take a common factor away
        _SMALL, collect="episodes", reduction="trajectories", discounting="absolute"
    ),
    "other decay rates": dataclasses.replace(_SMALL, adam_b1=0.8, adam_b2=0.95),
    "constant": dataclasses.replace(
        _SMALL, collect="episodes", estimator="reward_to_go", baseline="constant"
    ),
    "group": dataclasses.replace(
        _SMALL,
        collect="episodes",
        estimator="reward_to_go",
        baseline="group",
        group_std=True,
        reduction="trajectory_means",
    ),
    "shared": dataclasses.replace(_SMALL, networks="shared", value_steps=1),
    "orthogonal": dataclasses.replace(_SMALL, init="orthogonal"),
    "gaussian": dataclasses.replace(_SMALL, env="Pendulum-v1"),
    "squashed": dataclasses.replace(_SMALL, env="Pendulum-v1", squash=True, ent_coef=0.1),
    "masked": dataclasses.replace(_SMALL, env=DIALS, ent_coef=0.1, normalize_obs=True),
    "parameters": dataclasses.replace(
        _SMALL,
        env_params=EnvParams({"masspole": 0.3, "length": 0.8, "force_mag": 7.0, "tau": 0.05}),
    ),
    "npg": dataclasses.replace(_SMALL, env="Pendulum-v1", fit="npg", cg_steps=5),
    "trpo": _TRPO,
    "trpo, entropy": dataclasses.replace(_TRPO, ent_coef=1.0, max_kl=0.3),
    "ppo": _PPO,
    "penalty": dataclasses.replace(_PPO, fit="ppo_penalty"),
    "least penalty": dataclasses.replace(
        _PPO, fit="ppo_penalty", kl_coef=2.0**-40, desired_kl=10.0
    ),
    "penalty joint": dataclasses.replace(_PPO, fit="ppo_penalty", joint_loss=True, vf_coef=0.3),
    "ppo stops": dataclasses.replace(_PPO, target_kl=0.1),
    "ppo joint": dataclasses.replace(_PPO, joint_loss=True, vf_coef=0.3),
    "moments": dataclasses.replace(
        _PPO, joint_loss=True, normalize_obs=True, normalize_reward=True, max_grad_norm=None
    ),
    "moments of episodes": dataclasses.replace(
        _SMALL, collect="episodes", normalize_obs=True, normalize_reward=True
    ),
    "images": dataclasses.replace(
        _SMALL, env="Catch-bsuite", conv_features=(3, 2), hidden_sizes=(5,), frame_stack=2
    ),
    "frames": dataclasses.replace(_SMALL, frame_stack=3),
}
"""Small configs that between them do everything a fault can spoil."""
EXACT = tuple(level for level in LEVELS if "float32" not in level.name)
"""The levels that are tried: those in float32 see nothing that these do not."""
FAULTS = (
    *start.FAULTS,
    *distributions.FAULTS,
    *advantages.FAULTS,
    *losses.FAULTS,
    *update.FAULTS,
    *natural.FAULTS,
    *ppo.FAULTS,
    *penalty.FAULTS,
    *statistics.FAULTS,
    *images.FAULTS,
    *environment.FAULTS,
)


class Catch(NamedTuple):
    """How a fault was seen."""

    fault: str
    description: str
    control: str
    level: str | None  # the first that fails; None: the fault passes them all
    where: str  # leaf; in a run update, step and tensor. Without a level: what is wrong
    error: float  # relative; inf where shapes or names tell, or it raises
    seconds: float


def examine(fault: Fault, levels: Sequence[Level] = EXACT) -> Catch:
    """Plant a fault and run the levels until one fails; each must pass without the fault."""
    began, config = time.perf_counter(), CONTROLS[fault.control]

    def catch(level: str | None, where: str, error: float) -> Catch:
        seconds = round(time.perf_counter() - began, 2)
        names = (fault.name, fault.description, fault.control)
        return Catch(*names, level, where, error, seconds)

    for level in levels:
        sound = attempt(level, config, 0)
        if not sound.passed:
            return catch(None, f"{level.name} fails without the fault: {sound.where}", sound.error)
        with fault.plant():
            found = attempt(level, config, 0)
        if found.raised:  # what has rotted is no fault, and nothing has compared it
            return catch(None, f"it raises: {found.where}", found.error)
        if not found.passed:
            return catch(level.name, found.where, found.error)
    return catch(None, "not caught", 0.0)
