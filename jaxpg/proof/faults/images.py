"""Faults of convolutions and of stacked observations."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from jaxpg.proof.faults.plants import Plant, of, wrap
from torch_ref import algorithms, dynamics, networks, wrappers


def channels_before_the_pixels() -> Plant:
    """An observation [height, width, channels] is read as [channels, height, width]."""

    def channels_first(x: torch.Tensor) -> torch.Tensor:
        count, height, width, channels = x.shape
        return x.reshape(count, channels, height, width)

    return mock.patch.object(networks, "_channels_first", channels_first)


def height_and_width_exchanged() -> Plant:
    """Convolutions see an image lying on its side."""
    return mock.patch.object(networks, "_channels_first", lambda x: x.permute(0, 3, 2, 1))


def features_flattened_by_channel() -> Plant:
    """The hidden layer is given torch's order of features, [features, height, width]."""
    return mock.patch.object(networks, "_channels_last", lambda x: x)


def kernel_turned_around() -> Plant:
    """A true convolution, whose kernel is turned by half a turn."""
    return wrap(
        torch.nn.functional,
        "conv2d",
        lambda original, x, weight, *rest: original(x, weight.flip(2, 3), *rest),
    )


def kernel_of_a_convolution_by_channel() -> Plant:
    """A convolution's first kernel is drawn as [in, 3, 3, out]."""

    def weight(original: Callable, kernel: torch.Tensor, name: str) -> torch.Tensor:
        if not name.startswith("conv"):
            return original(kernel, name)
        size, features = networks.KERNEL, kernel.shape[1]
        return kernel.reshape(-1, size, size, features).permute(3, 0, 1, 2)

    return wrap(networks, "_weight", weight)


def convolutions_without_a_nonlinearity() -> Plant:
    """The activation comes after hidden layers alone."""

    def init_mlp(original: Callable, *inputs: Any, **choices: Any) -> Any:
        mlp = original(*inputs, **choices)
        for name, layer in mlp.named_children():
            if name.startswith("conv_tanh"):
                layer.forward = algorithms.as_it_is
        return mlp

    return wrap(networks, "init_mlp", init_mlp)


def fan_in_of_the_channels_alone() -> Plant:
    """A convolution starts as wide as if its kernel were one pixel."""

    def weight(original: Callable, kernel: torch.Tensor, name: str) -> torch.Tensor:
        wider = networks.KERNEL if name.startswith("conv") else 1
        return wider * original(kernel, name)

    return wrap(networks, "_weight", weight)


def _stacked(change: Callable[..., Any]) -> Plant:
    """The environment that stacks becomes change(itself, how many it stacks)."""

    def stack(original: Callable, world: Any, count: int) -> Any:
        return change(original(world, count), count)

    return wrap(wrappers, "stack_frames", stack)


def newest_frame_first() -> Plant:
    """What was observed last comes first."""

    def change(world: Any, count: int) -> Any:
        def turned(state: Any) -> Any:
            frames = wrappers.frames(state.obs, world.spec, count).flip(2)
            return state._replace(obs=frames.reshape(state.obs.shape))

        def step(key: Any, state: Any, action: torch.Tensor) -> tuple:
            after, *rest = world.step(key, turned(state), action)
            return turned(after), *rest

        return world._replace(
            reset=lambda *inputs: turned(world.reset(*inputs)),
            step=step,
            restart=lambda state, *inputs: turned(world.restart(turned(state), *inputs)),
        )

    return _stacked(change)


def frames_beside_one_another() -> Plant:
    """Stacked vectors are interleaved: the first entry of each, the second of each."""

    def frames(obs: torch.Tensor, spec: Any, count: int) -> torch.Tensor:
        return obs.reshape(len(obs), 1, -1, count).swapaxes(2, 3)

    return mock.patch.object(wrappers, "frames", frames)


def frames_of_the_episode_before() -> Plant:
    """A new episode begins with its first observation behind those of the last one."""

    def change(world: Any, count: int) -> Any:
        def restart(state: Any, done: torch.Tensor, noise: Any) -> Any:
            fresh = world.restart(state, done, noise)
            kept = wrappers.frames(state.obs, world.spec, count)[:, :, 1:]
            new = wrappers.frames(fresh.obs, world.spec, count)[:, :, -1:]
            obs = torch.cat([kept, new], dim=2).reshape(state.obs.shape)
            return fresh._replace(obs=torch.where(done[:, None], obs, state.obs))

        return world._replace(restart=restart)

    return _stacked(change)


def zeros_before_the_first_frame() -> Plant:
    """What would have been before an episode is zero, not its first observation."""

    def change(world: Any, count: int) -> Any:
        def emptied(state: Any, fresh: torch.Tensor) -> Any:
            frames = wrappers.frames(state.obs, world.spec, count).clone()
            frames[fresh, :, :-1] = 0.0
            return state._replace(obs=frames.reshape(state.obs.shape))

        def reset(*inputs: Any) -> Any:
            state = world.reset(*inputs)
            return emptied(state, state.time == 0)

        return world._replace(
            reset=reset,
            restart=lambda state, done, noise: emptied(world.restart(state, done, noise), done),
        )

    return _stacked(change)


def ball_in_four_columns() -> Plant:
    """Catch's ball begins in one of four columns."""

    def catch(original: Callable, *inputs: Any) -> Any:
        world = original(*inputs)
        return world._replace(reset=lambda noise, *rest: world.reset(0.8 * noise, *rest))

    return wrap(dynamics, "catch", catch)


FAULTS = (
    *of(
        "images",
        channels_before_the_pixels,
        height_and_width_exchanged,
        features_flattened_by_channel,
        kernel_turned_around,
        kernel_of_a_convolution_by_channel,
        convolutions_without_a_nonlinearity,
        fan_in_of_the_channels_alone,
    ),
    *of(
        "frames",
        newest_frame_first,
        frames_beside_one_another,
        frames_of_the_episode_before,
        zeros_before_the_first_frame,
    ),
    *of("images", ball_in_four_columns),
)
