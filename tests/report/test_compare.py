"""jaxpg compare: what it says of two runs, and what it refuses."""

import dataclasses
import itertools
import json
import string

import handmade
import numpy as np
import pytest

from jaxpg.analysis.stats import improvement, seeds_needed
from jaxpg.cli.main import main
from jaxpg.core.config import EnvParams
from jaxpg.report import compare
from jaxpg.runs import manifests

UPDATES = 5


def rising(ends) -> list[np.ndarray]:
    return [np.linspace(20, end, UPDATES) for end in ends]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs whose final returns overlap, the second of 7 seeds with a diverged and a silent."""
    folder = tmp_path_factory.mktemp("compare")
    good = handmade.run(folder / "good", rising([500, 490, 480, 470, 460, 450]))
    ends = [*rising([475, 440, 430, 420, 410, 500]), np.full(UPDATES, np.nan)]
    return good, handmade.run(folder / "poor", ends, frozen_at={5: 3}, gamma=0.9)


def told(capsys, *arguments) -> str:
    main(["compare", *map(str, arguments)])
    return capsys.readouterr().out


def test_the_picture_shows_as_many_as_may_be_compared(runs, tmp_path, monkeypatch):
    letters, drawn, draw_iqm = string.ascii_uppercase, [], compare.figures.draw_iqm

    def counted(*curve, label, **look):
        drawn.append(label[0])
        draw_iqm(*curve, label=label, **look)

    monkeypatch.setattr(compare.figures, "draw_iqm", counted)
    two = itertools.cycle(compare.entries(runs))
    some = [one._replace(letter=letter) for letter, one in zip(letters, two, strict=False)]
    compare.draw(some, tmp_path / "picture.png")
    assert "".join(drawn) == letters


def test_no_number_is_cut_off_however_many_are_compared(runs, capsys):
    some = [
        one._replace(letter=letter)
        for letter, one in zip(string.ascii_uppercase, compare.entries(runs) * 13, strict=True)
    ]
    compare.show(some, [])
    shown = capsys.readouterr().out
    assert "…" not in shown
    words = (line.split() for line in shown.splitlines())
    heads = [line for line in words if {*line} <= {*string.ascii_uppercase}]
    assert [letter for head in heads for letter in head] == list(string.ascii_uppercase)


def test_lines_side_by_side_differ_in_colour_and_dash():
    looks = [tuple(compare.figures.look(i).values()) for i in range(24)]
    assert len(set(looks)) == 24
    for (color, dash), (other, another) in itertools.pairwise(looks):
        assert color != other
        assert dash != another


def test_it_says_what_the_statistics_say(runs, tmp_path, capsys):
    numbers, picture = tmp_path / "numbers.json", tmp_path / "picture.png"
    shown = told(capsys, *runs, "--json", numbers, "--picture", picture)
    found = json.loads(numbers.read_text())
    good = np.array([500, 490, 480, 470, 460, 450.0])
    poor = np.array([475, 440, 430, 420, 410, 20, 20])  # the last two as untrained
    (pair,) = found["pairs"]
    wanted = improvement([poor], [good])
    assert pair["probability_of_improvement"]["value"] == pytest.approx(wanted.value)
    # 475 beats 470, 460 and 450; nobody else beats anybody: 3 of 42 pairs.
    assert pair["probability_of_improvement"]["value"] == pytest.approx(3 / 42)
    assert pair["seeds_needed"]["each"] == seeds_needed(poor, good)
    first, second = found["runs"]
    assert first["measures"]["iqm"]["value"] == pytest.approx((490 + 480 + 470 + 460) / 4)
    assert first["measures"]["solved"]["value"] == pytest.approx(3 / 6)
    assert second["measures"]["solved"]["value"] == pytest.approx(1 / 7)
    assert (second["seeds"], second["diverged"], second["without_episode"]) == (7, 1, 1)
    assert "B beats A with probability 0.071" in shown
    assert "A is better" in shown
    assert "B: 1 seed diverged" in shown
    assert "B: 1 seed finished no episode" in shown
    assert "475.0" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_all_may_be_held_against_another_and_be_called_something(runs, tmp_path, capsys):
    shown = told(capsys, *runs, "--against", "B", "--label", "ours", "theirs and more")
    assert "A beats B with probability 0.929" in shown  # 39 of the 42 pairs above
    assert "A  ours  (vpg" in shown
    assert "A: of 6 seeds an interval is too narrow" in shown
    assert "B  theirs and more  (vpg" in shown
    for options, message in (
        (["--against", "C"], "--against must be one of A, B; got 'C'"),
        (["--label", "ours"], "--label must name each of the 2 runs and settings"),
    ):
        with pytest.raises(SystemExit) as ended:
            told(capsys, *runs, *options)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_a_pdf_has_fonts_that_venues_take(runs, tmp_path, capsys):
    told(capsys, *runs, "--picture", tmp_path / "picture.pdf")
    content = (tmp_path / "picture.pdf").read_bytes()
    assert b"/TrueType" in content or b"/CIDFontType2" in content
    assert b"/Type3" not in content


def test_a_run_that_solves_nothing_is_compared_all_the_same(tmp_path, capsys):
    poor = handmade.run(tmp_path / "poor", rising([30, 31, 32, 33]))
    silent = handmade.run(tmp_path / "silent", np.full((3, UPDATES), np.nan))
    numbers = tmp_path / "numbers.json"
    shown = told(capsys, poor, silent, "--json", numbers, "--picture", tmp_path / "picture.svg")
    assert "B against A: one of them has no returns" in shown
    first, second = json.loads(numbers.read_text())["runs"]
    # None of four has by the end; that half of all seeds would have at any time is not excluded.
    wanted = {"value": None, "ci95_low": 0.0, "ci95_high": None}
    assert first["measures"]["time_to_solve"] == wanted
    assert first["measures"]["collapse"] is None
    assert second["measures"]["iqm"] is None
    assert second["measures"]["solved"]["value"] == 0


def test_equal_runs_are_not_told_apart_by_any_number_of_seeds(tmp_path, capsys):
    same = [handmade.run(tmp_path / name, rising([400, 450, 500])) for name in "ab"]
    shown = told(capsys, *same)
    assert "A, B: of 3 seeds an interval is too narrow" in shown  # once
    assert "0.500" in shown
    assert "not told apart; these seeds say nothing" in shown


def test_it_says_which_are_compared_within_a_seed(runs, tmp_path, capsys):
    """Of equal seed sets, wherever the one that they are held against stands."""
    good, poor = runs  # of 6 and of 7 seeds
    other = handmade.run(tmp_path / "other", rising([300, 310, 320, 330, 340, 350]))
    assert "all trained the same seeds" in told(capsys, good, other)
    assert "the same seeds" not in told(capsys, good, poor)
    for order, against, whose in (
        ([good, poor, other], "A", "C trained the seeds of A"),
        ([poor, good, other], "C", "B trained the seeds of C"),
    ):
        shown = told(capsys, *order, "--against", against)
        assert f"{whose}, others did not: only their probabilities" in shown.replace("\n", " ")


def test_seeds_that_failed_count_alike_in_both(tmp_path, capsys):
    """A's untrained return is 20, B's 100; what diverged in B counts as what is untrained in A."""
    ours = handmade.run(tmp_path / "a", rising([300] * 4))
    theirs = handmade.run(
        tmp_path / "b", [np.linspace(100, 400, UPDATES)] * 4, frozen_at={0: 2, 1: 2, 2: 2}
    )
    shown, (one, other) = told(capsys, ours, theirs), compare.entries([ours, theirs])
    assert one.outcomes.floor == other.outcomes.floor == 20.0
    assert other.measures["iqm"].value == 20.0
    assert "B: 3 seeds diverged: counted with a return of 20.0" in shown
    assert "B beats A with probability 0.250" in shown


def test_what_counts_as_solved_can_be_given(tmp_path, capsys):
    both = [handmade.run(tmp_path / name, rising([40, 50]), env="Mine-v0") for name in "ab"]
    assert "solved at" not in told(capsys, *both)
    assert "solved from 45" in told(capsys, *both, "--solved", "45")


def test_unequal_budgets_are_said_first_and_compared_after_the_smaller(runs, tmp_path, capsys):
    """B ends above A with almost twice the steps; after as many as A has taken it is below."""
    late = [np.array([20, 20, 20, 20, 30 + i, 500, 500, 500, 500.0]) for i in range(6)]
    longer = handmade.run(tmp_path / "longer", late, lr_schedule="constant")
    numbers, picture = tmp_path / "numbers.json", tmp_path / "picture.svg"
    shown = told(capsys, runs[0], longer, "--json", numbers, "--picture", picture)
    assert shown.splitlines()[0] == (
        "budgets differ (A 100 environment steps, B 180 environment steps): all are compared after "
        "100 environment steps of each seed"
    )
    assert "the learning rate of B falls" not in shown
    found = json.loads(numbers.read_text())
    assert found["compared_after"] == {"amount": 100, "unit": "environment steps"}
    assert found["runs"][1]["budget"] == {"amount": 180, "unit": "environment steps"}
    assert found["runs"][1]["measures"]["iqm"]["value"] == 32.5
    assert found["runs"][1]["measures"]["ever_solved"]["value"] == 0
    assert found["pairs"][0]["probability_of_improvement"]["value"] == 0
    assert "B beats A with probability 0.000 (0.000 to 0.428) after 100 environment steps" in shown
    assert found["notes"][0].startswith("budgets differ")


def test_what_only_whole_updates_have_made_is_said(runs, tmp_path, capsys):
    """Of 100 steps an update of 70 leaves 30; one of 33 leaves 1, which nobody asks for."""
    made = [np.linspace(20, 500, 2)] * 3
    coarse = handmade.run(tmp_path / "coarse", made, num_steps=35, total_steps=209)
    shown = told(capsys, runs[0], coarse).splitlines()
    assert shown[0].startswith("budgets differ (A 100 environment steps, B 140 environment steps)")
    assert shown[1] == "B is what its last whole update by then had made of it, after 70"
    near = handmade.run(
        tmp_path / "near", [np.linspace(20, 500, 4)] * 3, num_envs=1, num_steps=33, total_steps=150
    )
    shown = told(capsys, runs[0], near)
    assert "(A 100 environment steps, B 132 environment steps)" in shown.replace("\n", " ")
    assert "last whole update" not in shown


def test_curves_have_the_floor_of_the_table(tmp_path, monkeypatch):
    ours = handmade.run(tmp_path / "a", rising([300] * 4))
    theirs = handmade.run(
        tmp_path / "b", [np.linspace(100, 400, UPDATES)] * 4, frozen_at={0: 2, 1: 2, 2: 2}
    )
    drawn, draw_iqm = [], compare.figures.draw_iqm

    def watched(axes, amount, returns, **look):
        drawn.append(returns)
        draw_iqm(axes, amount, returns, **look)

    monkeypatch.setattr(compare.figures, "draw_iqm", watched)
    compare.draw(compare.entries([ours, theirs]), tmp_path / "picture.png")
    assert drawn[1][:3, -1].tolist() == [20.0] * 3


def test_what_was_trained_before_is_said_first(runs):
    """A run that starts from the other, or from one that is not compared."""
    first, second = compare.entries(runs)

    def started(whose, where):
        origin = manifests.Origin(where, whose, "c" * 64)
        run = dataclasses.replace(second.run, manifest=second.run.manifest._replace(start=origin))
        return compare.notes([first, second._replace(run=run)], [])[0]

    assert not compare.starts([first, second])
    parent = manifests.sha256(runs[0])
    assert started(parent, "x").startswith("B starts from what A had trained, which is not in its")
    assert started("d" * 64, "runs/x").startswith("B starts from what runs/x had trained")
    assert started("d" * 64, None).startswith("B starts from what a population in memory had")


def test_values_of_a_setting_are_said_whole():
    """A bound that there is not, and a number whose last digit decides."""
    said = compare.said({"max_grad_norm": None, "gamma": 0.12345678})
    assert said == "max_grad_norm=none, gamma=0.12345678"


def test_every_note_is_shown_once(runs, tmp_path, capsys):
    """Budgets, worlds and seeds together: each of them has a line."""
    made = [np.linspace(20, 500, 9)] * 3
    heavy = handmade.run(tmp_path / "heavy", made, env_params=EnvParams({"gravity": 12.0}))
    numbers = tmp_path / "numbers.json"
    shown = told(capsys, runs[1], heavy, "--json", numbers)
    lines = [" ".join(line.split()) for line in json.loads(numbers.read_text())["notes"]]
    assert len(lines) >= 4
    assert [" ".join(shown.split()).count(line) for line in lines] == [1] * len(lines)


def test_an_environment_from_another_file_is_said(runs):
    first, second = compare.entries(runs)
    what = second.run.manifest._replace(env_sha256="a" * 64)
    changed = second._replace(run=dataclasses.replace(second.run, manifest=what))
    assert not compare.worlds([first, second])
    (line,) = compare.worlds([first, changed])
    assert line.startswith("source files of the environment differ: which return is higher says")


def test_a_learning_rate_that_was_to_fall_later_is_said(runs, tmp_path, capsys):
    made = [np.linspace(20, 500, 9)] * 3
    longer = handmade.run(tmp_path / "longer", made, lr_schedule="linear")
    shown = told(capsys, runs[0], longer).splitlines()
    assert shown[1].startswith("the learning rate of B falls over a larger budget than that")
    assert "the learning rate" not in told(capsys, *runs)


def test_steps_and_episodes_are_compared_in_steps(runs, tmp_path, capsys):
    """The episodes of an update are 2 and take 10 steps each: 5 updates are 100, as A's are."""
    in_episodes = {
        "collect": "episodes",
        "total_episodes": 2 * UPDATES,
        "estimator": "reward_to_go",
    }
    ends = rising([475, 440, 430])
    other = handmade.run(tmp_path / "other", ends, steps_per_update=10, **in_episodes)
    numbers, picture = tmp_path / "numbers.json", tmp_path / "picture.svg"
    shown = told(capsys, runs[0], other, "--json", numbers, "--picture", picture)
    assert shown.splitlines()[0] == (
        "budgets differ (A 100 environment steps, B 10 episodes in 50 steps): all are "
        "compared after 50 environment steps of each seed"
    )
    found = json.loads(numbers.read_text())
    # A has done two updates of five: 20, then a quarter of the way to its end.
    ends_of_a = [20 + (end - 20) / 4 for end in (490, 480, 470, 460)]
    assert found["runs"][0]["measures"]["iqm"]["value"] == pytest.approx(np.mean(ends_of_a))
    assert found["runs"][1]["measures"]["iqm"]["value"] == pytest.approx((475 + 440 + 430) / 3)
    svg = picture.read_text(encoding="utf-8")
    assert "environment steps" in svg
    assert ">episodes<" not in svg


def test_other_parameters_of_the_environment_are_said(runs, tmp_path, capsys):
    heavier = handmade.run(
        tmp_path / "heavier", rising([300, 200, 100]), env_params={"gravity": 20.0}
    )
    assert "parameters of the environment differ" in told(capsys, runs[0], heavier)
    assert "parameters of the environment" not in told(capsys, *runs)


def test_failed_seeds_are_equal_in_whichever_run(tmp_path, capsys):
    """One run's untrained seeds got 20 and the other's 30; those that diverged are not better."""
    one = handmade.run(
        tmp_path / "one", [np.linspace(20, 400, UPDATES)] * 2, frozen_at={0: 1, 1: 1}
    )
    two = handmade.run(
        tmp_path / "two", [np.linspace(30, 400, UPDATES)] * 2, frozen_at={0: 1, 1: 1}
    )
    assert "B beats A with probability 0.500" in told(capsys, one, two)


def test_names_from_a_stranger_are_only_text(runs, tmp_path, capsys):
    odd = handmade.run(tmp_path / "[red]odd", rising([400, 500]), preset="[bold]x[/]")
    shown = told(capsys, runs[0], odd, "--picture", tmp_path / "picture.png").replace("\n", "")
    assert "[red]odd" in shown
    assert "[bold]x[/]" in shown


def test_refusals(runs, tmp_path, capsys):
    other = handmade.run(tmp_path / "other", rising([-80, -90]), env="Acrobot-v1")
    limited = handmade.run(tmp_path / "limited", rising([20, 30]), max_episode_steps=50)
    unfinished = handmade.run(tmp_path / "unfinished", rising([20, 30]))
    (unfinished / "summary.json").unlink()
    for arguments, words in (
        ([runs[0], other], "env='CartPole-v1' and"),
        ([runs[0], limited], "max_episode_steps=None and"),
        ([runs[0], unfinished], "is not finished: jaxpg resume"),
        ([runs[0], runs[0]], "once only"),
        ([runs[0]], "between 2 and 26"),
        ([*runs, "--picture", "x.gif"], "must end in .png, .svg, .pdf; got x.gif"),
        ([*runs, "--json", limited / "manifest.json" / "x.json"], "cannot be written"),
        ([*runs, "--picture", limited / "manifest.json" / "x.png"], "cannot be written"),
        ([tmp_path / "none", runs[0]], "is not a run"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["compare", *map(str, arguments)])
        assert exit_.value.code == 2
        assert words in capsys.readouterr().err


def test_the_settings_of_a_run_count_as_runs(runs):
    entries = compare.entries(list(runs))
    assert [entry.letter for entry in entries] == ["A", "B"]
    assert [len(entry.rows) for entry in entries] == [6, 7]
