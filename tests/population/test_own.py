"""Algorithms of one's own: their options, their source, and that options reach what is trained."""

import dataclasses
import functools
import hashlib
import json
import math
import operator
import os
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpg
from jaxpg import fast
from jaxpg.core.config import Config, ConfigError, EnvParams
from jaxpg.population import contents, own
from jaxpg.population.settings import expand, settled

TINY = Config(num_envs=2, num_steps=16, total_steps=32 * 3, hidden_sizes=(4,))


def scaled(config, scale: float = 1, shift=0.0, twice=False, layers: int = 1, note=None):
    """Ψ times a number, plus one."""
    algorithm = jaxpg.build(config)

    def advantage(*inputs, **coefficients):
        psi = scale * algorithm.advantage(*inputs, **coefficients) + shift
        return 2.0 * psi if twice else psi

    return algorithm._replace(advantage=advantage)


def needy(config, *, width: int, rate: "float"):
    """Options without defaults."""
    return jaxpg.build(config)


def test_options_are_parameters_that_are_numbers_of_the_types_that_they_say():
    found = own.options(scaled)
    assert found == {"scale": 1.0, "shift": 0.0, "twice": False, "layers": 1}
    assert type(found["scale"]) is float  # annotated so
    assert found.traced == {"scale": 1.0, "shift": 0.0}
    assert own.options(partial(scaled, scale=3, note="mine")) == {**found, "scale": 3.0}
    numpys = partial(scaled, scale=np.float64(3.0), twice=np.True_, layers=np.int64(2))
    assert own.options(numpys) == {**found, "scale": 3.0, "twice": True, "layers": 2}
    assert {type(x) for x in own.options(numpys).values()} == {float, bool, int}
    assert own.options(partial(scaled, shift=2)).traced == {"scale": 1.0, "shift": 2.0}
    for none in (fast.build, lambda config: None, lambda config, *args, **rest: None, dict):
        assert own.options(none) == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scael": 1.0}, "has no parameter 'scael'; did you mean 'scale'?"),
        ({"note": 1.0}, "has no parameter 'note'"),
        ({"twice": 1}, "twice of .*:scaled must be true or false; got 1"),
        ({"layers": 1.5}, "layers of .*:scaled must be an integer, which is static; got 1.5"),
        ({"scale": True}, "scale of .*:scaled must be a number; got True"),
        ({"scale": float("nan")}, "option scale must be a finite number, true or false; got nan"),
    ],
)
def test_options_that_a_function_has_not_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        own.find(f"{__name__}:scaled", given)


def test_an_option_without_a_value_is_asked_for():
    with pytest.raises(ConfigError, match=r":needy must be given 'rate': --option rate=VALUE"):
        own.options(own.find(f"{__name__}:needy", {"width": 3}))
    made = own.find(f"{__name__}:needy", {"width": 3, "rate": 2})
    assert own.options(made) == {"width": 3, "rate": 2.0}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"option.layers": 2}, "option.layers is static, each value a program of its own"),
        ({"option.depth": 2.0}, "has no parameter 'depth'"),
        ({"option.scale": "much"}, "option scale must be a finite number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, words):
    with pytest.raises(ConfigError, match=words):
        jaxpg.train_population(TINY, [1, 2], settings=[setting], lanes=2, build=scaled)


def test_an_algorithm_without_options_says_so():
    with pytest.raises(ConfigError, match=r"option\.scale is an option of an algorithm of one's"):
        jaxpg.train_population(TINY, [1, 2], settings=[{"option.scale": 2.0}], lanes=2)
    with pytest.raises(ConfigError, match="--algorithm is missing"):
        own.find(None, {"scale": 1.0})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine", "--algorithm must be MODULE:FUNCTION; got 'mine'"),
        (":build", "must be MODULE:FUNCTION"),
        ("no_such_module:build", r"cannot be imported \(ModuleNotFoundError: .*PYTHONPATH"),
        (f"{__name__}:scalde", "has no function 'scalde'; did you mean 'scaled'?"),
        (f"{__name__}:TINY", "has no function 'TINY'"),
        (f"{__name__}:Config", "--algorithm must be a function, which can be named"),
    ],
)
def test_functions_that_are_not_there_get_a_sentence(name, words):
    with pytest.raises(ConfigError, match=words):
        own.find(name)


def test_the_source_is_the_file_that_the_function_is_in():
    here = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    for build in (scaled, partial(scaled, scale=2.0), partial(partial(scaled), shift=1.0)):
        assert own.source(build) == own.Source(f"{__name__}:scaled", here)
    assert own.source(fast.build) is None
    for build in (partial(scaled, note="mine"), partial(partial(scaled, note="mine"), shift=1.0)):
        source = own.source(build)
        assert source == own.Source(f"{__name__}:scaled<note='mine'>", here)
        assert not own.is_importable(source.name)  # for no manifest says what the note was
    name = own.source(partial(scaled, note=needy)).name
    # In every process, and another one for another function:
    assert re.fullmatch(rf"{__name__}:scaled<note=<function needy>#[0-9a-f]{{12}}>", name)
    assert own.find(None) is fast.build

    def inner(config):
        return jaxpg.build(config)

    assert not own.is_importable(own.source(inner).name)
    assert not own.is_importable("__main__:scaled")
    inner.__module__ = "of_a_notebook"
    assert "of_a_notebook" not in sys.modules
    in_a_notebook = own.source(inner)
    assert in_a_notebook.name.startswith(f"of_a_notebook:{inner.__qualname__}#")
    assert in_a_notebook.sha256 == contents.hash_of(inner)


def made_of(number, table=()):
    def build(config):
        return number, table

    return build


@functools.wraps(scaled)
def another(config, scale=1.0):
    return jaxpg.build(config)


@functools.wraps(jaxpg.build)
def as_if_jaxpgs(config):
    return jaxpg.build(config)


class Maker:
    def __init__(self, table):
        self.table = table

    def build(self, config):
        return self.table


def test_what_differs_is_not_called_alike():
    """A directory would be taken for a run of the other, and its results for those asked for."""
    long, longer = np.arange(2000.0), np.arange(2000.0) + (np.arange(2000) == 1000)
    of_no_fields = [
        (operator.add, operator.sub),
        (math.sin, math.cos),
        (np.sin, np.cos),
        (range(3), range(4)),
        (slice(3), slice(4)),
        (Fraction(1, 2), Fraction(1, 3)),
        (Decimal("0.5"), Decimal("0.3")),
        (bytearray(b"a"), bytearray(b"b")),
    ]
    pairs = [
        (made_of(1.0), made_of(-3.0)),
        (made_of(1.0, long), made_of(1.0, longer)),
        (partial(scaled, note=[1.0] * 50), partial(scaled, note=[1.0] * 49 + [2.0])),
        (partial(scaled, note=long), partial(scaled, note=longer)),
        (partial(scaled, note=made_of(1.0)), partial(scaled, note=made_of(2.0))),
        (Maker(long).build, Maker(longer).build),
        (scaled, another),
        (lambda config: 1.0, lambda config: 2.0),
        *((made_of(one), made_of(other)) for one, other in of_no_fields),
    ]
    for one, other in pairs:
        assert own.source(one).name != own.source(other).name
    assert own.source(made_of(1.0, long)) == own.source(made_of(1.0, np.arange(2000.0)))
    assert own.source(Maker(long).build) == own.source(Maker(np.arange(2000.0)).build)
    assert own.source(as_if_jaxpgs) is not None
    looped = (seen := [], json)
    seen.append(looped)
    assert own.source(made_of(looped)) == own.source(made_of(looped))


def test_a_hash_is_the_same_in_every_process():
    program = (
        "import threading; import numpy as np; from jaxpg.population import contents\n"
        "def made(x):\n    return lambda y: (x, y in {'alpha', 'beta', 'gamma'})\n"
        "values = made(np.float32(2.5)), made(np), {'a', 'b', 'c'}, made(np.array([None, 'a']))\n"
        "values += made(range(3)), made(np.sin), made(sum), made(threading.Lock())\n"
        "print(*map(contents.hash_of, values))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_a_function_may_write_down_what_it_has_seen():
    """It is the same one afterwards; and one that is not whole yet is one, too."""
    seen = []

    def build(config):
        seen.append(later)
        return config

    before = own.source(build)
    later = 1.0
    build(None)
    assert own.source(build).name.partition("#")[0] == before.name.partition("#")[0]
    again = own.source(build)
    build(None)
    assert own.source(build) == again


@pytest.mark.parametrize("name", ["another", "as_if_jaxpgs"])
def test_a_command_names_what_a_module_has_under_that_name(name):
    """It would train the function that this one is named after."""
    with pytest.raises(ConfigError, match="must be what its module has under its own name"):
        own.find(f"{__name__}:{name}")


@pytest.mark.parametrize("form", ["plain", "cpu"])
def test_each_lane_has_its_own_option(form, monkeypatch):
    """To the bit what a program has that was given this value; in the form, too, in which lanes
    take turns, and what they close over has to be handed to them."""
    monkeypatch.setenv("JAXPG_FORM", form)
    settings = [{"option.scale": 0.0}, {}, {"option.scale": 3, "gamma": 0.5}]
    whole = jaxpg.train_population(TINY, [3, 4], settings=settings, lanes=2, build=scaled)
    assert whole.manifest.options["scale"] == 1.0
    assert list(whole.to_frame()["option.scale"].unique()) == [0.0, 1.0, 3.0]
    for i, scale in ((0, 0.0), (2, 3.0)):
        config = dataclasses.replace(TINY, gamma=settings[i].get("gamma", TINY.gamma))
        alone = jaxpg.train_population(config, [3, 4], lanes=2, build=partial(scaled, scale=scale))
        rows = jax.tree.map(lambda x, i=i: x[whole.setting == i], whole.params)
        jax.tree.map(np.testing.assert_array_equal, rows, alone.params)
    start = jaxpg.init(TINY, jaxpg.key(3), jaxpg.build(TINY)).params["policy"]["output"]["kernel"]
    moved = np.abs(whole.params["policy"]["output"]["kernel"] - np.asarray(start)).max(axis=(1, 2))
    assert moved[0] < 1e-6 < moved[2]  # without Ψ the policy of seed 3 stays where it was


def test_a_grid_of_options_has_settings_and_programs():
    grid = {"option.scale": [0, 1], "option.layers": [1, 2], "gamma": [0.9]}
    programs, settings = expand(TINY, settled(TINY, grid, scaled))
    assert programs == [{"option.layers": 1}, {"option.layers": 2}]
    assert settings == [
        {"option.scale": 0.0, "gamma": 0.9},
        {"option.scale": 1.0, "gamma": 0.9},
    ]
    assert own.options(own.fixed(scaled, programs[1])).static >= {"layers"}
    assert own.options(own.fixed(scaled, programs[1]))["layers"] == 2
    assert own.fixed(scaled, {"gamma": 0.9}) is scaled
    with pytest.raises(ConfigError, match="has no parameter 'scael'"):
        settled(TINY, {"option.scael": [0.0]}, scaled)


def test_what_is_made_for_acting_is_one_object():
    """By which what is compiled for it is found again."""
    from jaxpg.population.policy import made

    one = made(scaled, TINY, EnvParams({"scale": 2.0}))
    assert one is made(scaled, TINY, EnvParams({"scale": 2.0}))
    assert one is not made(scaled, TINY, EnvParams({"scale": 3.0}))


def test_traced_fields_of_the_config_can_be_closed_over():
    """An algorithm is made for one lane: they were arrays over all of them."""

    def discounted(config):
        def advantage(trajectory, value, next_value, *, gamma, gae_lambda):
            return config.gamma * trajectory.reward - value

        return jaxpg.build(config)._replace(advantage=advantage)

    shapes = []

    def seen(config):
        shapes.append(jnp.shape(config.gamma))
        return discounted(config)

    found = jaxpg.train_population(TINY, [1, 2], settings=[{}, {"gamma": 0.5}], lanes=4, build=seen)
    assert np.isfinite(found.metrics.policy_loss).all()
    assert set(shapes) == {()}
