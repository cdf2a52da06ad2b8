"""The commands about environments: envs, check-env."""

import dataclasses
import itertools
from typing import Annotated

from tyro.conf import Positional, arg

from jaxpg import suites
from jaxpg.cli import machine
from jaxpg.core.config import OWN_PARAMS, Config, EnvParams


@dataclasses.dataclass(frozen=True)
class Envs:
    """List the environments that are installed, what they observe and do, and their time limits."""

    suite: Annotated[str, Positional, arg(metavar="[SUITE]")] = ""
    """One suite: gymnax, brax, …; all that are installed if not given."""


def envs(options: Envs) -> None:
    """jaxpg envs."""
    machine.prepare(Config())
    from jaxpg.envs import listing

    chosen = [options.suite] if options.suite else listing.installed()
    listed = [listing.listed(name) for name in chosen]
    print(f"{'environment':31}  {_row('observes', 'acts', 'steps at most')}")
    for found in itertools.chain(*listed):
        row = found.refused or _row(found.observes, found.acts, found.time_limit)
        print(f"{found.name:31}  {row}", flush=True)
    if not options.suite:
        for name, suite in suites.SUITES.items():
            if not suites.is_installed(name):
                print(f"{name}: {suite.says}; pip install 'jaxpg[{name}]'")


def _row(observes: str, acts: str, limit: str) -> str:
    return f"{observes:18}  {acts:12}  {limit}"


@dataclasses.dataclass(frozen=True)
class CheckEnv:
    """Act in an environment at random, and say whether it keeps the contract that training needs.

    Termination and truncation apart, the true last observation, no reset within a step, shapes
    and types that stay, everything decided by a key, every number finite.
    """

    name: Annotated[str, Positional, arg(metavar="NAME")]
    """A name as --env takes it, one of your own too."""
    env_params: EnvParams = OWN_PARAMS
    """Parameters of it that are not its own defaults, as gravity=12."""
    max_episode_steps: int | None = None
    """Time limit of an episode in steps; the environment's own if not given."""
    steps: int = 1_000
    """Steps that each of 8 copies takes."""
    seed: int = 0
    """Seed of their random actions."""


def check_env(options: CheckEnv) -> None:
    """jaxpg check-env."""
    machine.prepare(Config())
    from jaxpg.envs import check

    found = check.check_env(
        options.name,
        max_episode_steps=options.max_episode_steps,
        env_params=options.env_params,
        steps=options.steps,
        seed=options.seed,
    )
    ended = f"{found.terminated:,} episodes terminated, {found.truncated:,} truncated"
    print(f"{options.name}: {found.steps:,} steps, {ended}; nothing is wrong")
    if not found.terminated + found.truncated:
        print("no episode ended in them: endings were seen only with a time limit of 5 steps")
