"""The two packages, file by file: same names, order and arguments; neither imports the other."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxpg.core
import torch_ref
from jaxpg.suites import SUITES

# The core, in the order in which imports point up.
CORE = [
    "config",
    "rules",
    "presets",
    "types",
    "noise",
    "arithmetic",
    "distributions",
    "statistics",
    "networks",
    "advantages",
    "losses",
    "ring",
    "dynamics",
    "env",
    "wrappers",
    "rollout",
    "learner",
    "gradient",
    "natural",
    "ppo",
    "penalty",
    "algorithms",
    "training",
    "trace",
]
# Parts of `jaxpg parity`, loaded by that command alone; of a package each module.
SEES_BOTH = [
    f"jaxpg.proof.{name}" for name in ("batch", "faults", "golden", "levels", "pairs", "synthetic")
]
# Loaded when such an environment, or an ONNX file, is asked for: what they need may be missing.
ADAPTERS = {
    "jaxpg.proof.dials",
    "jaxpg.policies.onnx_graph",
    *(suite.adapter for suite in SUITES.values()),
}
TORCH_ONLY = {"convert", "train"}  # weight conversion; the command, which jaxpg has in its cli

# Names that only one package has, and why.
ONLY_IN_JAXPG = {
    "types": {"Params"},  # torch: an nn.ModuleDict
    "noise": {"typed"},  # torch's keys are their words
    # a torch module is called; flax's layers know no TF32
    "networks": {"apply", "PRECISION", "_conv", "_dense"},
    "learner": {"with_group"},  # torch's parameters are changed in place
    # gymnax moves, and its parts are asked for; torch's dynamics are written down
    "dynamics": {"begin_and_advance", "state_types", "_examples", "_check_observation"},
    "env": {"Interface", "interface", "_image_of"},  # what a trained policy sees
    "algorithms": {"Primitives", "PLAIN"},  # torch_ref is plain
    "training": {"as_arrays"},
    "trace": {"_program"},  # nothing is compiled in torch
}  # fmt: skip
ONLY_IN_TORCH = {
    # torch has an image's channels first, and an output's width before the input's
    "networks": {"_channels_first", "_channels_last", "_weight"},
    # gymnax has these
    "dynamics": {"CARTPOLE_MIN_STEPS", "CartPoleParams", "CartPoleState", "PendulumParams",
                 "PendulumState", "DialsState", "CATCH_ROWS", "CATCH_COLUMNS", "CatchState",
                 "cartpole", "pendulum", "catch", "dials", "start", "advance", "_tensor_env"},
    "env": {"_Once", "_each", "gymnasium_env", "_Written", "_written", "_typed", "_find",
            "_choices"},
    "rollout": {"_freeze", "_stack"},  # torch has no tree map
    "learner": {"global_norm"},  # optax has it
    "natural": {"_raveled"},  # jax has it
    "training": {"as_tensors", "updates"},
    "trace": {"_as_in_jax"},  # torch counts and indexes with int64
}  # fmt: skip
# Primitives that are handed to jaxpg's functions; of each the plain one is the default.
HANDED_IN = {
    "advantages": {"scan"},
    "algorithms": {"primitives", "scan"},
    "env": {"rows"},
    "gradient": {"scan"},
    "natural": {"scan"},
    "networks": {"apply"},
    "penalty": {"scan"},
    "ppo": {"scan"},
    "rollout": {"loop"},
    "statistics": {"scan"},
}
OTHER_ARGUMENTS = {
    # A torch module must be told the width of its input, which flax infers when it first sees one.
    "networks.MLP": (
        ["hidden_sizes", "outputs", "activation", "conv_features", "image"],
        ["inputs", "hidden_sizes", "outputs", "activation", "conv_features", "image"],
    ),
    "networks.init_mlp": (
        ["key", "mlp", "inputs", "init", "head"],
        ["key", "mlp", "init", "head"],
    ),
    "networks._outputs": (["params", "policy", "inputs"], ["policy", "inputs"]),
    "networks._init_log_std": (["config", "spec"], ["policy", "config", "spec"]),
    # In jax parameters and the optimizer's state are one thing that is passed on.
    "learner.descend": (
        ["config", "algorithm", "rate", "objective", "start"],
        ["config", "algorithm", "rate", "objective", "module", "optimizer"],
    ),
    # torch's parameters are changed in place.
    "natural._together": (
        ["learned", "after", "found", "told", "critic"],
        ["learned", "found", "told", "critic"],
    ),
    # Of parameters that are not its own; gymnasium's have none here, and torch's dtypes no names.
    "env._spec": (["world", "max_episode_steps", "changed"], ["world", "max_episode_steps"]),
    "env._encoder": (["world", "float_type"], ["world", "dtype"]),
    # What a parameter is called: torch modules know it, of a tree only the config tells.
    "trace._leaves": (["site", "tree", "config"], ["site", "tree"]),
    "trace._do": (
        ["stream", "build", "config", "seeds", "updates", "explain"],
        ["stream", "config", "seeds", "updates", "explain"],
    ),
    "trace.main": (["arguments", "build"], ["arguments"]),
}


def modules(package):
    """Full names of a package's modules, but for `__main__`, whose import runs it."""
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    return [package.__name__, *(m.name for m in found if not m.name.endswith(".__main__"))]


def names(module):
    """What a module defines, in order, private names too; not what it imports."""
    found = []
    for node in ast.parse(inspect.getsource(module)).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        found += [getattr(target, "id", "") for target in targets] or [getattr(node, "name", "")]
    return [name for name in found if name]


def twins(name):
    return (importlib.import_module(f"{package}.{name}") for package in ("jaxpg.core", "torch_ref"))


def test_every_core_file_has_its_twin():
    ours = {name.removeprefix("jaxpg.core.") for name in modules(jaxpg.core)} - {"jaxpg.core"}
    assert ours == set(CORE)
    in_torch = {name.removeprefix("torch_ref.") for name in modules(torch_ref)} - {"torch_ref"}
    assert in_torch - TORCH_ONLY == set(CORE)


@pytest.mark.parametrize("name", CORE)
def test_twins_define_the_same_names_in_the_same_order(name):
    ours, theirs = map(names, twins(name))
    assert set(ours) - set(theirs) == ONLY_IN_JAXPG.get(name, set())
    assert set(theirs) - set(ours) == ONLY_IN_TORCH.get(name, set())
    assert [n for n in ours if n in theirs] == [n for n in theirs if n in ours]


@pytest.mark.parametrize("name", CORE)
def test_twins_have_the_same_arguments_and_fields(name):
    """Names, order, keyword-only or not, and defaults; of a NamedTuple the fields."""
    ours, theirs = twins(name)
    for one in names(ours):
        pair = [getattr(module, one, None) for module in (ours, theirs)]
        if not all(map(has_arguments, pair)):
            continue
        if f"{name}.{one}" in OTHER_ARGUMENTS:
            found = tuple([argument for argument, *_ in arguments(f)] for f in pair)
            assert found == OTHER_ARGUMENTS[f"{name}.{one}"]
        else:
            mine, others = map(arguments, pair)
            plain = [a for a in mine if a[0] not in HANDED_IN.get(name, ())]
            assert plain == [a for a in others if a[0] not in HANDED_IN.get(name, ())], one


@pytest.mark.parametrize("name", CORE)
def test_twins_check_as_much(name):
    """What broadcasts in silence is wrong in both: V [B] less a target [B, 1] is the article's."""
    ours, theirs = (
        {
            node.name: sum(map(_is_check, ast.walk(node)))
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.FunctionDef)
        }
        for module in twins(name)
    )
    both = ours.keys() & theirs.keys()
    assert {one: ours[one] for one in both} == {one: theirs[one] for one in both}


def _is_check(node):
    """Of arrays: chex.assert_…, or assert of shapes and types."""
    if isinstance(node, ast.Assert):
        return any(word in ast.unparse(node.test) for word in (".shape", ".ndim", ".dtype"))
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("chex.assert_")


@pytest.mark.parametrize(("name", "handed_in"), HANDED_IN.items())
def test_what_is_handed_in_is_plain_by_default(name, handed_in):
    """No primitive is asked for: whoever hands in nothing reads and runs the plain page."""
    module, _ = twins(name)
    functions = [getattr(module, one) for one in names(module)]
    public = [f for f in functions if inspect.isfunction(f) and not f.__name__.startswith("_")]
    found = {
        p.name
        for f in public
        for p in inspect.signature(f).parameters.values()
        if p.name in handed_in and p.default is not p.empty
    }
    assert found == handed_in


def has_arguments(f):
    return inspect.isfunction(f) or (inspect.isclass(f) and not issubclass(f, Exception))


def arguments(f):
    """(name, kind, default) of each; flax adds `parent` and `name` to a module's own."""
    given = inspect.signature(f).parameters.values()
    return [
        (p.name, p.kind, getattr(p.default, "__name__", p.default))
        for p in given
        if p.name not in ("parent", "name")
    ]


@pytest.mark.parametrize("name", CORE)
def test_whatever_is_public_is_explained_in_both(name):
    for module in twins(name):
        assert module.__doc__
        for public in [name for name in names(module) if not name.startswith("_")]:
            value = getattr(module, public)
            if inspect.isfunction(value) or inspect.isclass(value):
                assert value.__doc__, public
                assert not value.__doc__.startswith(f"{public}("), public  # made up by Python


# Imports


def imports(path):
    """Names of the modules that a file imports, at its top or inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(package):
    return {path.stem: path for path in Path(package.__file__).parent.glob("*.py")}


@pytest.mark.parametrize("package", [jaxpg.core, torch_ref])
@pytest.mark.parametrize("name", CORE)
def test_imports_point_up_the_list(package, name):
    own = {f"{package.__name__}.{core}" for core in CORE[CORE.index(name) :]}
    assert not own & set(imports(files(package)[name]))


@pytest.mark.parametrize(
    ("library", "homes"),
    [("flax", {"networks"}), ("optax", {"learner"}), ("gymnax", {"dynamics", "env"})],
)
def test_each_library_is_imported_where_it_is_wanted_alone(library, homes):
    users = {
        name
        for name in CORE
        for used in imports(files(jaxpg.core)[name])
        if used.startswith(library)
    }
    assert users == homes


@pytest.mark.parametrize(
    ("package", "foreign"),
    [
        (torch_ref, {"jax", "jaxlib", "flax", "optax", "gymnax", "chex", "jaxpg"}),
        (jaxpg, {"torch", "torch_ref", "gymnasium", "gymnax"}),  # gymnax starts JAX's backend
    ],
    ids=["torch_ref", "jaxpg"],
)
def test_importing_every_module_of_one_package_brings_nothing_of_the_other(package, foreign):
    names = [name for name in modules(package) if name not in ADAPTERS and not sees_both(name)]
    assert len(names) > len(CORE)
    assert not foreign & imported_by(names)


def test_import_jaxpg_alone_brings_no_jax():
    loaded = imported_by(["jaxpg"])
    assert "jaxpg" in loaded
    assert not {"jax", "jaxlib", "flax", "optax", "numpy"} & loaded


def test_names_of_jaxpg_load_on_first_use():
    for name in jaxpg.__all__:
        assert getattr(jaxpg, name) is not None
    assert set(dir(jaxpg)) == set(jaxpg.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        jaxpg.tarin  # noqa: B018


def sees_both(name):
    return any(name == part or name.startswith(f"{part}.") for part in SEES_BOTH)


def imported_by(names):
    """Top-level packages in sys.modules of a fresh interpreter that imported these modules."""
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", program]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
