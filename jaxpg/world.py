"""What stands behind an environment's name: gymnax's environment, its parameters, its spaces.

torch_ref has no twin of this: what it trains in is written down there, or gymnasium's. gymnax is
imported late, because that starts the JAX backend.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpg import suites, words
from jaxpg.core.config import ConfigError, EnvParams, nearest, with_types
from jaxpg.later import import_matplotlib, imported_later


class Known(NamedTuple):
    """What is known of an environment, beyond what gymnax says."""

    min_episode_steps: int = 1  # with its own parameters no actions end an episode sooner
    uniforms: int = 0  # draws that `place` consumes; 0: a reset consumes a key
    # A start that another library can reproduce to the bit, unlike uniform(minval, maxval):
    place: Callable[..., Any] | None = None  # (uniform [uniforms]) -> gymnax state
    made_with: dict[str, Any] = {}  # noqa: RUF012  # of one made otherwise nothing is known


class World(NamedTuple):
    """An environment, as gymnax has it."""

    name: str  # without a module
    gym: Any  # gymnax's environment
    params: Any  # its parameters

    @property
    def obs_space(self) -> Any:
        """Of observations, gymnax's."""
        return _outside_of_a_trace(self.gym.observation_space, self.params)

    @property
    def action_space(self) -> Any:
        """Of actions, gymnax's."""
        return _outside_of_a_trace(self.gym.action_space, self.params)

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Of one observation; () where it is one of n."""
        return () if hasattr(self.obs_space, "n") else tuple(self.obs_space.shape)

    @property
    def masks_actions(self) -> bool:
        """Whether an observation ends with which actions are allowed."""
        return getattr(self.gym, "masks_actions", False)

    @property
    def time_limit(self) -> Any:
        """Its own, of its own type; None if it has none."""
        return getattr(self.params, "max_steps_in_episode", None)

    @property
    def known(self) -> Known:
        """What is known of it, which may be nothing."""
        found = KNOWN.get(f"{type(self.gym).__module__}.{type(self.gym).__name__}", Known())
        own = {name: getattr(self.gym, name, None) for name in found.made_with}
        return found if own == found.made_with else Known()

    @property
    def follow(self) -> tuple[tuple[str, str, Callable[[Any], Any]], ...]:
        """Its parameters that are made of others: each one's name, and how, in words and in code.

        They are so wherever the parameters are, as in an environment with other rewards.
        """
        kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(self.params).__mro__]
        return next((FOLLOW[kind] for kind in kinds if kind in FOLLOW), ())

    def with_params(self, given: Mapping[str, Any]) -> "World":
        """With some of its parameters replaced, and those that are made of them."""
        if not given:
            return self
        params = self.params.replace(**given)
        followed = {key: made(params) for key, _, made in self.follow}
        return self._replace(params=params.replace(**followed))

    def with_time_limit(self, steps: int | None) -> "World":
        """Of the type that its own has: some have it as a float, or an array, and must.

        None leaves it as it is.
        """
        own = self.time_limit
        if own is None or steps is None:
            return self
        is_number = isinstance(own, int | float)
        limit = type(own)(steps) if is_number else jnp.asarray(steps, own.dtype)
        return self._replace(params=self.params.replace(max_steps_in_episode=limit))

    def typed(self, env_params: EnvParams) -> EnvParams:
        """Those of its own types; the time limit is a field of the config.

        Raises:
          ConfigError: if it has no such parameters.
        """
        if not env_params:
            return env_params
        follow = {key: formula for key, formula, _ in self.follow}
        found = vars(self.params) if hasattr(self.params, "replace") else {}
        declared = getattr(type(self.params), "__annotations__", {})
        kinds = {
            key: kind
            for key, x in found.items()
            if key not in (*follow, "max_steps_in_episode")
            and (kind := _kind(x, declared.get(key))) is not None
        }
        return with_types(self.name, env_params, kinds, follow)

    @property
    def classes(self) -> list[type]:
        """What it is made of: its wrappers, the outermost first, and itself."""
        gym, found = self.gym, [type(self.gym)]
        while hasattr(gym, "_env"):
            gym = gym._env
            found.append(type(gym))
        return found


@jax.ensure_compile_time_eval()  # modules and environments keep arrays: not those of a jit's trace
@jax.transfer_guard("allow")  # which a user's guard is not about
def find(name: str) -> World:
    """The environment that is called so.

    Raises:
      ConfigError: if there is none, or it cannot be made here.
    """
    import_matplotlib()
    with imported_later("seaborn", "matplotlib.pyplot"):
        import gymnax

    if suites.has(name):
        return World(name, *suites.made(name))
    module, _, name = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever its code raises
            reason = words.raised(error)
            raise ConfigError(
                f"module {module!r} of environment '{module}:{name}' cannot be imported ({reason})"
            ) from error
        _check_whose(module, name)
    if name not in gymnax.registered_envs:
        import gymnasium  # which gymnax has imported

        has = name in gymnasium.registry
        where = ", but python -m torch_ref.train trains gymnasium's of that name" if has else ""
        hint = nearest(name, gymnax.registered_envs)
        raise ConfigError(f"unknown environment {name!r}{where}{hint}")
    try:
        # Some draw here: whatever the process has set, the same.
        with jax.default_prng_impl("threefry2x32"), jax.threefry_partitionable(True):
            made = gymnax.make(name)
        return World(name, *made)
    except OSError as error:  # MNISTBandit-bsuite downloads its images
        raise ConfigError(f"{name} could not be made: {error}") from error


def _check_whose(module: str, name: str) -> None:
    """Raise ConfigError if a module has an environment of that name that is not the one which is
    registered: another module's, which came before."""
    from gymnax import registration

    registered = getattr(registration, "_registry", {}).get(name)
    theirs = getattr(registered, "__module__", module)
    own = getattr(sys.modules[module], getattr(registered, "__qualname__", ""), registered)
    if theirs != module and own is not registered:
        raise ConfigError(
            f"{name!r} is registered as that of {theirs}, and {module} has one, too: give one of "
            "them another name"
        )


@contextmanager
def explained(name: str, float_type: str, env_params: EnvParams) -> Iterator[None]:
    """Where an environment's code is traced: what it raises is a ConfigError if it is known why."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # whatever its code raises
        if env_params.traced and isinstance(error, jax.errors.ConcretizationTypeError):
            raise ConfigError(
                f"{name} decides in Python by a parameter, so env_params cannot have all of "
                f"{', '.join(env_params.traced)}"
            ) from error
        reason = str(error).partition("\n")[0]
        if float_type != "float32" and isinstance(error, TypeError):  # it mixes 32 and 64 bits
            raise ConfigError(f"{name} only runs with arithmetic='float32' ({reason})") from error
        if suites.has(name):
            raise ConfigError(f"{name} does not run here ({reason})") from error
        raise


@jax.ensure_compile_time_eval()
@jax.transfer_guard("allow")
def _outside_of_a_trace(space: Callable, params: Any) -> Any:
    return space(params)


def _kind(x: Any, declared: Any) -> type | None:
    """float, int or bool, of a single number of Python, numpy or jax; None of anything else."""
    if declared in (float, "float") and type(x) is int:
        return float
    if type(x) in (float, int, bool):
        return type(x)
    if getattr(x, "shape", None) != ():
        return None
    kinds = {jnp.floating: float, jnp.integer: int, jnp.bool_: bool}
    return next((kind for dtype, kind in kinds.items() if jnp.issubdtype(x.dtype, dtype)), None)


def _place_cartpole(uniform: jax.Array) -> Any:
    """Each of the four numbers in [-0.05, 0.05)."""
    from gymnax.environments.classic_control import cartpole

    x, x_dot, theta, theta_dot = (uniform - 0.5) * 0.1
    return cartpole.EnvState(time=0, x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot)


def _place_pendulum(uniform: jax.Array) -> Any:
    """Angle in [-π, π) and speed in [-1, 1)."""
    from gymnax.environments.classic_control import pendulum

    theta, theta_dot = (uniform - 0.5) * jnp.array([2.0 * math.pi, 2.0], uniform.dtype)
    return pendulum.EnvState(time=0, theta=theta, theta_dot=theta_dot, last_u=jnp.zeros(()))


def _place_catch(uniform: jax.Array) -> Any:
    """The ball in one of the columns of the top row, the paddle in the middle of the last."""
    from gymnax.environments.bsuite import catch

    ball_x = jnp.floor(uniform[0] * CATCH["columns"]).astype(jnp.int32)
    top, middle, last = map(jnp.int32, (0, CATCH["columns"] // 2, CATCH["rows"] - 1))
    return catch.EnvState(
        ball_x=ball_x, ball_y=top, paddle_x=middle, paddle_y=last, prev_done=False, time=0
    )


FOLLOW = {  # by class of the parameters
    "gymnax.environments.classic_control.cartpole.EnvParams": (
        ("total_mass", "masscart + masspole", lambda p: p.masscart + p.masspole),
        ("polemass_length", "masspole * length", lambda p: p.masspole * p.length),
    ),
}
CATCH = {"rows": 10, "columns": 5}
KNOWN = {  # by class: whatever else is registered under their names is another environment
    "gymnax.environments.classic_control.cartpole.CartPole": Known(8, 4, _place_cartpole),
    "gymnax.environments.classic_control.pendulum.Pendulum": Known(1, 2, _place_pendulum),
    "gymnax.environments.bsuite.catch.Catch": Known(
        CATCH["rows"] - 1, 1, _place_catch, made_with=CATCH
    ),
}
