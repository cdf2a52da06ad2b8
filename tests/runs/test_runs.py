"""Run directories: interrupted, continued, extended, merged, replayed; always the same bits."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpg.cli.show import describe
from jaxpg.core import learner
from jaxpg.core.config import Config, ConfigError
from jaxpg.errors import RunError, Stopped
from jaxpg.names import to_torch
from jaxpg.population import chunks, population
from jaxpg.runs import checkpoints, directories, edit, manifests, planning, run
from jaxpg.runs import retrace as retracing
from jaxpg.runs.python import train_population
from jaxpg.runs.results import FILES

pytestmark = [pytest.mark.usefixtures("programs_kept"), pytest.mark.as_users_run(1)]

TINY = Config(
    num_envs=3,
    num_steps=24,
    total_steps=72 * 7,
    hidden_sizes=(6,),
    value_steps=2,
    lr_schedule="constant",
)
SEEDS = [2, 9, 4, 0, 5]


def begun(directory: Path, config: Config = TINY, seeds: list[int] = SEEDS) -> Path:
    directories.begin(directory, planning.plan("vpg", config, seeds, 2))
    return directory


def train(directory: Path, **options) -> dict:
    return run.train(directory, stall_seconds=600.0, **options)


def arrays(directory: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    with np.load(directory / "results.npz", allow_pickle=False) as results:
        return {**results, **load_file(directory / "params.safetensors")}


def assert_same_results(one: Path, other: Path) -> None:
    ours, theirs = arrays(one), arrays(other)
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = begun(tmp_path_factory.mktemp("runs") / "whole")
    train(directory)
    return directory


def test_a_run_is_what_train_population_gives(finished):
    whole = train_population(TINY, SEEDS, lanes=2)
    saved = arrays(finished)
    np.testing.assert_array_equal(saved["seed"], SEEDS)
    np.testing.assert_array_equal(saved["final_return"], whole.final_return)
    np.testing.assert_array_equal(saved["policy_loss"], whole.metrics.policy_loss)
    for name, x in to_torch(whole.params).items():
        np.testing.assert_array_equal(saved[name], x)


def test_what_is_in_the_directory(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {*FILES, "manifest.json", "checkpoints", "progress.jsonl", "lock"}
    assert directories.is_finished(finished)
    assert "finished" in describe(finished)
    found = checkpoints.listed(finished)
    assert sorted(found) == [0, 1, 2]
    assert all(len(chain) <= checkpoints.KEPT and chain[-1].update == 7 for chain in found.values())
    lines = [json.loads(line) for line in (finished / "progress.jsonl").read_text().splitlines()]
    assert lines[-1]["fraction"] == 1.0
    assert lines[-1]["env_steps"] == 5 * 7 * 72


@pytest.mark.thin(3)
@pytest.mark.parametrize("reports", [1, 2, 3])
def test_a_stopped_run_goes_on_to_the_same_bits(finished, tmp_path, reports, stop_after):
    directory = begun(tmp_path / "run")
    with pytest.raises(Stopped):
        train(directory, report=stop_after(reports))
    assert not directories.is_finished(directory)
    before = {i: chain[-1].update for i, chain in checkpoints.listed(directory).items()}
    reached = []
    summary = train(directory, report=reached.append)
    done = sum(update * [2, 2, 1][i] for i, update in before.items()) / (5 * 7)
    assert all(at.fraction > done for at in reached)  # nothing is done twice
    assert_same_results(finished, directory)
    assert summary["total_env_steps"] == 5 * 7 * 72


@pytest.mark.slow
def test_a_frozen_seed_stays_frozen_across_a_stop(tmp_path, stop_after):
    reckless = dataclasses.replace(
        TINY, optimizer="sgd", learning_rate=1e30, value_learning_rate=1e30, max_grad_norm=None
    )
    for name in ("whole", "stopped"):
        begun(tmp_path / name, reckless)
    summary = train(tmp_path / "whole")
    assert [row["seed"] for row in summary["diverged"]] == SEEDS
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", report=stop_after(2))
    train(tmp_path / "stopped")
    assert_same_results(tmp_path / "whole", tmp_path / "stopped")


def test_a_seed_is_retraced_until_it_diverged(tmp_path):
    """The run has no updates after that: they were written as if they were its."""
    reckless = dataclasses.replace(
        TINY, optimizer="sgd", learning_rate=1e30, value_learning_rate=1e30, max_grad_norm=None
    )
    gone = train(begun(tmp_path / "run", reckless, [2, 9]))["diverged"][0]
    said = retracing.retrace(tmp_path / "run", gone["seed"], 0, None, tmp_path / "again")
    assert said.endswith(f"it diverged in the last of them ({gone['cause']})")
    names = sorted(path.name for path in (tmp_path / "again").glob("*.npz"))
    assert names == [f"update-{u:06d}.npz" for u in range(gone["update"] + 1)]
    report = json.loads((tmp_path / "again" / "retrace.json").read_text())
    assert (report["updates"], report["diverged"]) == ([0, gone["update"] + 1], gone["cause"])
    with pytest.raises(RunError, match=r"there is no update 6 of seed \d: it had diverged before"):
        retracing.retrace(tmp_path / "run", gone["seed"], 0, 6, tmp_path / "late")
    assert not (tmp_path / "late").exists()


def test_every_seed_with_every_setting(tmp_path, stop_after):
    """Stopped, merged and replayed: the rows are those of train_population in memory."""
    settings = [{}, {"gamma": 0.9}, {"gamma": 0.5, "learning_rate": 0.1}]
    whole = train_population(TINY, SEEDS, settings=settings, lanes=2)
    for name, seeds in (("a", SEEDS[:2]), ("b", SEEDS[2:])):
        directories.begin(tmp_path / name, planning.plan("vpg", TINY, seeds, 2, settings))
    with pytest.raises(Stopped):
        train(tmp_path / "b", report=stop_after(3))
    edit.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    summary = train(tmp_path / "both")
    saved = arrays(tmp_path / "both")
    assert saved["setting"].tolist() == [*[0] * 2, *[1] * 2, *[2] * 2, *[0] * 3, *[1] * 3, *[2] * 3]
    for row, (seed, setting) in enumerate(zip(saved["seed"], saved["setting"], strict=True)):
        at = np.flatnonzero((whole.seeds == seed) & (whole.setting == setting))[0]
        np.testing.assert_array_equal(saved["value_loss"][row], whole.metrics.value_loss[at])
        for leaf_name, x in to_torch(whole.params).items():
            np.testing.assert_array_equal(saved[leaf_name][row], x[at])
    assert [entry["setting"] for entry in summary["settings"]] == settings
    finals = whole.final_return[whole.setting == 2]
    assert summary["settings"][2]["final_return"]["max"] == pytest.approx(finals.max(), abs=1e-4)
    retracing.retrace(tmp_path / "both", 4, 2, 5, tmp_path / "again")
    report = json.loads((tmp_path / "again" / "retrace.json").read_text())
    assert report["compared_with_run"] == 1
    assert not report["differ_from_run"]
    with pytest.raises(RunError, match=r"setting must be in \[0, 3\); got 3"):
        retracing.retrace(tmp_path / "both", 4, 3, None, tmp_path / "none")
    with pytest.raises(RunError, match="settings"):
        directories.begin(tmp_path / "a", planning.plan("vpg", TINY, SEEDS[:2], 2, settings[:2]))


def test_extended_equals_the_longer_run(finished, tmp_path):
    short = begun(tmp_path / "run", dataclasses.replace(TINY, total_steps=72 * 4))
    train(short)
    edit.extend(short, 72 * 7, None)
    assert not directories.is_finished(short)
    train(short)
    assert_same_results(finished, short)
    with pytest.raises(RunError, match="already has total_steps=504"):
        edit.extend(short, 72 * 6, None)
    edit.extend(short, 72 * 7 + 10, None)
    with pytest.raises(RunError, match="already has total_steps=514"):
        edit.extend(short, 72 * 7 + 5, None)  # which pays for as many updates
    with pytest.raises(RunError, match="needs total_steps"):
        edit.extend(short, None, 10)


def test_a_run_whose_rate_depends_on_the_budget_is_not_extended(tmp_path):
    linear = begun(tmp_path / "run", dataclasses.replace(TINY, lr_schedule="linear"))
    with pytest.raises(RunError, match="lr_schedule='linear'"):
        edit.extend(linear, 72 * 9, None)


@pytest.mark.slow
def test_merged_runs_are_one_run(finished, tmp_path, stop_after):
    """One of the parts is not finished; the merged run finishes it."""
    first, second = begun(tmp_path / "a", seeds=[2, 9, 4]), begun(tmp_path / "b", seeds=[0, 5])
    train(first)
    with pytest.raises(Stopped):
        train(second, report=stop_after(1))
    edit.merge([first, second], tmp_path / "both")
    train(tmp_path / "both")
    assert_same_results(finished, tmp_path / "both")
    with pytest.raises(RunError, match="share seeds, such as 0"):
        edit.merge([second, finished], tmp_path / "c")
    other = begun(tmp_path / "d", dataclasses.replace(TINY, gamma=0.5), [70])
    with pytest.raises(RunError, match=r"gamma: 0\.99 -> 0\.5"):
        edit.merge([first, other], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_replay_is_the_run(finished, tmp_path):
    said = retracing.retrace(finished, 4, 0, None, tmp_path / "all")
    assert "7 could be compared with the run, and all are equal to the bit" in said
    report = json.loads((tmp_path / "all" / "retrace.json").read_text())
    assert report["differ_from_run"] == []
    assert report["records_that_end_in_the_parameters_of_the_run"] == 7
    retracing.retrace(finished, 4, 0, 5, tmp_path / "one")
    with (
        np.load(tmp_path / "all" / "update-000005.npz", allow_pickle=False) as one,
        np.load(tmp_path / "one" / "update-000005.npz", allow_pickle=False) as other,
    ):
        assert one.keys() == other.keys()
        assert one["obs"].shape == (24, 3, 4)
        assert one["gradient:policy.hidden_0.weight"].any()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    with pytest.raises(RunError, match="no seed 3"):
        retracing.retrace(finished, 3, 0, None, tmp_path / "none")
    with pytest.raises(RunError, match=r"--update must be in \[0, 7\)"):
        retracing.retrace(finished, 4, 0, 7, tmp_path / "none")


def test_another_config_is_refused_with_what_changed(finished):
    with pytest.raises(RunError, match=r"gamma: 0\.99 -> 0\.5; learning_rate: 0\.01 -> 0\.1"):
        begun(finished, dataclasses.replace(TINY, gamma=0.5, learning_rate=0.1))
    with pytest.raises(RunError, match="seeds: '2,9,4,0,5' -> '1:2'"):
        begun(finished, seeds=[1])
    begun(finished)


def test_a_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(RunError, match="notes"):
            begun(out)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(RunError, match="is not a run"):
        manifests.read(tmp_path)


def test_nothing_is_written_for_a_config_without_meaning(tmp_path):
    with pytest.raises(ConfigError):
        begun(tmp_path / "run", dataclasses.replace(TINY, env="CartPol-v1"))
    with pytest.raises(ConfigError):
        directories.begin(tmp_path / "run", planning.plan("vpg", TINY, SEEDS, 1))
    assert not (tmp_path / "run").exists()


# Damage


@pytest.fixture
def stopped(tmp_path):
    """Two commits of the first chunk, of 3 and 6 updates; the run is not finished."""
    directory = begun(tmp_path / "run", seeds=[2, 9])
    groups = planning.make_chunks(manifests.read(directory))
    (directory / checkpoints.FOLDER).mkdir()
    program = chunks.compile_programs(groups[0], 3)[0]
    saved = [
        checkpoints.save(directory, 0, groups[0], snapshot, 1.0)
        for snapshot in chunks.advance(program, groups[0], 6, None)
    ]
    return directory, [at.path for at in saved]


def check_recovery(finished, directory, words, start):
    """It says what is wrong, begins at update `start`, and ends in the same bits."""
    notes, reached = [], []
    train(directory, note=notes.append, report=reached.append)
    assert any(words in sentence for sentence in notes), notes
    assert any(f"from update {start}" in sentence for sentence in notes)
    ours, theirs = arrays(directory), arrays(finished)
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name][:2], err_msg=name)


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
    "first bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "bit in the header": lambda content: content[:90] + bytes([content[90] ^ 4]) + content[91:],
    "last bit": lambda content: content[:-1] + bytes([content[-1] ^ 128]),
}


@pytest.mark.thin(3)
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_checkpoint_costs_one_segment(finished, stopped, damage):
    directory, paths = stopped
    paths[1].write_bytes(DAMAGES[damage](paths[1].read_bytes()))
    check_recovery(finished, directory, "is damaged", 3)


def test_a_missing_checkpoint_costs_one_segment(finished, stopped):
    directory, paths = stopped
    paths[1].unlink()
    train(directory)
    ours, theirs = arrays(directory), arrays(finished)
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name][:2], err_msg=name)


def test_with_every_checkpoint_damaged_the_chunk_starts_again(finished, stopped):
    directory, paths = stopped
    for path in paths:
        path.write_bytes(b"\0" * path.stat().st_size)
    check_recovery(finished, directory, "SHA-256", 0)


def test_a_checkpoint_of_another_run_is_neither_taken_nor_removed(stopped, tmp_path):
    """The same shapes and a good hash, but another seed."""
    directory, paths = stopped
    other = begun(tmp_path / "other", seeds=[3, 9])
    train(other)
    foreign = checkpoints.listed(other)[0][-1].path
    mixed_in = paths[1].parent / foreign.name
    mixed_in.write_bytes(foreign.read_bytes())
    with pytest.raises(RunError, match=f"{foreign.name} is whole, but of another run or version"):
        train(directory)
    assert all(path.exists() for path in (*paths, mixed_in))


def test_nor_is_one_of_another_version(stopped, monkeypatch, compiled_anew):
    """Whose optimizer holds other arrays."""
    directory, paths = stopped
    monkeypatch.setitem(learner.OPTIMIZERS, "adam", lambda config: optax.trace(0.9))
    with pytest.raises(RunError, match="is whole, but of another run or version"):
        train(directory)
    assert all(path.exists() for path in paths)


def test_a_run_that_saved_nothing_says_so(tmp_path):
    """It was killed while it compiled; one that is new has nothing to say."""
    for killed in (False, True):
        directory, notes = begun(tmp_path / str(killed), seeds=[2]), []
        if killed:
            (directory / checkpoints.FOLDER).mkdir()
        train(directory, note=notes.append)
        assert any("ended before anything was saved" in note for note in notes) == killed


def test_every_flipped_bit_of_a_checkpoint_is_noticed(stopped):
    """500 places from the first byte to the last: none loads."""
    directory, paths = stopped
    at = checkpoints.listed(directory)[0][-1]
    groups = planning.make_chunks(manifests.read(directory))
    shapes = chunks.lane_shapes(groups[0])
    checkpoints.load(at, groups[0], shapes, 7)
    content = bytearray(paths[1].read_bytes())
    rng = np.random.default_rng(0)
    for place in np.linspace(0, len(content) - 1, 500).astype(int):
        bit = 1 << int(rng.integers(8))
        content[place] ^= bit
        paths[1].write_bytes(content)
        with pytest.raises(RunError, match="SHA-256"):
            checkpoints.load(at, groups[0], shapes, 7)
        content[place] ^= bit
    paths[1].write_bytes(content)
    checkpoints.load(at, groups[0], shapes, 7)


def test_missing_results_are_written_again(finished, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "results.npz").unlink()
    assert not directories.is_finished(copy)
    train(copy)
    assert_same_results(finished, copy)


# Readers and what they are fed


GOOD = json.loads(
    json.dumps(
        {
            "schema": 2,
            "preset": "vpg",
            "seeds": ["0:4"],
            "lanes": 2,
            "segment": 3,
            "settings": [{}, {"gamma": 0.9}],
            "config": dataclasses.asdict(TINY),
            "made": {},
        }
    )
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def refusal(read, *arguments) -> str:
    """What it says, if it refuses to read this; any other exception is a failure."""
    try:
        read(*arguments)
    except RunError as error:
        return str(error)
    return "no refusal"


def assert_one_sentence_or_none(*arguments) -> None:
    said = refusal(*arguments)
    assert said
    assert "\n" not in said


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_manifest_of_anything_is_read_or_refused(content):
    assert_one_sentence_or_none(manifests.parse, content, Path("manifest.json"))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([*GOOD, *(f"config.{name}" for name in GOOD["config"])]), JSON)
def test_a_manifest_with_any_field_replaced_is_read_or_refused(name, value):
    changed = json.loads(json.dumps(GOOD))
    *outer, last = name.split(".")
    (changed["config"] if outer else changed)[last] = value
    content = json.dumps(changed).encode()
    assert_one_sentence_or_none(manifests.parse, content, Path("manifest.json"))


def test_a_good_manifest_is_read():
    parsed = manifests.parse(json.dumps(GOOD).encode(), Path("x"))
    assert parsed.config == TINY
    assert parsed.seeds == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def content_and_shapes(finished):
    groups = planning.make_chunks(manifests.read(finished))
    at = checkpoints.listed(finished)[0][-1]
    wanted = checkpoints.shapes(chunks.lane_shapes(groups[0]), groups[0], 7)
    return at.path.read_bytes(), groups[0], wanted


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_checkpoint_of_anything_is_read_or_refused(content_and_shapes, data):
    """Past the hash: what a file could say that was made to have one."""
    good, chunk, wanted = content_and_shapes
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(4000, len(content) - 1)))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    assert_one_sentence_or_none(checkpoints.parse, bytes(content[:cut]), Path("x"), chunk, wanted)


@pytest.mark.slow
def test_the_lanes_of_a_snapshot_survive_a_file(finished, tmp_path):
    """Every leaf of the state, of the replay ring too, dtype by dtype."""
    config = dataclasses.replace(
        TINY, value_data="replay", value_target="td0", buffer_size=32, batch_size=8
    )
    chunk = population.make_chunks(config, [3, 5], [{}], 2)[0]
    program = chunks.compile_programs(chunk, 2)[0]
    snapshot = next(chunks.advance(program, chunk, 2, None))
    (tmp_path / checkpoints.FOLDER).mkdir()
    at = checkpoints.save(tmp_path, 7, chunk, snapshot, 1.5)
    loaded = checkpoints.load(at, chunk, chunks.lane_shapes(chunk), 2)
    assert (at.chunk, at.update, loaded.seconds) == (7, 2, 1.5)
    ours, theirs = jax.tree.leaves(snapshot), jax.tree.leaves(loaded.snapshot)
    assert jax.tree.structure(snapshot) == jax.tree.structure(loaded.snapshot)
    for one, other in zip(ours, theirs, strict=True):
        assert np.asarray(one).dtype == other.dtype
        np.testing.assert_array_equal(one, other)
