"""jaxpg race: what is trained, what a second start does, what is said, and what is refused."""

import json

import handmade
import numpy as np
import pytest

from jaxpg.analysis.outcomes import counted
from jaxpg.analysis.race import race as judge
from jaxpg.cli import launch
from jaxpg.cli import race as command
from jaxpg.cli.arguments import parse
from jaxpg.cli.commands import COMMANDS
from jaxpg.cli.main import main
from jaxpg.core.config import FIELDS
from jaxpg.core.presets import PRESETS, preset
from jaxpg.errors import RunError
from jaxpg.report import race as report
from jaxpg.runs import directories, edit, manifests, planning
from jaxpg.runs import race as races
from jaxpg.runs.load import load
from jaxpg.runs.python import train_population

pytestmark = pytest.mark.usefixtures("programs_kept")

TINY = [
    "--num-envs=3",
    "--num-steps=24",
    "--total-steps=288",
    "--hidden-sizes=6",
    "--value-steps=2",
]
# The second learns nothing, and the program of both is one, so it is compiled once.
NAMES = ["vpg,learning_rate=3e-2", "vpg,learning_rate=1e-9"]
SEEDS = ["--first-round", "6", "--max-seeds", "8", "--start-seed", "3", "--lanes", "2"]
LINE = ["race", *NAMES, *TINY, *SEEDS]


def parsed(*words) -> command.Race:
    return parse("race", COMMANDS["race"], words)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Killed where the first contender has its second round's seeds before the other has any."""
    out = tmp_path_factory.mktemp("race") / "out"
    asked = races.begin(out, command.settle(parsed(*LINE[1:])))
    launch.to_the_end(races.enter(out, asked, 0, 6), launch.Launch(report=False))
    before = sorted((out / asked.names[0] / "checkpoints").iterdir())
    races.enter(out, asked, 0, 8)
    main([*LINE, "--out", str(out)])
    after = sorted((out / asked.names[0] / "checkpoints").iterdir())
    assert set(before) <= set(after)  # what was trained is not trained again
    return out


def test_a_contender_that_was_extended_is_none_of_the_race(tmp_path):
    asked = command.settle(parsed(*(x.replace("sizes=6", "sizes=3") for x in LINE[1:])))
    config = asked.contenders[0].config
    for updates, longer in ((4, False), (6, True)):
        fields = {name: getattr(config, name) for name in FIELDS}
        fields["total_steps"] = updates * config.update_cost
        out = tmp_path / f"{updates}"
        out.mkdir()
        handmade.run(out / asked.names[0], np.full((3, updates), 9.0), **fields)
        if longer:
            with pytest.raises(RunError, match=r"as the race has it \(total_steps: 288 -> 432\)"):
                races.scores(out, asked)
        else:
            assert [len(one) for one in races.scores(out, asked)] == [3, 0]


def test_a_signal_in_the_last_segment_of_a_run_stops_the_race(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(command, "to_the_end", lambda directory, *_, **__: asked.append(1) or True)
    with pytest.raises(SystemExit) as exit_:
        main([*LINE, "--out", str(tmp_path / "out")])
    assert exit_.value.code == 75
    assert len(asked) == 1
    said = "stopped before the race is over; continue with: the same line"
    assert said in capsys.readouterr().err


def test_each_contender_is_a_run_of_all_its_seeds(trained):
    asked = races.read(trained)
    assert [one.config.learning_rate for one in asked.contenders] == [3e-2, 1e-9]
    for one, name in zip(asked.contenders, asked.names, strict=True):
        saved = load(trained / name)
        assert saved.manifest.parts == ("3:9", "9:11")
        alone = train_population(one.config, range(3, 11), lanes=2)
        np.testing.assert_array_equal(saved.population.seeds, alone.seeds)
        np.testing.assert_array_equal(saved.population.final_return, alone.final_return)
        for ours, theirs in zip(saved.population.metrics, alone.metrics, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_run_has_no_seed_twice(trained):
    with pytest.raises(RunError, match="already has the seed 10"):
        edit.add_seeds(trained / races.read(trained).names[0], [12, 10])


def test_what_is_found_is_what_the_statistics_say(trained):
    asked = races.read(trained)
    assert asked.plan.rounds == (6, 8)
    populations = [load(trained / name).population for name in asked.names]
    scores = [counted(one.final_return, one.frozen_at >= 0, -np.inf) for one in populations]
    wanted = judge(asked.plan, scores)
    found = json.loads((trained / report.NUMBERS).read_text())
    assert [at["seeds"] for at in found["rounds"]] == [at.seeds for at in wanted] == [6, 8]
    (pair,) = found["rounds"][-1]["pairs"]
    (held,) = wanted[-1].pairs
    assert pair["probability_of_improvement"]["value"] == held.improvement.value
    assert pair["p_value"] == held.p_value
    assert found["contenders"][1]["directory"] == "2-vpg,learning_rate=1e-9"
    assert [one["seeds"] for one in found["contenders"]] == [8, 8]
    assert (trained / report.PICTURE).read_bytes().startswith(b"\x89PNG")


def test_the_same_line_again_trains_nothing_and_says_the_same(trained, capsys):
    before = [path.stat().st_mtime_ns for path in sorted(trained.glob("*/results.npz"))]
    main([*LINE, "--out", str(trained)])
    shown = capsys.readouterr().out
    assert "race: round 1 of 2, 6 seeds each: A beats B with probability" in shown
    assert "race: round 2 of 2, 8 seeds each" in shown
    assert "the chance of telling alike ones apart is held at 0.05" in shown
    assert f"numbers: {trained / 'decision.json'}" in shown
    assert before == [path.stat().st_mtime_ns for path in sorted(trained.glob("*/results.npz"))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--max-seeds", "16"], "rounds: (6, 8) -> (6, 8, 12, 16)"),
        (["--alpha", "0.1"], "alpha: 0.05 -> 0.1"),
        (["--gamma", "0.5"], "vpg,learning_rate=1e-9: gamma: 0.99 -> 0.5"),
        (["--start-seed", "0"], "start: 3 -> 0"),
    ],
)
def test_a_race_is_what_was_settled_before_it(change, words, trained, capsys):
    option, value = change
    line = [*LINE, option, value]
    if option in LINE:
        line = [*LINE]
        line[LINE.index(option) + 1] = value
    assert words in refused([*line, "--out", str(trained)], capsys)


def test_it_says_which_environment_it_was(capsys):
    asked = command.settle(parsed(*NAMES, *TINY, *SEEDS, "--env-params", "gravity=12"))
    scores = [np.arange(8.0), np.arange(8.0) - 100]
    report.show(asked, judge(asked.plan, scores), scores)
    assert capsys.readouterr().out.startswith("CartPole-v1 with gravity=12; ")


def test_other_contenders_are_another_race(trained, capsys):
    said = refused(["race", NAMES[0], "vpg,gamma=0.5", *TINY, *SEEDS, "--out", trained], capsys)
    assert "(contenders: ['vpg,learning_rate=3e-2', 'vpg,learning_rate=1e-9'] -> ['vpg," in said
    assert "None" not in said


def test_a_contender_of_other_seeds_is_refused(trained, tmp_path, capsys):
    out = tmp_path / "out"
    asked = races.begin(out, command.settle(parsed(*LINE[1:])))
    one = asked.contenders[0]
    directories.begin(out / asked.names[0], planning.plan(one.preset, one.config, [7, 9], 2))
    assert "which no round of the race ends with" in refused([*LINE, "--out", str(out)], capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "race needs between 2 and 8 contenders; got 0"),
        (["vpg"], "race needs between 2 and 8 contenders; got 1"),
        (["vpg", "vgp"], "'vgp' is no preset; did you mean 'vpg'"),
        (["vpg", "vpg"], "vpg and vpg are the same"),
        (["trpo", "trpo,learning_rate=0.1"], "are the same: contenders must differ"),
        (["vpg", "vpg,clip_coef=0.1"], "are the same: contenders must differ"),
        (["vpg", "vpg,total_episodes=9"], "are the same: contenders must differ"),
        (["vpg", "vpg,gamma=1.5"], "vpg,gamma=1.5: gamma must be in [0, 1]; got 1.5"),
        (["vpg", "vpg,gama=0.5"], "unknown field 'gama'; did you mean 'gamma'"),
        (["vpg", "vpg,gamma"], "vpg,gamma must be FIELD=VALUE; got 'gamma'"),
        (["vpg", "vpg,gamma=much"], "gamma must be a number; got 'much'"),
        (["vpg", "vpg,gamma=0.5,gamma=0.6"], "has gamma twice"),
        (["vpg", "vpg,env=Acrobot-v1"], "contenders must have one env; vpg has 'CartPole-v1'"),
        (
            ["vpg", "vpg,env.gravity=5"],
            "contenders must have one environment; vpg,env.gravity=5 has",
        ),
        (
            ["vpg", "vpg,total_steps=1024"],
            "one budget; vpg has 488 updates of 1,024 environment steps",
        ),
        (["vpg", "vpg,arithmetic=float64"], "contenders must have one arithmetic"),
        (["vpg", "reinforce"], "contenders must have one budget"),
        (["vpg", "vpg,gamma=0.5", "--max-seeds", "8"], "--max-seeds must be at least --first-ro"),
        (["vpg", "vpg,gamma=0.5", "--first-round", "1"], "that at least 2; got 256 and 1"),
        (
            ["vpg", "vpg,gamma=0.5", "--first-round", "2", "--max-seeds", "4"],
            "--max-seeds must be at least 7, with fewer nothing can be decided",
        ),
        (["vpg", "vpg,gamma=0.5", "--alpha", "0"], "--alpha must be in (0, 1); got 0"),
        (["vpg", "vpg,gamma=0.5", "--start-seed", "-1"], "must be in [0, 2^32)"),
        (["vpg", "vpg,gamma=0.5", "--max-seeds", "10000000"], "10,000 swaps of 10,000,000 seeds"),
        (["vpg", "vpg,gamma=0.5", "--alpha", "1e-9"], "too much together"),
        (["vpg", "vpg,gamma=0.5", "--lanes", "1"], "lanes must be in [2,"),
        (["vpg", "vpg,gamma=0.5", "--given", "x"], "unknown option --given"),
    ],
)
def test_bad_races_are_refused_in_a_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in refused(["race", *arguments], capsys)
    assert not any(tmp_path.glob("runs/**/*.json"))


def test_an_option_that_is_given_holds_for_all_and_one_that_is_not_for_none():
    # vpg's own λ of GAE, said: it is ppo's too, although parsing finds no difference to vpg's.
    said = f"--gae-lambda={PRESETS['vpg'].gae_lambda}"
    options = parsed("vpg", "ppo,gamma=0.5", "--total_steps", "4096", said, "--no-group-std")
    assert options.given == ("total_steps", "gae_lambda", "group_std")
    one, other = command.settle(options).contenders
    assert one.config.total_steps == other.config.total_steps == 4096
    assert other.config.gae_lambda == PRESETS["vpg"].gae_lambda != preset("ppo").gae_lambda
    assert (one.config.gamma, other.config.gamma) == (PRESETS["vpg"].gamma, 0.5)
    assert other.config.learning_rate == preset("ppo").learning_rate


def test_what_is_said_at_the_end(tmp_path, capsys):
    names = ["vpg", "vpg,gamma=0.5", "vpg,gamma=0.6"]
    asked = races.plan(names, {}, first_round=8, max_seeds=16, alpha=0.05)
    rng = np.random.default_rng(0)
    high, low, _ = scores = [rng.normal(mean, 1, 16) for mean in (9, 0, 9)]
    low[[2, 5, 15]] = -np.inf
    found = judge(asked.plan, scores)
    report.show(asked, found, scores)
    shown = capsys.readouterr().out
    assert "A is better" in shown
    assert "not decided between A and C with 16 seeds of each" in shown
    assert report.trained(asked, found) == [16, found[-1].pairs[0].seeds, 16]
    took = found[-1].pairs[0].seeds
    assert took < 16  # the last of those that failed was not raced
    assert f"B  vpg,gamma=0.5  ({took} seeds, 2 of them failed: below all others)" in shown
    report.save(tmp_path, asked, found, scores)
    saved = json.loads((tmp_path / report.NUMBERS).read_text())
    assert [one["failed"] for one in saved["contenders"]] == [0, 2, 0]
    assert saved["unbeaten"] == ["A", "C"]
    report.draw(tmp_path, asked, found)
    found = judge(asked.plan, [high, low, low - 9])
    assert report.outcome(asked, found[-1]) == "decided: A is the best (vpg)"
    last = found[-1]._replace(
        pairs=tuple(
            pair._replace(better=better)
            for pair, better in zip(found[-1].pairs, (0, None, 1), strict=True)
        )
    )  # A beats B, B beats C, and of A and C nothing is known
    assert report.outcome(asked, last) == (
        "decided: A (vpg) alone has lost to nobody; but it was not told apart from C"
    )


def test_a_damaged_plan_is_a_sentence(tmp_path):
    (tmp_path / races.NAME).write_text('{"schema": 1, "contenders": []}')
    with pytest.raises(RunError, match="is damaged: it lacks 'rounds'"):
        races.read(tmp_path)


def refused(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("jaxpg: ")
    assert manifests.NAME not in message
    return message
