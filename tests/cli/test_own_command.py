"""An algorithm and a callback of one's own by command: what is kept, what is imported, and when."""

import hashlib
import importlib
import json
import shlex
import sys

import numpy as np
import pytest

import jaxpg
from jaxpg.cli.main import main
from jaxpg.core.config import ConfigError, EnvParams
from jaxpg.errors import RunError, Stopped
from jaxpg.population import population
from jaxpg.runs import checkpoints, directories, manifests, planning, reproduce, run, sweep
from jaxpg.runs.load import load

pytestmark = pytest.mark.usefixtures("programs_kept")

MODULE = """
import json

import jax.numpy as jnp
import optax

import jaxpg


def scaled(config, scale=1.0, twice=False):
    algorithm = jaxpg.build(config)

    def advantage(*inputs, **coefficients):
        psi = scale * algorithm.advantage(*inputs, **coefficients)
        return 2.0 * psi if twice else psi

    return algorithm._replace(advantage=advantage)


def watch(directory, progress):
    with open(directory / "watched.jsonl", "a") as file:
        file.write(json.dumps([progress.fraction, progress.env_steps]) + "\\n")


def fails(directory, progress):
    raise OSError("no more room")


def leaves(directory, progress):
    raise SystemExit(3)


def annealed(config):
    rate = optax.linear_schedule(1.0, 0.0, config.num_updates)
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(rate))
    return jaxpg.build(config)._replace(optimizer=lambda config: optimizer)


def counted(config):
    updates = jnp.float32(config.num_updates)
    return jaxpg.build(config)._replace(init_fit=lambda config, params: updates)
"""
SMALL = ["--num-envs=3", "--num-steps=24", "--total-steps=504", "--hidden-sizes=6", "--lanes=2"]
OWN = ["--algorithm", "theirs:scaled"]


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """theirs.py, where it is imported from; a function writes it anew."""
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "modules").mkdir()

    def write(text=MODULE):
        (tmp_path / "modules" / "theirs.py").write_text(text)
        sys.modules.pop("theirs", None)
        importlib.invalidate_caches()
        return hashlib.sha256(text.encode()).hexdigest()

    write()
    yield write
    sys.modules.pop("theirs", None)


@pytest.fixture
def stopped(theirs, tmp_path, stop_after):
    """A run of `scaled` of which a part is saved."""
    out = tmp_path / "run"
    build = importlib.import_module("theirs").scaled
    config = jaxpg.Config(num_envs=3, num_steps=24, total_steps=504, hidden_sizes=(6,))
    directories.begin(out, planning.plan("vpg", config, [1, 2], 2, build=build))
    with pytest.raises(Stopped):
        run.train(out, report=stop_after(1), stall_seconds=600.0, build=build)
    return out


def refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_run_knows_its_algorithm_and_who_only_looks_does_not_import_it(theirs, tmp_path, capsys):
    out, sha256 = tmp_path / "run", theirs()
    line = ["train", "vpg", *SMALL, "--seeds", "2", *OWN, "--option", "scale=2", "--out", str(out)]
    main(line)
    manifest = manifests.read(out)
    assert (manifest.build, manifest.build_sha256) == ("theirs:scaled", sha256)
    assert manifest.options == {"scale": 2.0, "twice": False}
    assert "theirs:scaled with scale=2.0 twice=false" in (out / "report.html").read_text()

    again = shlex.split(reproduce.commands(manifest, str(tmp_path / "again"))[0])
    main(again[1:])
    ours, theirs_ = (load(x).population.params for x in (out, tmp_path / "again"))
    np.testing.assert_array_equal(
        ours["policy"]["output"]["kernel"], theirs_["policy"]["output"]["kernel"]
    )

    theirs("raise SystemError('executed')")
    for words in (["status", out], ["report", out], ["compare", out, tmp_path / "again"]):
        main([str(word) for word in words])
    assert "theirs:scaled" in capsys.readouterr().out
    assert jaxpg.load(out).summary["build"] == "theirs:scaled"
    with pytest.raises(RunError, match=r"parts of your own \(theirs:scaled\)"):
        jaxpg.load(out).policy(0)
    for words in (["evaluate", out], ["retrace", out, "--seed", 1], ["export", out, "--to=onnx"]):
        assert "cannot be imported (SystemError: executed)" in refused(capsys, *words)

    theirs(MODULE + "# what it says is the same")
    theirs_now = ["evaluate", out, "--episodes", 2, "--gymnasium-seeds", 0]
    assert "another source of theirs:scaled" in refused(capsys, *theirs_now)
    main([*map(str, theirs_now), "--changed-algorithm"])
    assert manifests.read(out) == manifest  # it was looked at, not trained
    theirs()
    main(["retrace", str(out), "--seed", "1", "--update", "3", "--out", str(tmp_path / "one")])
    assert "all are equal to the bit" in capsys.readouterr().out
    main(["export", str(out), "--to", "onnx", "--out", str(tmp_path / "policy.onnx")])
    assert "an env part of theirs:scaled makes of observations" in capsys.readouterr().out
    main(["render", str(out), "--seed", "0", "--before", "--out", str(tmp_path / "0.gif")])
    main(line)  # finished


def test_what_depends_on_the_budget_is_not_extended(theirs, tmp_path, capsys):
    """A schedule of one's own; what does not use the budget is."""
    made = importlib.import_module("theirs")
    config = jaxpg.Config(
        num_envs=3, num_steps=24, total_steps=144, hidden_sizes=(6,), lr_schedule="constant"
    )
    for build in (made.scaled, made.annealed, made.counted):
        out = tmp_path / build.__name__
        directories.begin(out, planning.plan("vpg", config, [1, 2], 2, build=build))
    main(["extend", str(tmp_path / "scaled"), "--total-steps", "216", "--no-report"])
    for name in ("annealed", "counted"):
        told = refused(capsys, "extend", tmp_path / name, "--total-steps", 216)
        assert f"theirs:{name} depends on the budget, so that the updates it has made are" in told
        assert manifests.read(tmp_path / name).config == config


def test_another_source_is_refused_with_both_hashes_unless_it_is_meant(
    theirs, stopped, tmp_path, capsys
):
    before = theirs()
    after = theirs(MODULE.replace("2.0 * psi", "3.0 * psi"))
    begun = manifests.read(stopped)
    assert begun.build_sha256 == before
    for words in (
        ["resume", stopped],
        ["train", "vpg", *SMALL, "--seeds", "1:3", *OWN, "--out", stopped],
        ["retrace", stopped, "--seed", 1],
        ["merge", stopped, "--out", tmp_path / "merged"],
    ):
        said = refused(capsys, *words)
        assert f"its SHA-256 was {before} and is {after}" in said
        assert "--changed-algorithm" in said
    assert manifests.read(stopped) == begun
    main(["resume", str(stopped), "--changed-algorithm", "--no-report"])
    ended = manifests.read(stopped)
    assert (ended.build_sha256, ended.made["former_sources"]) == (after, [before])
    assert directories.is_finished(stopped)
    main(["train", "vpg", *SMALL, "--seeds", "1:3", *OWN, "--out", str(stopped), "--no-report"])
    assert "is finished" in capsys.readouterr().out


def test_until_something_is_saved_the_source_may_change(theirs, tmp_path, monkeypatch):
    """As of who mends what failed while it was traced, of which nothing is left, or trained."""
    out = tmp_path / "run"
    line = ["train", "vpg", *SMALL, "--seeds", "2", *OWN, "--no-report", "--out", str(out)]
    theirs(MODULE.replace("scale * algorithm", "nothing * algorithm"))
    with pytest.raises(NameError):
        main(line)
    assert not out.exists()

    def fail(*arguments, **options):
        raise FloatingPointError

    with monkeypatch.context() as patched:
        patched.setattr(run, "train", fail)
        for remark in ("# one", "# another"):
            begun = theirs(MODULE + remark)
            with pytest.raises(FloatingPointError):
                main(line)
            assert manifests.read(out).build_sha256 == begun
    mended = theirs()
    main(["resume", str(out), "--no-report"])
    assert manifests.read(out).build_sha256 == mended


def test_a_sweep_of_options(theirs, tmp_path, capsys):
    """Fractions are settings of one program, and nothing is imported to report it."""
    out = tmp_path / "sweep"
    grid = ["--grid", "option.scale=0,1.5", "option.twice=true"]
    line = ["sweep", "vpg", *grid, *OWN, *SMALL, "--seeds", "2", "--out", str(out)]
    main(line)
    (name,) = sweep.read(out).names
    assert name == "1-option.twice=true"
    found = load(out / name)
    assert list(found.settings) == [{"option.scale": 0.0}, {"option.scale": 1.5}]
    assert found.manifest.options == {"scale": 0.0, "twice": True}
    assert set(found.to_frame()["option.scale"]) == {0.0, 1.5}
    theirs("raise SystemError('executed')")
    main(["report", str(out)])
    main(["report", str(out / name)])
    assert "option.scale" in (out / "report.html").read_text()
    theirs()
    where = str(out / name)
    for command in (
        ["evaluate", where],
        ["render", where],
        ["export", where, "--to", "safetensors"],
        ["retrace", where, "--seed", "0"],
    ):  # the best of which?
        assert "there are 2 settings: choose one" in refused(capsys, *command)
    for setting in ("0", "1"):
        main(["export", where, "--to", "safetensors", "--seed", "1", "--setting", setting])
    first, second = (out / name / f"seed-1-setting-{i}.safetensors" for i in range(2))
    assert first.read_bytes() != second.read_bytes()
    main(["retrace", where, "--seed", "1", "--setting", "1", "--update", "0"])
    assert (out / f"{name}-seed-1-setting-1").is_dir()
    main(line)
    assert "is finished" in capsys.readouterr().out
    assert "options: " in refused(capsys, *line, "--option", "scale=3")


def test_a_race_of_options(theirs, tmp_path, capsys):
    out = tmp_path / "race"
    names = ["vpg", "vpg,algorithm=theirs:scaled,option.scale=2"]
    small = [*SMALL, "--first-round", "6", "--max-seeds", "6", "--out", str(out)]
    main(["race", *names, *small])
    ours = sorted(path for path in out.iterdir() if path.is_dir())
    found = [manifests.read(directory) for directory in ours]
    assert [(one.build, one.options.get("scale")) for one in found] == [
        (None, None),
        ("theirs:scaled", 2.0),
    ]
    assert json.loads((out / "race.json").read_text())["contenders"][1]["options"] == {"scale": 2}
    main(["race", *names, *small])  # decided before
    capsys.readouterr()
    for contender, words in (
        ("vpg,option.scale=2", "must have one algorithm=MODULE:FUNCTION"),
        ("vpg,algorithm=theirs:scaled,option.scael=2", "has no parameter 'scael'"),
        ("vpg,algorithm=theirs:scalde", "has no function 'scalde'"),
    ):
        other = tmp_path / "other"
        assert words in refused(capsys, "race", "vpg", contender, *small[:-1], other)
        assert not other.exists()


def test_a_callback_is_called_after_each_commit(theirs, stopped, tmp_path, capsys):
    """With what is safe by then; one that fails ends nothing."""
    main(["resume", str(stopped), "--no-report", "--callback", "theirs:watch"])
    lines = [json.loads(line) for line in (stopped / "watched.jsonl").read_text().splitlines()]
    told = [json.loads(line) for line in (stopped / "progress.jsonl").read_text().splitlines()]
    assert [x[0] for x in lines] == [x["fraction"] for x in told][-len(lines) :]
    assert lines[-1] == [1.0, 2 * 504]
    for name in ("fails", "leaves"):
        out = tmp_path / name
        small = [*SMALL, "--seeds", "2", "--no-report", "--out", str(out)]
        main(["train", "vpg", *small, "--callback", f"theirs:{name}"])
        said = capsys.readouterr().err
        assert said.count(f"the callback theirs:{name} failed, and is told nothing more") == 1
        assert directories.is_finished(out)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--option", "scale=1"], "--algorithm is missing"),
        ([*OWN, "--option", "scale"], "--option must be NAME=VALUE, each name once; got 'scale'"),
        ([*OWN, "--option", "scale=1", "scale=2"], "each name once; got 'scale=2'"),
        ([*OWN, "--option", "scale=much"], "--option scale must be a number, true or false"),
        ([*OWN, "--option", f"scale=1{'0' * 400}"], "option scale must be a finite number"),
        ([*OWN, "--option", "scael=1"], "theirs:scaled has no parameter 'scael'"),
        (["--algorithm", "theirs"], "--algorithm must be MODULE:FUNCTION; got 'theirs'"),
        (["--algorithm", "theirs:scalde"], "has no function 'scalde'; did you mean 'scaled'?"),
        (["--callback", "theirs:wacth"], "has no function 'wacth'; did you mean 'watch'?"),
    ],
)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_what_is_not_there_is_refused_before_anything_is_written(
    command, words, says, theirs, tmp_path, capsys
):
    out = tmp_path / "out"
    grid = ["--grid", "gamma=0.9,0.99"] if command == "sweep" else []
    assert says in refused(capsys, command, "vpg", *SMALL, *grid, *words, "--out", out)
    assert not out.exists()


BROKEN = """
import jaxpg


def no_config():
    return jaxpg.build


def unset(config, *, power: float):
    return jaxpg.build(config)


def branches(config, power=0.0):
    return jaxpg.build(config) if power > 0.5 else jaxpg.build(config)


def one_number(config):
    return jaxpg.build(config)._replace(advantage=lambda path, *_, **__: path.reward.sum())


def one_target(config):
    return jaxpg.build(config)._replace(value_target=lambda path, *_, **__: path.reward[:, :1])
"""


@pytest.mark.parametrize("command", [["train"], ["sweep", "--grid=gamma=0.9,0.99"]])
@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("no_config", "theirs:no_config must take a config, as jaxpg.build does"),
        ("unset", "theirs:unset must be given 'power': --option power=VALUE"),
        ("branches", "theirs:branches uses a traced number"),
        ("one_number", "advantage must give [T, N], (24, 3); got ()"),
        ("one_target", "value_target must give [T, N], (24, 3); got (24, 1)"),
    ],
)
def test_what_makes_no_algorithm_is_one_sentence(function, said, command, theirs, tmp_path, capsys):
    theirs(BROKEN)
    own = ["--algorithm", f"theirs:{function}", "--out", tmp_path / "run"]
    assert said in refused(capsys, *command, *SMALL, "--seeds=2", *own)
    assert not (tmp_path / "run").exists()


def test_a_contender_that_makes_no_algorithm_is_one_sentence(theirs, tmp_path, capsys):
    """Before the race is written, and another contender trained."""
    theirs(BROKEN)
    line = ["race", "vpg", "vpg,algorithm=theirs:one_number", *SMALL, "--out", tmp_path / "race"]
    assert "advantage must give [T, N], (24, 3); got ()" in refused(capsys, *line)
    assert not (tmp_path / "race").exists()


def test_a_grid_of_options_needs_an_algorithm_that_has_them(theirs, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    said = refused(capsys, "sweep", *SMALL, "--grid", "option.scale=0,1", *out)
    assert "option.scale is an option of an algorithm of one's own" in said
    said = refused(capsys, "sweep", *SMALL, *OWN, "--grid", "option.scael=0,1", *out)
    assert "has no parameter 'scael'" in said
    assert not (tmp_path / "out").exists()


def test_networks_that_are_no_chain_are_exported_as_such_or_not_at_all(theirs, tmp_path, capsys):
    """The layers have the names of a config's networks, and mean something else."""
    halved = """
import jaxpg


def scaled(config):
    algorithm = jaxpg.build(config)
    networks = algorithm.networks
    policy = lambda params, obs: 0.5 * networks.policy(params, obs)
    return algorithm._replace(networks=networks._replace(policy=policy))
"""
    theirs(halved)
    out = tmp_path / "run"
    main(["train", "vpg", *SMALL, "--seeds", "2", *OWN, "--no-report", "--out", str(out)])
    for target in ("onnx", "torch"):
        said = refused(capsys, "export", out, "--to", target)
        assert f"--to {target} writes chains of layers" in said
    main(["export", str(out), "--to", "stablehlo", "--out", str(tmp_path / "policy")])
    from jax import export

    policy = export.deserialize(bytearray((tmp_path / "policy").read_bytes()))
    obs = np.ones((3, 4), np.float32)
    seed = load(out).row("best")
    given = jaxpg.load(out, build=importlib.import_module("theirs").scaled)
    acting = given.policy(int(given.population.seeds[seed]))
    expected = acting.actor.outputs(acting.params, obs)
    np.testing.assert_allclose(policy.call(obs)["logits"], expected, rtol=1e-5)


def test_a_checkpoint_knows_the_options_that_it_was_trained_with():
    def identity(options):
        chunk, *_ = population.make_chunks(jaxpg.Config(), [1, 2], [{}], 2, EnvParams(options))
        return checkpoints.identity(chunk)

    found = [identity(x) for x in ({}, {"scale": 1.0}, {"scale": 2.0}, {"scale": 2.0, "n": 1})]
    assert len(set(found)) == 4


def test_an_option_that_a_function_has_lost(theirs, stopped, capsys):
    theirs(MODULE.replace("scale=1.0, twice=False", "twice=False").replace("scale *", "1.0 *"))
    said = refused(capsys, "resume", stopped, "--changed-algorithm")
    assert "theirs:scaled has no parameter 'scale'" in said
    with pytest.raises(ConfigError):
        manifests.algorithm(stopped, manifests.read(stopped), changed=True)
