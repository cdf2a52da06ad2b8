"""Sweeps: what is trained, what is refused, what a second start does, and the page."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import handmade
import numpy as np
import pytest
from browser import MISSING, chromium
from safetensors import safe_open

from jaxpg.analysis.outcomes import scores
from jaxpg.analysis.stats import estimate, estimate_over_seeds, iqm, mean_iqm
from jaxpg.cli import launch
from jaxpg.cli import train as training
from jaxpg.cli.arguments import parse
from jaxpg.cli.commands import COMMANDS
from jaxpg.cli.main import main
from jaxpg.core.config import Config, ConfigError
from jaxpg.errors import DoesNotFit, RunError
from jaxpg.policies import export
from jaxpg.report import canvas, figures
from jaxpg.report import page as report
from jaxpg.report import sweep as sweep_report
from jaxpg.runs import directories, lock, manifests, reproduce, results, run, sweep
from jaxpg.runs.load import load
from jaxpg.runs.python import train_grid, train_population
from tests.report.test_report import EVIL, VISIBLE, Page

pytestmark = pytest.mark.usefixtures("programs_kept")

TINY = Config(  # of test_runs; the programs of all points are its, so they are compiled once
    num_envs=3,
    num_steps=24,
    total_steps=72 * 4,
    hidden_sizes=(6,),
    value_steps=2,
    lr_schedule="constant",
)
GRID: dict[str, list] = {"learning_rate": [1e-3, 1e-2], "total_steps": [72 * 3, 72 * 4]}
SEEDS = [0, 1, 2]


def planned(**changed) -> sweep.Plan:
    return sweep.Plan("vpg", TINY, GRID, "0:3", 2)._replace(**changed)


def line(out: Path, lanes: int | None = None) -> training.Sweep:
    """The command line of `planned`."""
    grid = tuple(f"{name}={','.join(map(sweep.written, GRID[name]))}" for name in GRID)
    return training.Sweep(config=TINY, grid=grid, run=training.Run(seeds="3", out=out, lanes=lanes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Stopped after the first of its two runs, then started again by the same line."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    first, _ = sweep.begin(out, planned())
    launch.to_the_end(first, launch.Launch(report=False))
    before = (first / "results.npz").stat().st_mtime_ns
    with pytest.raises(RunError, match="is not finished"):
        sweep_report.load_sweep(out)
    training.sweep(line(out))
    assert (first / "results.npz").stat().st_mtime_ns == before  # not trained again
    return out


@pytest.mark.slow
def test_every_point_is_what_train_grid_gives(trained):
    names = sorted(path.name for path in trained.iterdir() if path.is_dir())
    assert names == ["1-total_steps=216", "2-total_steps=288", "figures"]
    for name, point in zip(names, train_grid(TINY, SEEDS, GRID, lanes=2), strict=False):
        saved = load(trained / name)
        assert saved.config.total_steps == point.config.total_steps
        assert list(saved.settings) == [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}]
        np.testing.assert_array_equal(saved.population.setting, point.population.setting)
        ours, theirs = saved.population.metrics, point.population.metrics
        for field in ours._fields:
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


def test_points_are_in_the_order_of_the_grid_and_know_their_values(trained):
    found = sweep_report.load_sweep(trained)
    wanted = [(rate, total) for rate in GRID["learning_rate"] for total in GRID["total_steps"]]
    given = [(point.values["learning_rate"], point.values["total_steps"]) for point in found.points]
    assert given == wanted
    for point in found.points:
        whole = load(point.directory)
        rows = whole.population.setting == point.setting
        assert whole.config.total_steps == point.values["total_steps"]
        assert whole.settings[point.setting]["learning_rate"] == point.values["learning_rate"]
        np.testing.assert_array_equal(point.outcomes.final, whole.population.final_return[rows])
    assert found.ranked[0].score == max(point.score for point in found.points)


def test_what_is_made_of_a_setting_says_its_values(trained, capsys):
    """An export's config, the legend of curve.png, who has to choose one; and the page of a run of
    a sweep says the sweep's command."""
    first = trained / sweep.read(trained).names[0]
    content = export.export(load(first), 1, "safetensors", setting=1)
    (trained / "policy.safetensors").write_bytes(content)
    with safe_open(trained / "policy.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["config"])["learning_rate"] == 1e-2
    (trained / "policy.safetensors").unlink()
    labels, draw = [], figures.draw_iqm

    def watched(*curve, label, **look):
        labels.append(label)
        draw(*curve, label=label, **look)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_iqm", watched)
        figures.learning_curve(load(first), trained / "curve.png")
    (trained / "curve.png").unlink()
    assert labels == ["learning_rate=0.001", "learning_rate=0.01"]
    with pytest.raises(RunError, match=r"choose one, .* \(0: learning_rate=0.001; 1: "):
        load(first).which()
    (command,) = sweep_report.load_sweep(first).commands
    assert shlex.split(command)[:2] == ["jaxpg", "sweep"]


def test_the_same_line_again_trains_nothing_and_another_is_refused(trained, capsys):
    training.sweep(line(trained, lanes=2))
    shown = capsys.readouterr().out
    assert shown.count("is finished") == 2
    assert "learning_rate" in shown
    longer = "Points have trained for 216 environment steps or 288 environment steps."
    assert longer in " ".join(shown.split())
    assert longer in (trained / "report.html").read_text()
    assert f"report: {trained / report.NAME}" in shown
    for other, words in (
        (planned(seeds="0:4"), "seeds: '0:3' -> '0:4'"),
        (planned(grid={"gamma": [0.9]}), "grid:"),
        (planned(config=dataclasses.replace(TINY, gamma=0.5)), "gamma: 0.99 -> 0.5"),
    ):
        with pytest.raises(RunError, match="is a sweep of something else") as refused:
            sweep.begin(trained, other)
        assert words in str(refused.value)


def test_its_points_start_from_a_run_and_are_evaluated(tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    train_population(TINY, SEEDS, lanes=2, out=source)
    during = training.During(from_=source, evaluate_every=72, evaluate_episodes=2)
    asked = dataclasses.replace(line(out, lanes=2), during=during)
    training.sweep(asked)
    assert "greedy IQM" in capsys.readouterr().out
    found = sweep_report.load_sweep(out)
    how = {"start_from": source, "evaluate_every": 72, "evaluate_episodes": 2, "lanes": 2}
    for directory in {point.directory for point in found.points}:
        run = load(directory)
        alone = train_population(run.config, SEEDS, settings=run.settings, **how)
        for ours, theirs in zip(run.population.evaluations, alone.evaluations, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for point in found.points:
            if point.directory == directory:
                last = alone.evaluations.greedy[alone.setting == point.setting, -1]
                assert point.evaluated["greedy"].value == pytest.approx(float(iqm(last)))
    text = Page((out / report.NAME).read_text()).text
    assert "greedy at the end, IQM" in text
    training.sweep(asked)
    assert capsys.readouterr().out.count("is finished") == 2
    without = dataclasses.replace(during, from_=None)
    with pytest.raises(RunError, match=r"of something else \(start: '[0-9a-f]{64}' -> None\)"):
        training.sweep(dataclasses.replace(asked, during=without))
    with pytest.raises(ConfigError, match="evaluate_every must divide total_steps, 288"):
        sweep.plan("vpg", TINY, GRID, "3", 2, evaluate_every=108)


def test_a_point_that_another_process_trains_is_passed_over(tmp_path, capsys):
    out = tmp_path / "out"
    first, second = sweep.begin(out, planned())
    with lock.locked(first), pytest.raises(SystemExit) as ended:
        training.sweep(line(out))
    assert ended.value.code == 75
    assert directories.is_finished(second)
    assert "in use by process" in (said := capsys.readouterr().err)
    assert "give the same line again" in said


def test_a_signal_in_the_last_segment_of_a_run_stops_the_sweep(tmp_path, monkeypatch, capsys):
    """Nothing was left to stop of the run, but of the sweep."""

    def finished_as_it_was_stopped(*_, stop, **__):
        stop.set()
        return {}

    monkeypatch.setattr(run, "train", finished_as_it_was_stopped)
    monkeypatch.setattr(results, "closing", lambda *_: "")
    monkeypatch.setattr(launch, "draw", lambda *_, **__: None)
    with pytest.raises(SystemExit) as exit_:
        training.sweep(line(tmp_path / "out", lanes=2))
    assert exit_.value.code == 75
    assert "stopped before run 2; continue with: the same line" in capsys.readouterr().err


def test_a_point_that_does_not_fit_is_told_from_its_sweep(tmp_path, monkeypatch):
    def train(*_, **__):
        raise DoesNotFit("--lanes 5 would fit", 5)

    monkeypatch.setattr(run, "train", train)
    with pytest.raises(ConfigError, match="would fit; all runs of a sweep have the same lanes: "):
        training.sweep(line(tmp_path / "out", lanes=2))


def test_a_point_whose_evaluations_are_no_numbers_has_a_dash(trained, capsys):
    """Beside points that have them, on the terminal and on the page."""
    found = sweep_report.load_sweep(trained)
    assert found.modes == []
    one = estimate(iqm, [np.array([3.0, 4.0])])
    first, *others = found.points
    some = found._replace(points=[first._replace(evaluated={"greedy": one}), *others])
    assert some.modes == ["greedy"]
    sweep_report.show(some)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sum(line[-1] == "3.5" for line in lines if line) == 1
    assert sum(line[-1] == "-" for line in lines if line) == 3
    text = Page(sweep_report._page(some, {}, {})).text
    assert "greedy at the end, IQM" in text


def test_a_run_of_several_settings_alone_has_such_a_page_too(trained):
    directory = trained / "2-total_steps=288"
    assert report.make(directory) == directory / report.NAME
    text = Page((directory / report.NAME).read_text()).text
    assert "2 points of 3 seeds each" in text
    assert "Points have trained for" not in text
    assert "learning_rate=0.01" in text or "learning_rate=0.001" in text


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (["learning_rat=1"], "did you mean 'learning_rate'"),
        (["learning_rate"], "must be FIELD=VALUE,VALUE"),
        (["learning_rate="], "must be FIELD=VALUE,VALUE"),
        (["learning_rate=1e-3,abc"], "learning_rate must be a number; got 'abc'"),
        (["learning_rate=1e-3,0.001"], "has a value of learning_rate twice"),
        (["gamma=0.9", "gamma=0.8"], "has gamma twice"),
        (["gamma=0.9,1.5"], "gamma must be in [0, 1]; got 1.5"),
        (["num_envs=2.5"], "num_envs must be an integer; got '2.5'"),
        (["hidden_sizes=64,axb"], "hidden_sizes must be widths such as 64x64, or none; got 'axb'"),
        (["normalize_advantage=yes"], "normalize_advantage must be true or false; got 'yes'"),
        (["optimizer=adam,adm"], "did you mean 'adam'"),
        (["estimator=gae,total_return"], "needs collect='episodes'"),
        (["total_episodes=10,20"], "total_episodes needs collect='episodes': runs that differ in"),
        (["arithmetic=float32,float64"], "cannot have arithmetic"),
        ([], "at least once; got nothing"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_is_written(grid, words, tmp_path, capsys):
    out = tmp_path / "out"
    option = ["--grid", *grid] if grid else []
    with pytest.raises(SystemExit) as exit_:
        main(["sweep", "vpg", *option, "--out", str(out)])
    assert exit_.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("jaxpg: ")
    assert words in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("env", ["CartPole-v1", "Acrobot-v1"]),
        ("collect", ["steps", "episodes"]),
        ("max_episode_steps", [50, 500]),
    ],
)
def test_points_that_are_no_rivals_are_refused(name, values):
    with pytest.raises(ConfigError, match=f"not alike where {name} differs.*{values[1]}"):
        sweep.plan("vpg", TINY, {name: values}, "2", 2)


def test_values_of_every_kind_are_read():
    grid = sweep.parse_grid(
        [
            "hidden-sizes=32,64x64",
            "max_grad_norm=0.5,none",
            "max_episode_steps=none,7",
            "normalize_advantage=true,False",
            "optimizer=sgd,adam",
            "num_envs=4,8",
            "gamma=1,0.9",
        ]
    )
    assert grid == {
        "hidden_sizes": [(32,), (64, 64)],
        "max_grad_norm": [0.5, None],
        "max_episode_steps": [None, 7],
        "normalize_advantage": [True, False],
        "optimizer": ["sgd", "adam"],
        "num_envs": [4, 8],
        "gamma": [1.0, 0.9],
    }
    assert isinstance(grid["gamma"][0], float)
    for name, values in grid.items():
        again = sweep.parse_grid([f"{name}={','.join(map(sweep.written, values))}"])
        assert again == {name: values}  # it is written as parse_grid reads it


def test_the_command_line_is_that_of_train_and_a_grid():
    options = parse(
        "sweep",
        COMMANDS["sweep"],
        [
            "reinforce",
            "--grid",
            "gamma=0.9,1",
            "learning_rate=1e-3",
            "--seeds",
            "5",
            "--num-envs",
            "4",
        ],
    )
    assert (options.preset, options.grid, options.run.seeds) == (
        "reinforce",
        ("gamma=0.9,1", "learning_rate=1e-3"),
        "5",
    )
    grid = sweep.parse_grid(options.grid)
    asked = sweep.plan(options.preset, options.config, grid, options.run.seeds, None)
    assert asked.config.num_envs == 4
    assert asked.config.collect == "episodes"
    assert asked.seeds == "0:5"


def test_to_read_a_sweep_imports_no_environment(tmp_path):
    """A stranger's is safe to look at; what its module has was asked when it was planned."""
    config = dataclasses.replace(TINY, env="nowhere:Mine-v0")
    grid = {"env.slope": [1.0, 2.0], "env.depth": [3, 4]}
    asked = planned(config=config, grid=grid)
    (tmp_path / sweep.NAME).write_text(sweep._text(asked))
    found = sweep.read(tmp_path)
    assert found == asked
    assert found.names == ["1-env.depth=3", "2-env.depth=4"]
    with pytest.raises(ConfigError, match=r"'nowhere'.* cannot be imported"):
        sweep.plan("vpg", config, grid, "3", 2)


def test_other_directories_are_left_alone(tmp_path, trained):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"it holds notes\.txt"):
        sweep.begin(tmp_path, planned())
    with pytest.raises(RunError, match="is a run, and no sweep"):
        sweep.begin(trained / "1-total_steps=216", planned())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"schema": 9}', b'{"schema": 1, "grid": 3}', b"\xff", b"[" * 100_000],
)
def test_a_damaged_sweep_gets_a_sentence(tmp_path, content):
    (tmp_path / sweep.NAME).write_bytes(content)
    with pytest.raises(RunError, match=r"sweep\.json is damaged"):
        sweep.read(tmp_path)


def by_hand(out: Path, ends, *, preset: str = "vpg", env: str = "CartPole-v1") -> Path:
    """A sweep of value_steps and num_envs whose runs end with these returns, one row each."""
    out.mkdir()
    grid = {"value_steps": [1, 2], "lr_schedule": ["constant", "linear"]}
    config = Config(num_envs=2, num_steps=10, total_steps=60, hidden_sizes=(3,), env=env)
    asked = sweep.Plan(preset, config, grid, "0:3", 2)
    (out / sweep.NAME).write_text(sweep._text(asked))
    for name, program, end in zip(asked.names, asked.programs, ends, strict=True):
        returns = np.linspace(20, end, 3).T
        handmade.run(out / name, returns, preset=preset, env=env, **program)
        assert manifests.read(out / name).config == dataclasses.replace(config, **program)
    return out


ENDS = [[480, 490, 500], [20, 30, 40], [300, 310, 320], [400, 410, 500]]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    out = by_hand(tmp_path_factory.mktemp("page") / "out", ENDS)
    main(["report", str(out)])
    return out


def test_the_page_says_the_best_point_and_has_the_pictures(page):
    text = " ".join(Page((page / report.NAME).read_text()).text.split())
    assert "Best: value_steps=1, lr_schedule=constant." in text
    assert "These seeds do not tell the best apart from" in text  # three never do
    assert "Of 3 seeds an interval is too narrow" in text
    assert "4 points of 3 seeds each" in text
    assert "490.0" in text
    assert "a budget of 60 environment steps for each seed" in text
    assert "Reproduce it" in text
    assert "seeds 0:3" in text  # how it was made
    names = {path.stem for path in (page / report.FOLDER).glob("*.png")}
    assert names == {
        "sensitivity-value-steps",
        "sensitivity-lr-schedule",
        "heat-value-steps-lr-schedule",
        "learning-curves",
    }


def test_points_of_large_updates_have_trained_for_less(tmp_path):
    """An update that does not go into what is left of the budget is not made."""
    out = tmp_path / "out"
    out.mkdir()
    grid = {"num_steps": [10, 25]}
    config = Config(num_envs=2, num_steps=10, total_steps=60, hidden_sizes=(3,))
    asked = sweep.Plan("vpg", config, grid, "0:3", 2)
    (out / sweep.NAME).write_text(sweep._text(asked))
    for name, program in zip(asked.names, asked.programs, strict=True):
        updates = dataclasses.replace(config, **program).num_updates
        given = {"total_steps": 60, **program}
        handmade.run(out / name, np.linspace(20, [480, 490, 500], updates + 1)[1:].T, **given)
    main(["report", str(out)])
    text = " ".join(Page((out / report.NAME).read_text()).text.split())
    assert "2 points of 3 seeds each" in text
    assert "a budget of" not in text
    assert "Points have trained for 50 environment steps or 60 environment steps." in text


def test_what_is_as_good_is_no_less_told_apart_than_what_is_worse(tmp_path, capsys):
    out = by_hand(tmp_path / "out", [ENDS[0], ENDS[0], ENDS[1], ENDS[0]])
    main(["report", str(out)])
    text = " ".join(Page((out / report.NAME).read_text()).text.split())
    alike = ("value_steps=1, lr_schedule=linear", "value_steps=2, lr_schedule=linear")
    told = text.partition("do not tell the best apart from ")[2]
    assert all(told.find(one) in range(200) for one in alike)


def test_seeds_that_failed_count_alike_in_table_and_curve(tmp_path, monkeypatch):
    """With the lowest floor of all points, of which it is said what it is."""
    out = by_hand(tmp_path / "out", ENDS)
    name, program = (found[0] for found in (sweep.read(out).names, sweep.read(out).programs))
    shutil.rmtree(out / name)
    returns = np.linspace([100.0] * 3, [480, 490, 500], 3).T
    handmade.run(out / name, returns, frozen_at={0: 1, 1: 1, 2: 1}, **program)
    drawn, found = [], sweep_report.load_sweep(out)
    monkeypatch.setattr(
        figures, "draw_iqm", lambda axes, amount, returns, **look: drawn.append(returns)
    )
    with canvas.blank((3, 3)) as figure:
        sweep_report._curves(found).draw(figure.subplots())
    (failed,) = (i for i, one in enumerate(found.ranked) if one.directory.name == name)
    assert drawn[failed][:, -1].tolist() == [20.0] * 3
    assert found.ranked[failed].outcomes.scores.tolist() == [20.0] * 3
    assert "Seeds that failed count as untrained" in sweep_report._caveat(found)


def test_its_command_makes_the_same_sweep(page):
    asked = sweep.read(page)
    words = shlex.split(reproduce.sweep_command(asked))
    assert words[:3] == ["jaxpg", "sweep", "vpg"]
    again = parse("sweep", COMMANDS["sweep"], words[2:])
    grid = sweep.parse_grid(again.grid)
    what = (again.preset, again.config, grid, again.run.seeds, again.run.lanes)
    assert sweep.plan(*what) == asked


def test_of_points_that_are_as_good_all_are_the_best(tmp_path):
    out = by_hand(tmp_path / "out", [ENDS[0], ENDS[1], ENDS[0], ENDS[1]])
    found = sweep_report.load_sweep(out)
    assert [point.values["value_steps"] for point in found.best] == [1, 2]
    with canvas.blank((4, 3)) as figure:
        axes = figure.subplots()
        sweep_report._draw_heat(axes, found, "value_steps", "lr_schedule")
        frames = [one.get_xy() for one in axes.patches if one.get_linewidth() == 2.5]
    assert frames == [(-0.5, -0.5), (-0.5, 0.5)]
    sweep_report.make(found)
    text = " ".join(Page((out / report.NAME).read_text()).text.split())
    assert "Best: value_steps=1, lr_schedule=constant, and 1 as good." in text


def test_a_point_that_was_extended_is_no_point_of_the_sweep(tmp_path):
    """It has trained for longer than those that it would be ranked among."""
    out = by_hand(tmp_path / "out", ENDS)
    asked = sweep.read(out)
    point = out / asked.names[0]
    shutil.rmtree(point)
    handmade.run(point, np.full((3, 4), 500.0), total_steps=80, **next(iter(asked.programs)))
    with pytest.raises(RunError, match=r"no longer as the sweep has it \(total_steps: 60 -> 80\)"):
        sweep_report.load_sweep(out)


def test_points_in_other_environments_have_no_best(page, capsys):
    """Whose return is higher says little of what was trained."""
    found = sweep_report.load_sweep(page)
    where = {"env.gravity": [5.0, 20.0]}
    points = [
        point._replace(values={"env.gravity": x})
        for point, x in zip(found.points, where["env.gravity"], strict=False)
    ]
    worlds = found._replace(grid=where, points=points)
    assert not worlds.best
    sweep_report.show(worlds)
    shown = " ".join(capsys.readouterr().out.split())
    assert "Points of another env.gravity act in another environment" in shown
    assert "The best of many" not in shown
    assert found.best
    both = found._replace(grid={**where, "gamma": [0.9, 0.99]})
    assert both.apart == ["env.gravity"]
    assert not both.best  # it would be one of the easiest environment's
    for picture in sweep_report._sensitivities(both):
        said = "their mean in bold" in picture.caption
        assert said == (picture.title == "Sensitivity to env.gravity")


def test_who_finishes_no_episode_makes_no_point_the_best(tmp_path, capsys):
    """One seed that is lucky, and would be what the others count with."""
    out = by_hand(tmp_path / "out", [[450, 450, 450], *ENDS[1:]], env="Mine-v0")
    point = out / sweep.read(out).names[0]
    shutil.rmtree(point)
    lucky = np.full((3, 3), np.nan)
    lucky[0, -1] = 450.0
    program = next(iter(sweep.read(out).programs))
    handmade.run(point, lucky, env="Mine-v0", **program)
    found = sweep_report.load_sweep(out)
    assert found.ranked[0].directory != point
    assert {one.outcomes.floor for one in found.points} == {20.0}
    assert found.points[0].score < 200 < found.best[0].score
    sweep_report.show(found)
    assert "no episode" in " ".join(capsys.readouterr().out.split())
    assert "2 seeds finished no episode, the first of them seed 1" in results.closing(
        load(point).summary, point
    )


@pytest.mark.parametrize(
    ("values", "side_by_side"),
    [([1e-3, 1e-2], False), ([0.9, 0.99, 0.995, 0.999, 1.0], True), ([0.3, 0.1, 0.1001], True)],
)
def test_labels_of_an_axis_are_not_written_over_one_another(values, side_by_side):
    with canvas.blank((4.6, 2.95)) as figure:
        places = sweep_report._places(figure.subplots(), values)
    ranks = [sorted(values).index(x) for x in values]
    assert places.tolist() == (ranks if side_by_side else values)


def test_of_many_labels_those_are_left_out_that_would_be_written_over_others():
    values = [1e-3, 0.00123456, 3.2e-3, 5e-3, 0.01, 0.03, 0.1, 0.12345, 0.2, 0.3, 0.5, 0.7]
    for some in (values, [f"{x:g}" for x in values]):
        with canvas.blank((4.6, 2.95)) as figure:
            axes = figure.subplots()
            places = sweep_report._places(axes, some)
            shown = [label.get_text() for label in axes.get_xticklabels()]
        kept = np.array([i for i, label in enumerate(shown) if label])
        assert len(shown) == 12
        assert kept.tolist() == list(range(0, 12, 2))
        assert [shown[i] for i in kept] == [sweep.written(some[i]) for i in kept]
        assert not sweep_report._collide(axes, places, shown, kept)


def test_curves_are_named_by_what_tells_them_apart(page):
    found = sweep_report.load_sweep(page)
    shown = [one for one in found.ranked if one.values["value_steps"] == 2]
    assert len(shown) == 2
    with canvas.blank((4.6, 2.95)) as figure:
        axes = figure.subplots()
        sweep_report._draw_curves(axes, found, shown)
        labels = axes.get_legend_handles_labels()[1]
    assert len({*labels}) == len(shown)
    assert not any("value_steps" in label for label in labels)


def test_a_fields_sensitivity_is_the_mean_over_the_other_fields(page):
    found = sweep_report.load_sweep(page)
    first = [point for point in found.points if point.values["value_steps"] == 1]
    pooled = sweep_report._pooled(first)
    assert pooled == estimate_over_seeds(mean_iqm, np.array(ENDS[:2], float).T)
    # As a cell of a heat map is; each seed is resampled with its scores in both points.
    assert pooled.value == np.mean([point.score for point in first])
    assert pooled.low > 20
    assert pooled.high < 500


CELLS = """
function light(color) {
  const [x, y, z] = color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}
return [...document.querySelectorAll('figure[id^=heat] text')]
  .filter(x => x.getAttribute('style').includes('--on-'))
  .map(x => {
    x.scrollIntoView({block: 'center'});
    const box = x.getBoundingClientRect();
    const all = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    const cell = all.filter(y => y.tagName === 'path' && getComputedStyle(y).fill !== 'none')[0];
    const [a, b] = [x, cell].map(y => light(getComputedStyle(y).fill));
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), b];
  });
"""
HINTS = """
const [sheet, aside] = ['.sheet', '.aside'].map(x => document.querySelector(x));
return [sheet.scrollWidth > sheet.clientWidth, getComputedStyle(sheet).backgroundImage,
        aside.getBoundingClientRect().height > 0];
"""


def test_the_page_in_a_browser(page):
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    with chromium() as browser:
        for width in (1280, 390):
            for dark in (False, True):
                browser.open(page / report.NAME, width=width, dark=dark)
                assert browser.messages() == []
                assert browser.run("return document.documentElement.scrollWidth") == width
                assert len(browser.run(VISIBLE)) == 4
                # A heat map's cells follow light and dark, and the text on them can be read.
                cells = browser.run(CELLS)
                assert len(cells) == 4
                assert min(ratio for ratio, _ in cells) >= 4.5
                lowest = cells[1][1]  # the worst point is the second of the first row
                assert lowest < 0.05 if dark else lowest > 0.8
                # The table is cut off: its end has a shadow, and on a phone a sentence says it.
                cut, shadow, aside = browser.run(HINTS)
                assert cut
                assert "gradient" in shadow
                assert aside == (width == 390)


def test_a_strangers_sweep_injects_nothing(tmp_path):
    out = by_hand(tmp_path / "out", ENDS, preset=EVIL, env=EVIL)
    main(["report", str(out), "--solved", "400"])
    page = Page((out / report.NAME).read_text())
    assert not page.all("script")
    assert not page.all("img")
    assert EVIL in page.text


def test_a_point_that_finished_no_episode_counts_as_the_worst(tmp_path):
    """Its seeds are in the sensitivity of every field, where leaving them out would flatter it."""
    out = by_hand(tmp_path / "out", [[480, 490, 500], [np.nan] * 3, [8, 310, 320], [400, 410, 500]])
    found = sweep_report.load_sweep(out)
    assert [point.score for point in found.points] == [490, 8, pytest.approx(638 / 3), 436 + 2 / 3]
    first = [point for point in found.points if point.values["value_steps"] == 1]
    assert sweep_report._pooled(first).value == (490 + 8) / 2


def test_a_sweep_without_returns_has_a_page_too(tmp_path, capsys):
    out = by_hand(tmp_path / "out", np.full((4, 3), np.nan))
    main(["report", str(out)])
    found = sweep_report.load_sweep(out)
    sweep_report.show(found)
    assert "value_steps" in capsys.readouterr().out
    assert "no return to report" in Page((out / report.NAME).read_text()).text


def test_sweep_json_says_what_is_swept(page):
    content = json.loads((page / sweep.NAME).read_text())
    assert content["grid"] == {"value_steps": [1, 2], "lr_schedule": ["constant", "linear"]}
    assert sweep.read(page).lanes == 2


@pytest.mark.slow
def test_the_optuna_example_runs():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    text = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    small = block.replace('dataclasses.replace(jaxpg.preset("vpg"), total_steps=20_480)', "TINY")
    small = small.replace("settings=settings)", "settings=settings, lanes=2)")  # compiled before
    assert small.count("TINY") == small.count("lanes=2") == 1
    namespace: dict = {"TINY": TINY}
    exec(small, namespace)
    study, last = namespace["study"], namespace["found"]
    assert len(study.trials) == 8
    assert all(1e-3 <= trial.params["learning_rate"] <= 1e-1 for trial in study.trials)
    told = [trial.value for trial in study.trials[4:]]
    wanted = [float(iqm(scores(last)[last.setting == i])) for i in range(4)]
    assert told == wanted
    assert study.best_value == max(trial.value for trial in study.trials)


def test_fractions_of_an_environment_are_settings_and_its_integers_are_programs():
    """However they are written; and the names of the run directories say them."""
    grid = sweep.parse_grid(["env.gravity=5,10,20", "gamma=0.9,0.99"])
    planned = sweep.plan("vpg", TINY, grid, "2", 2)
    assert planned.grid["env.gravity"] == [5.0, 10.0, 20.0]
    assert planned.names == ["1-all"]
    assert [*map(repr, planned.combinations[0].values())] == ["5.0", "0.9"]
    memory = dataclasses.replace(TINY, env="MemoryChain-bsuite")
    planned = sweep.plan("vpg", memory, sweep.parse_grid(["env.memory_length=2,3"]), "2", 2)
    assert planned.names == ["1-env.memory_length=2", "2-env.memory_length=3"]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("env.gravty=5,9", "did you mean 'gravity'"),
        ("env.gravity=5,strong", "env.gravity must be a number, true or false; got 'strong'"),
        ("env.gravity=5,5", "has a value of env.gravity twice"),
        ("env.max_steps_in_episode=5,9", "is max_episode_steps"),
        ("env_params=5,9", "has each parameter by its name, as env.gravity"),
    ],
)
def test_grids_of_no_parameters_are_refused(entry, sentence):
    with pytest.raises(ConfigError, match=sentence):
        sweep.plan("vpg", TINY, sweep.parse_grid([entry]), "2", 2)


def test_points_that_are_alike_are_not_told_apart(tmp_path):
    """20 of which one is the best by chance: at 95 % each, some of the others were told apart from
    it in 84 % of all sweeps. One that is really worse still is."""
    found = sweep_report.load_sweep(by_hand(tmp_path / "out", ENDS))
    rng, told = np.random.default_rng(15), 0
    for _ in range(40):
        points = []
        for _ in range(20):
            ends = found.points[0].outcomes._replace(
                final=rng.normal(300.0, 60.0, 16), diverged=np.zeros(16, bool), floor=0.0
            )
            iqm_of = {"iqm": estimate(iqm, [ends.final])}
            points.append(found.points[0]._replace(outcomes=ends, measures=iqm_of))
        told += len(sweep_report._rivals(found._replace(points=points))) < 19
    assert told <= 5
    low = points[0].outcomes.final - 300.0
    ends = points[0].outcomes._replace(final=low)
    points[0] = points[0]._replace(outcomes=ends, measures={"iqm": estimate(iqm, [low])})
    assert len(sweep_report._rivals(found._replace(points=points))) == 18


def test_a_point_of_other_seeds_is_no_part_of_it(tmp_path):
    """Seeds are compared one by one: those of more, or of others, are not the same."""
    out = by_hand(tmp_path / "out", ENDS)
    point = out / sweep.read(out).names[1]
    shutil.rmtree(point)
    program = sweep.read(out).programs[1]
    handmade.run(point, np.linspace(20, [20, 30, 40, 50], 3).T, **program)
    with pytest.raises(RunError, match="has the seeds 0:4, and the sweep that it is a part of 0:3"):
        sweep_report.load_sweep(out)
