"""An algorithm of one's own: the function that makes it, its options, its source. Imports no jax.

The function makes an Algorithm of a config, as jaxpg.build does. Its parameters beside the config
are its options: those that have a number, true or false as their default, or are annotated so.
Fractions are traced, integers and true or false are static. In a setting an option is called
option.NAME.
"""

import hashlib
import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxpg import suites, words
from jaxpg.core.config import (
    OWN_PARAMS,
    Config,
    ConfigError,
    EnvParams,
    named_words,
    nearest,
    parse_env_param,
    with_types,
)
from jaxpg.population import contents

if TYPE_CHECKING:  # which imports jax
    from jaxpg.core.types import Algorithm

Build = Callable[..., "Algorithm"]  # (config, **options)
OPTION = "option."  # what an option's name begins with, beside fields
KINDS = (float, int, bool)
JAXPG = "jaxpg.fast:build"


class Source(NamedTuple):
    """Where a function comes from."""

    name: str  # MODULE:FUNCTION; then #HASH, of what no module has under that name
    sha256: str | None  # of the module's file, or of its code where there is none, as in a notebook

    @property
    def said(self) -> str:
        """What it is called, for people."""
        return re.sub("#[0-9a-f]{12}", "", self.name)


def find(name: str | None, given: Mapping[str, Any] = OWN_PARAMS) -> Build:
    """The function that makes an algorithm, imported, with its options as they are given.

    Args:
      name: MODULE:FUNCTION; None for jaxpg's.

    Raises:
      ConfigError: if there is no such function, or it has no such options.
    """
    if name is None:
        if given:
            raise ConfigError("--option is of an algorithm of one's own: --algorithm is missing")
        from jaxpg import fast  # late, for it brings jax

        return fast.build
    function = imported(name, "--algorithm")
    if not inspect.isfunction(function) and not isinstance(function, partial):
        raise ConfigError(f"--algorithm must be a function, which can be named; {name} is none")
    found = source(function)
    if found is not None and not is_importable(found.name):
        raise ConfigError(
            "--algorithm must be what its module has under its own name, given numbers alone; "
            f"{name} is {found.said} to Python, as what another function has made, or "
            "functools.wraps has named"
        )
    if not given:
        return function
    return partial(function, **checked(with_types(name, EnvParams(given), _kinds(function))))


def check_made(build: Build, made: Any, config: Config) -> None:
    """Raise ConfigError unless what it has made of a config is an Algorithm, whose policy network
    gives what jaxpg's distribution takes, and whose optimizer gives what the parameters are to go
    against; a fit of one's own may do otherwise."""
    from jaxpg.core.types import Algorithm  # late, for it brings jax

    if not isinstance(made, Algorithm):
        raise ConfigError(
            f"{_name(build)} must make an Algorithm of a config, as jaxpg.build does; it returned "
            f"{made!r:.60}"
        )
    if source(build) is None:
        return
    params = _params(made, config)
    if is_ours(made.distribution.sample):
        _check_outputs(build, made, params, config)
    if is_ours(made.fit) and _descends_by_itself(made, params, config):
        raise ConfigError(
            f"the optimizer of {_name(build)} already flips the gradient's sign, and jaxpg "
            "subtracts its result, so training would climb: use optax.scale_by_adam(), not "
            "optax.adam(rate)"
        )


def is_ours(part: Callable[..., Any]) -> bool:
    """Whether a function is jaxpg's, maybe with some of its arguments bound."""
    return getattr(getattr(part, "func", part), "__module__", "").startswith("jaxpg.")


def _params(algorithm: Any, config: Config) -> Any:
    """The shapes of the parameters that a seed starts with."""
    import jax  # late

    from jaxpg.core import learner, noise

    return jax.eval_shape(partial(learner.init, config, algorithm=algorithm), noise.key(0)).params


def _check_outputs(build: Build, made: Any, params: Any, config: Config) -> None:
    """Raise ConfigError unless the policy network has as many outputs as actions need: others
    would be broadcast, or be actions that there are not."""
    import jax  # late

    spec = made.env.spec
    obs = jax.ShapeDtypeStruct((1, spec.obs_size), config.float_type)
    outputs = jax.eval_shape(made.networks.policy, params, obs)
    found = getattr(outputs, "shape", None)
    what = "a logit for each" if spec.discrete else "a mean and a log σ for each"
    wanted = spec.num_actions * (1 if spec.discrete else 2)
    if found != (1, wanted):
        raise ConfigError(
            f"the policy network of {_name(build)} must give {wanted} numbers for an observation, "
            f"{what} of {spec.num_actions} actions; of one it gives "
            f"{type(outputs).__name__ if found is None else list(found)}"
        )


def _descends_by_itself(algorithm: Any, params: Any, config: Config) -> bool:
    """Whether its optimizer answers gradients of ones with directions that are, on the whole,
    negative; the first may be 0, where a rate warms up."""
    import jax  # late
    import jax.numpy as jnp

    from jaxpg.core import learner

    optimizer, total = algorithm.optimizer(config), 0.0
    for group in learner.groups(config, params).values():
        ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), group)
        _, after = optimizer.update(ones, optimizer.init(ones), ones)
        direction, _ = optimizer.update(ones, after, ones)
        total += float(sum(x.sum() for x in jax.tree.leaves(direction)))
    return total < 0.0


def imported(name: str, whose: str) -> Callable[..., Any]:
    """The function called MODULE:FUNCTION.

    Args:
      whose: it is, for the message.

    Raises:
      ConfigError: if there is none.
    """
    module, _, path = name.partition(":")
    if not module or not path:
        raise ConfigError(f"{whose} must be MODULE:FUNCTION; got {name!r}")
    try:
        thing: Any = importlib.import_module(module)
    except Exception as error:  # whatever its code raises
        reason = words.raised(error)
        raise ConfigError(
            f"module {module!r} of {whose} {name} cannot be imported ({reason}); it must be "
            "installed, or in a folder that PYTHONPATH names"
        ) from error
    functions = [key for key, value in vars(thing).items() if inspect.isfunction(value)]
    for part in path.split("."):
        thing = getattr(thing, part, None)
    if not callable(thing):
        raise ConfigError(f"module {module!r} has no function {path!r}{nearest(path, functions)}")
    return thing


def is_importable(name: str) -> bool:
    """Whether what is called so may be in a module, and not in a function, script or notebook."""
    return not any(x in name for x in "<#") and not name.startswith("__main__:")


def source(build: Build) -> Source | None:
    """Where what makes an algorithm comes from; None if it is jaxpg's own.

    What `functools.partial` has given it that is no option, and so in no manifest, is in the name,
    which nobody can import then; and so is a hash of a function that its module has not under its
    name, as one that another function has made.
    """
    function = _unwrapped(build)
    kind = type(function)
    module, name = (
        getattr(function, at, getattr(kind, at)) for at in ("__module__", "__qualname__")
    )
    there = sys.modules.get(module)
    named: Any = there
    for part in name.split("."):
        named = getattr(named, part, None)
    is_named = named is function
    if is_named and f"{module}:{name}" == JAXPG and not _unrecorded(build):
        return None
    suffix = "" if is_named else f"#{contents.hash_of(function)[:12]}"
    sha256 = _sha256(getattr(there, "__file__", None)) or contents.hash_of(function)
    return Source(f"{module}:{name}{suffix}{_unrecorded(build)}", sha256)


def env_sha256(name: str) -> str | None:
    """Of the files with the classes of an environment of one's own and of its wrappers, and of the
    MODULE of its name, which may register another's with values of its own; of those in a script
    or notebook of what they and their bases define, without the globals that they use; None of
    gymnax's and of a suite's."""
    if suites.has(name):
        return None
    from jaxpg.world import find  # late, for it brings jax

    classes = find(name).classes
    registers = {name.rpartition(":")[0]} - {""}
    modules = sorted(registers | {one.__module__ for one in classes} - {"__main__"})
    theirs = [x for x in modules if x.partition(".")[0] not in ("gymnax", "jaxpg")]
    found = [_sha256(getattr(sys.modules.get(module), "__file__", None)) for module in theirs]
    theirs_too = dict.fromkeys(base for one in classes for base in one.__mro__)
    found += [contents.hash_of(_defined(x)) for x in theirs_too if x.__module__ == "__main__"]
    known = [sha256 for sha256 in found if sha256 is not None]
    if len(known) > 1:
        return hashlib.sha256("".join(known).encode()).hexdigest()
    return known[0] if known else None


def _defined(kind: type) -> dict[str, Any]:
    """What a class statement says, without what Python adds to it."""
    added = ("__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "__dict__",
             "__weakref__", "__abstractmethods__", "_abc_impl")  # fmt: skip
    return {name: x for name, x in vars(kind).items() if name not in added}


def _unwrapped(build: Build) -> Build:
    """The function within `functools.partial`."""
    while isinstance(build, partial):
        build = build.func
    return build


def _unrecorded(build: Build) -> str:
    """<kind='other'>, of what is bound to it that is no option; nothing if all is."""
    bound: dict[str, Any] = {}
    positions: list[Any] = []
    while isinstance(build, partial):
        bound, positions = {**build.keywords, **bound}, [*build.args, *positions]
        build = build.func
    other = [_short(x) for x in positions]
    other += [f"{name}={_short(x)}" for name, x in bound.items() if type(_plain(x)) not in KINDS]
    return f"<{', '.join(other)}>" if other else ""


def _short(value: Any) -> str:
    """A value in a few characters, the same in every process; with a hash if they are not all."""
    whole = words.line(repr(value))
    text = re.sub(r" at 0x[0-9a-f]+", "", whole)
    is_all = text == whole and len(text) <= 60 and not hasattr(value, "shape")
    return text if is_all else f"{text[:60]}#{contents.hash_of(value)[:12]}"


def _plain(value: Any) -> Any:
    """Python's number for numpy's or jax's."""
    return value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value


def options(build: Build) -> EnvParams:
    """All options of what makes an algorithm, as they are where no setting says otherwise.

    Raises:
      ConfigError: if one has no value.
    """
    parameters = _parameters(build)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty:
            raise ConfigError(
                f"{_name(build)} must be given {name!r}: --option {name}=VALUE, or in Python "
                f"functools.partial of it with {name}=VALUE"
            )
    defaults = {name: _plain(parameter.default) for name, parameter in parameters.items()}
    values = {name: default for name, default in defaults.items() if type(default) in KINDS}
    return checked(with_types(_name(build), EnvParams(values), _kinds(build)))


def with_setting(base: EnvParams, setting: Mapping[str, Any]) -> EnvParams:
    """The options with a setting's values of them.

    Raises:
      ConfigError: if there is no such option, or it is static, or its value is no number.
    """
    own = {name: value for name, value in setting.items() if name.startswith(OPTION)}
    for name in own:
        if name.removeprefix(OPTION) in base.static:
            raise ConfigError(
                f"{name} is static, each value a program of its own: it cannot be a setting"
            )
    return EnvParams({**base, **typed(base, own)}, base.static)


def typed(base: EnvParams, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of options, by name as in a setting, by their own names and with their own types.

    Raises:
      ConfigError: if there is no such option, or it is of another type.
    """
    if values and not base:
        raise ConfigError(
            f"{next(iter(values))} is an option of an algorithm of one's own (--algorithm, or "
            "build=…), and this one has none"
        )
    given = EnvParams({name.removeprefix(OPTION): _plain(x) for name, x in values.items()})
    kinds = {name: type(x) for name, x in base.items()}
    return checked(with_types("the algorithm", given, kinds))


def fixed(build: Build, values: Mapping[str, Any]) -> Build:
    """What makes the algorithm, with those of these values that are options, by name as in a
    setting."""
    own = {name: value for name, value in values.items() if name.startswith(OPTION)}
    return partial(build, **typed(options(build), own)) if own else build


def checked(values: EnvParams) -> EnvParams:
    """The options, if they are numbers, true or false.

    Raises:
      ConfigError: if one is not, or not finite.
    """
    for name, value in values.items():
        if type(value) not in KINDS or not math.isfinite(value):
            raise ConfigError(
                f"option {name} must be a finite number, true or false; got {value!r:.60}"
            )
    return values


def parse(entries: Sequence[str]) -> dict[str, Any]:
    """The options of 'scale=0.5', 'depth=2', 'clip=true'.

    Raises:
      ConfigError: if an entry is none, or a name is given twice.
    """
    named = named_words(entries, "--option")
    return {name: parse_env_param(f"--option {name}", word) for name, word in named.items()}


def _parameters(build: Build) -> dict[str, inspect.Parameter]:
    """Those beside the config, by name.

    Raises:
      ConfigError: if it takes no config.
    """
    try:
        every = list(inspect.signature(build).parameters.values())
    except ValueError:  # it is not written in Python
        return {}
    if not every:
        raise ConfigError(f"{_name(build)} must take a config, as jaxpg.build does")
    _, *found = every
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name: parameter for parameter in found if parameter.kind in named}


def _kinds(build: Build) -> dict[str, type]:
    """The type of each option: what it is annotated with, or its default's; of one that has neither
    what is bound to it."""
    kinds: dict[Any, type] = {name: kind for kind in KINDS for name in (kind, kind.__name__)}
    bound = _parameters(build)
    found = {
        name: kinds.get(parameter.annotation)
        or kinds.get(type(_plain(parameter.default)))
        or kinds.get(type(_plain(bound[name].default) if name in bound else None))
        for name, parameter in _parameters(_unwrapped(build)).items()
    }
    return {name: kind for name, kind in found.items() if kind}


def _name(build: Build) -> str:
    found = source(build)
    return JAXPG if found is None else found.said


def _sha256(path: str | None) -> str | None:
    try:
        return hashlib.sha256(Path(path or "").read_bytes()).hexdigest()
    except OSError:  # it came from an archive, or nowhere
        return None
