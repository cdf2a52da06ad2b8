"""`python -m torch_ref.train`: train one seed, on CartPole or any gymnasium environment."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch
import tyro

from torch_ref import noise, ring
from torch_ref.config import Config, ConfigError, EnvParams, parse_env_params
from torch_ref.presets import PRESETS, preset
from torch_ref.rules import validate
from torch_ref.training import updates


@dataclasses.dataclass(frozen=True)
class Options:
    """Train one seed of a preset and print its return."""

    config: tyro.conf.OmitArgPrefixes[Config]
    seed: int = 0
    """An integer in [0, 2^32)."""
    out: Path | None = None
    """File for the trained state_dict, as torch.save writes it; must not exist."""


REGISTRY = tyro.constructors.ConstructorRegistry()


@REGISTRY.primitive_rule
def _env_params(info: Any) -> Any:
    """How EnvParams are given."""
    if info.type is not EnvParams:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE [NAME=VALUE ...]]",
        instance_from_str=parse_env_params,
        is_instance=lambda x: isinstance(x, EnvParams),
        str_from_instance=lambda x: [f"{name}={value}" for name, value in x.items()],
    )


def main(arguments: list[str]) -> None:
    """Run the command; exits with 2 after one sentence on what was wrong."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    try:
        with REGISTRY:
            options = tyro.cli(
                Options,
                prog=f"python -m torch_ref.train {name or '[PRESET]'}",
                description=f"Train one seed in PyTorch. Presets: {', '.join(PRESETS)} (default: "
                "vpg). Example: "
                "python -m torch_ref.train vpg --env Acrobot-v1 --seed 3 --out acrobot.pt",
                args=arguments[1:] if name else arguments,
                default=Options(config=preset(name or "vpg")),
                config=(tyro.conf.AvoidSubcommands,),
            )
        _train(options)
    except ConfigError as error:
        print(f"torch_ref.train: {error}", file=sys.stderr)
        sys.exit(2)


def _train(options: Options) -> None:
    config = validate(options.config)
    key = noise.key(options.seed)
    if options.out is not None and options.out.exists():
        raise ConfigError(f"--out must not exist; {options.out} does")
    if options.out is not None:
        try:  # before it trains for nothing
            options.out.touch(exist_ok=False)
            options.out.unlink()
        except OSError as error:
            raise ConfigError(
                f"--out must be a file that can be written; {options.out} is not ({error.strerror})"
            ) from None
    began, env_steps, shown = time.perf_counter(), 0, 0
    for state, metrics in updates(config, key):
        env_steps += int(metrics.env_steps)
        if not all(leaf.isfinite().all() for leaf in state.params.state_dict().values()):
            raise ConfigError(
                f"it diverged: after update {state.update} of {config.num_updates} parameters are "
                "not finite; nothing is written"
            )
        if 20 * state.update // config.num_updates > shown:
            shown = 20 * state.update // config.num_updates
            speed = env_steps / (time.perf_counter() - began)
            recent = state.recent_returns
            score = f"{float(ring.mean(recent)):.1f}" if recent.filled else "none yet"
            print(
                f"{state.update / config.num_updates:4.0%}  {env_steps:,} steps  "
                f"{speed:,.0f} steps/s  return {score}",
                flush=True,
            )
    if options.out is not None:
        torch.save(state.params.state_dict(), options.out)
        print(f"state_dict written to {options.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
