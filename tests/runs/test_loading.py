"""jaxpg.load: what a run says of itself, and every way in which it can be damaged."""

import dataclasses
import hashlib
import json
import random
import shutil
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

import jaxpg
from jaxpg.core import networks, noise
from jaxpg.core.config import Config
from jaxpg.core.types import EnvSpec
from jaxpg.errors import RunError
from jaxpg.names import from_torch, to_torch
from jaxpg.policies.evaluate import in_gymnax
from jaxpg.runs import directories, planning
from jaxpg.runs import load as loading
from jaxpg.runs import trained as trained_
from jaxpg.runs.python import train_population

pytestmark = pytest.mark.usefixtures("programs_kept")

SEEDS = [2, 9, 4, 0, 5]


@pytest.fixture(scope="module")
def loaded(trained):
    return jaxpg.load(trained)


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def assert_equal_trees(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_it_is_what_training_in_memory_returns(loaded):
    memory = train_population(loaded.config, SEEDS, lanes=2)
    assert loaded.seeds == SEEDS
    told = {"compile_seconds": 0, "wall_seconds": 0, "manifest": None}
    assert_equal_trees(loaded.population._replace(**told), memory._replace(**told))
    for name in ("config", "lanes", "segment", "settings", "bits", "build"):
        assert getattr(loaded.manifest, name) == getattr(memory.manifest, name)
    assert_equal_trees(loaded.params(4), jax.tree.map(lambda leaf: leaf[2], memory.params))


def test_frame_has_a_line_per_seed_and_update(loaded):
    frame = loaded.to_frame()
    metrics = loaded.population.metrics
    assert len(frame) == 5 * 8
    assert frame["seed"].unique().tolist() == SEEDS
    one = frame[(frame["seed"] == 4) & (frame["update"] == 6)].iloc[0]
    assert one["total_env_steps"] == 7 * 256
    assert one["entropy"] == metrics.entropy[2, 6]
    mean = metrics.return_sum[2, 6] / metrics.episodes[2, 6]
    assert one["mean_return"] == pytest.approx(mean, rel=1e-6)
    assert not frame["frozen"].any()
    assert frame["setting"].eq(0).all()


def ranked(loaded, final_return, frozen_at):
    changed = loaded.population._replace(
        final_return=np.array(final_return, np.float32), frozen_at=np.array(frozen_at)
    )
    return dataclasses.replace(loaded, population=changed)


def test_best_worst_and_median(loaded):
    some = ranked(loaded, [7, 9, 9, 3, 8], [-1] * 5)
    assert [some.row(rank) for rank in ("best", "worst", "median")] == [1, 3, 4]
    # 9 diverged, and a seed without an episode has NaN: both rank below all others.
    some = ranked(loaded, [7, 9, np.nan, 3, 8], [-1, 5, -1, -1, -1])
    assert [some.row(rank) for rank in ("best", "worst", "median")] == [4, 2, 3]
    # Of equal ones three different seeds.
    some = ranked(loaded, [500] * 5, [-1] * 5)
    assert [some.row(rank) for rank in ("best", "worst", "median")] == [0, 4, 2]
    # Of four, 1 2 8 9, the median is the lower one of the two in the middle.
    four = np.arange(4)
    some = ranked(loaded, [8, 1, 9, 2, 0], [-1] * 5)
    assert [
        trained_._ranked(some.population, rank, four) for rank in ("best", "worst", "median")
    ] == [2, 1, 3]
    with pytest.raises(RunError, match="no best seed"):
        ranked(loaded, [7] * 5, [0] * 5).row("best")


def test_rows_of_several_settings(loaded):
    """A run of two settings: its rows are ordered by setting, then as the seeds."""
    settings = ({"gamma": 0.5}, {"ent_coef": 0.1})
    what = loaded.manifest._replace(settings=settings)
    twice = loaded.population._replace(
        manifest=what,
        final_return=np.array([1, 2, 3, 4, 5, 50, 40, 30, 20, 10], np.float32),
        frozen_at=np.full(10, -1),
        setting=np.repeat([0, 1], 5),
        seeds=np.tile(loaded.population.seeds, 2),
        params=jax.tree.map(lambda x: np.concatenate([x, x + 1]), loaded.population.params),
        metrics=jax.tree.map(lambda x: np.concatenate([x, x]), loaded.population.metrics),
    )
    some = loading.Run(loaded.directory, what, loaded.summary, twice)
    assert some.settings == settings
    assert [some.row("best", 0), some.row("best", 1), some.row(9, 1)] == [4, 5, 6]
    before, after = some.params(9, setting=0), some.params(9, setting=1)
    assert_equal_trees(jax.tree.map(lambda x: x + 1, before), after)
    frame = some.to_frame()
    assert frame["gamma"].tolist() == [0.5] * 40 + [0.99] * 40
    assert frame["ent_coef"].tolist() == [0.0] * 40 + [0.1] * 40
    with pytest.raises(RunError, match=r"setting must be in \[0, 2\)"):
        some.row(9, 2)
    for unsaid in (some.row, some.params, some.policy):  # which of them is the best?
        with pytest.raises(RunError, match=r"2 settings: choose one, setting in \[0, 2\)"):
            unsaid("best")
    with pytest.raises(RunError, match="2 settings"):
        some.config_of()
    with pytest.raises(RunError, match="2 settings"):
        in_gymnax(some, [9], 1, "greedy")


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (3, "has no seed 3; its seeds are 2,9,4,0,5"),
        ("bets", "did you mean 'best'"),
        ("7", "no integer"),
        (True, "must be an integer"),
        (1.0, "must be an integer"),
        (None, "must be an integer"),
    ],
)
def test_an_unknown_seed_gets_a_sentence(loaded, seed, words):
    with pytest.raises(RunError, match=words):
        loaded.params(seed)


@pytest.mark.parametrize("options", [{}, {"networks": "shared", "value_steps": 1}])
def test_names_there_and_back(options):
    config = Config(env="Pendulum-v1", hidden_sizes=(5, 3), **options)
    init = networks.make(config, EnvSpec(3, 1, False, 200, 1, 2)).init
    params = jax.jit(init)(noise.key(0), noise.key(1))
    many = jax.tree.map(lambda leaf: np.stack([leaf, leaf + 1]), params)
    named = to_torch(many)
    assert_equal_trees(from_torch(named), many)
    assert loading._param_shapes(config, named, 2) == {
        name: (x.shape, "float32") for name, x in named.items()
    }


def rehash(directory):
    """Make summary.json agree with the files, as somebody who means harm would."""
    summary = json.loads((directory / "summary.json").read_text())
    summary["sha256"] = {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
        for name in summary["sha256"]
    }
    (directory / "summary.json").write_text(json.dumps(summary))


def change_arrays(**changes):
    def damage(directory):
        with np.load(directory / "results.npz") as old:
            arrays = {name: old[name] for name in old}
        for name, change in changes.items():
            if change is None:
                del arrays[name]
            else:
                arrays[name] = change(arrays.get(name))
        np.savez_compressed(directory / "results.npz", **arrays)
        rehash(directory)

    return damage


def change_params(**changes):
    def damage(directory):
        path = directory / "params.safetensors"
        named = from_safetensors(path.read_bytes())
        for name, change in changes.items():
            if change is None:
                del named[name]
            else:
                named[name] = np.ascontiguousarray(change(named.get(name)))
        path.write_bytes(to_safetensors(named))
        rehash(directory)

    return damage


def change_summary(**changes):
    def damage(directory):
        path = directory / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def cut(name):
    def damage(directory):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])

    return damage


def cut_and_rehash(name):
    def damage(directory):
        cut(name)(directory)
        rehash(directory)

    return damage


def bomb(directory):
    """A small archive that unpacks to 200 MB."""
    with zipfile.ZipFile(directory / "results.npz") as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(directory / "results.npz", "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in entries.items():
            new.writestr(name, b"\0" * 2 * 10**8 if name == "entropy.npy" else content)
    rehash(directory)


W = "policy.hidden_0.weight"
DAMAGES = {
    "no run": (shutil.rmtree, "is not a run"),
    "not finished": (lambda d: (d / "summary.json").unlink(), "jaxpg resume"),
    "extended since": (change_summary(manifest="0" * 64), "of another manifest"),
    "summary cut": (cut("summary.json"), "cannot be read"),
    "summary no object": (lambda d: (d / "summary.json").write_text("[]"), "no object"),
    "seconds": (change_summary(wall_seconds="1"), "wall_seconds is '1', not a number"),
    "old version": (change_summary(sha256=None), "first version"),
    "npz missing": (lambda d: (d / "results.npz").unlink(), "cannot be read"),
    "npz cut": (cut("results.npz"), "has not the SHA-256"),
    "npz cut, hash right": (cut_and_rehash("results.npz"), "is damaged"),
    "npz bomb": (bomb, "entropy has not the size"),
    "pickle": (change_arrays(cause=lambda x: np.array([{}] * 5)), "is damaged|has not the size"),
    "array missing": (change_arrays(cause=None), "'cause.npy'"),
    "array too many": (change_arrays(extra=lambda x: np.zeros(3)), "'extra.npy'"),
    "array longer": (change_arrays(entropy=lambda x: x[:, :-1]), "entropy"),
    "array typed": (change_arrays(seed=lambda x: x.astype(np.int32)), "seed is int32"),
    "other seeds": (change_arrays(seed=lambda x: x + 1), "other seeds"),
    "other settings": (change_arrays(setting=lambda x: x + 1), "other settings"),
    "cause unknown": (change_arrays(cause=lambda x: x + 99), "disagree"),
    "cause without update": (change_arrays(cause=lambda x: x + 1), "disagree"),
    "frozen too late": (
        change_arrays(cause=lambda x: x + 1, frozen_at=lambda x: x + 9),
        "disagree",
    ),
    "weights cut": (cut("params.safetensors"), "has not the SHA-256"),
    "weights cut, hash right": (cut_and_rehash("params.safetensors"), "is damaged"),
    "weight missing": (change_params(**{W: None}), "does not fit"),
    "weight too many": (change_params(extra=lambda x: np.zeros(5)), "'extra'"),
    "weight typed": (change_params(**{W: lambda x: x.astype(np.float64)}), "float64"),
    "weight wider": (change_params(**{W: lambda x: np.concatenate([x, x], 1)}), W),
    "weight seeds": (change_params(**{W: lambda x: x[:4]}), W),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_gets_one_sentence(copy, name):
    damage, words = DAMAGES[name]
    damage(copy)
    with pytest.raises(RunError, match=words) as error:
        jaxpg.load(copy)
    assert "\n" not in str(error.value)


def test_every_flipped_bit_is_noticed(copy):
    rng = random.Random(0)
    for name in ("results.npz", "params.safetensors"):
        content = (copy / name).read_bytes()
        for _ in range(50):
            flipped = bytearray(content)
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            (copy / name).write_bytes(flipped)
            with pytest.raises(RunError, match="SHA-256"):
                jaxpg.load(copy)
        (copy / name).write_bytes(content)
    jaxpg.load(copy)


def test_flips_behind_the_hash_are_damage_or_another_number(copy):
    """With the hash made to agree, a flip may change a number, but raises nothing else."""
    rng = random.Random(1)
    refused = 0
    for name in ("results.npz", "params.safetensors"):
        content = (copy / name).read_bytes()
        for place in [*range(64), *(rng.randrange(len(content)) for _ in range(100))]:
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            (copy / name).write_bytes(flipped)
            rehash(copy)
            try:
                jaxpg.load(copy)
            except RunError:
                refused += 1
        (copy / name).write_bytes(content)
    assert refused > 100


def test_a_run_that_goes_on_is_not_finished(tmp_path):
    config = Config(num_envs=2, num_steps=8, total_steps=32)
    directories.begin(tmp_path / "run", planning.plan("vpg", config, [0], 2))
    with pytest.raises(RunError, match="is not finished"):
        jaxpg.load(tmp_path / "run")


def test_import_alone_loads_nothing_heavy():
    import subprocess
    import sys

    code = "import jaxpg, sys; dir(jaxpg); print('jax' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize("kind", ["sweep", "race"])
def test_a_directory_of_several_runs_is_called_what_it_is(kind, tmp_path):
    (tmp_path / f"{kind}.json").write_text("{}")
    with pytest.raises(RunError, match=f"is a {kind}, of runs in folders of their own"):
        loading.load(tmp_path)
