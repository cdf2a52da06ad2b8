"""The house: imports point down, also those inside functions, and no module is in a circle."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The config and its rules import nothing else, as their twins do; statistics know numpy alone.
GROUND = ("jaxpg.core.config", "jaxpg.core.rules", "jaxpg.analysis.stats")
# From the top; a module belongs to the line that has the longest part of its name.
LAYERS = (
    ("jaxpg", "jaxpg.__main__", "jaxpg.oracle", "jaxpg.types"),  # the public face
    ("jaxpg.cli",),
    ("jaxpg.report",),
    ("jaxpg.policies",),
    ("jaxpg.proof",),
    ("jaxpg.runs",),
    ("jaxpg.analysis",),
    ("jaxpg.population",),
    ("jaxpg.fast",),
    ("jaxpg.envs",),
    ("jaxpg.core",),
    (
        "jaxpg.errors",
        "jaxpg.files",
        "jaxpg.later",
        "jaxpg.names",
        "jaxpg.suites",
        "jaxpg.words",
        "jaxpg.world",
        *GROUND,
    ),
)
ALONE = "jaxpg.parity"  # anybody may use it, and it uses nobody


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {name_of(path): path for folder in ("jaxpg", "torch_ref") for path in
         sorted((ROOT / folder).rglob("*.py"))}  # fmt: skip


@cache
def imported(name: str) -> frozenset[str]:
    """The modules of both packages that a module's code imports, wherever it does."""
    found: set[str] = set()
    package = name if PATHS[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(PATHS[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parts if node.level else []), *filter(None, [node.module])])
            members = {f"{base}.{alias.name}" for alias in node.names}
            found |= {x if x in PATHS else base for x in members}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "import_module":
            found |= {x.value for x in node.args if isinstance(x, ast.Constant)}
    return frozenset(found & PATHS.keys() - {name})


def layer(name: str) -> int:
    """Of a module of jaxpg; the lowest is the largest."""
    levels = {prefix: i for i, prefixes in enumerate(LAYERS) for prefix in prefixes}
    known = name
    while known not in levels:
        known = known.rpartition(".")[0]
    if known == "jaxpg" != name:
        raise ValueError(f"{name} is on no floor: name it in LAYERS")
    return levels[known]


def test_imports_point_down():
    up = set()
    for name in (name for name in PATHS if name.split(".")[0] == "jaxpg"):
        ours = {x for x in imported(name) if x.split(".")[0] == "jaxpg"}
        if name == ALONE:
            assert not ours
            continue
        up |= {(name, x) for x in ours - {ALONE} if layer(x) < layer(name)}
    assert not up


def test_only_proof_sees_the_twin_and_the_twin_sees_nobody():
    for name in PATHS:
        modules = imported(name)
        theirs = {x for x in modules if x.split(".")[0] == "torch_ref"}
        if name.split(".")[0] == "torch_ref":
            assert modules == theirs, name
        elif not name.startswith("jaxpg.proof."):
            assert not theirs, name


def test_nothing_is_mocked_but_to_plant_faults():
    mocking = {name for name, path in PATHS.items() if "unittest" in path.read_text()}
    assert mocking
    assert not {name for name in mocking if not name.startswith("jaxpg.proof.faults.")}


def test_no_circle():
    try:
        list(TopologicalSorter({name: imported(name) for name in PATHS}).static_order())
    except CycleError as error:
        raise AssertionError(" imports ".join(error.args[1])) from None


def test_imports_are_found_wherever_they_are():
    assert "jaxpg.runs.load" in imported("jaxpg")  # for type checkers
    assert "jaxpg.population.devices" in imported("jaxpg.population.provenance")  # from a package
    assert "jaxpg.fast.backend" in imported("jaxpg.population.provenance")  # inside a function
