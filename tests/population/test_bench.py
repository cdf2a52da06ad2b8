"""jaxpg bench, and what the benchmarks share."""

import dataclasses
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import contenders, measure, ppo, readme, record, trained
from benchmarks.baselines import textbook
from jaxpg.cli.main import main
from jaxpg.core.config import ConfigError
from jaxpg.core.presets import PRESETS
from jaxpg.errors import DoesNotFit
from jaxpg.population import bench, provenance


@pytest.mark.slow
def test_bench_measures_a_config(tmp_path, capsys):
    out = tmp_path / "bench.json"
    options = ["--lanes", "2", "3", "--rounds", "2", "--seconds", "0.01", "--json", str(out)]
    main(["bench", "reinforce", "--num-envs", "2", "--max-episode-steps", "4", *options])
    shown = capsys.readouterr().out
    measured = json.loads(out.read_text())
    assert [row["lanes"] for row in measured["rows"]] == [2, 3]
    for row in measured["rows"]:
        assert len(row["steps_per_second"]) == 2
        assert min(row["steps_per_second"]) > 0
        assert row["program_bytes"] > 0
    assert measured["config"]["num_envs"] == 2
    assert "fastest: --lanes" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lanes", "1"], "lanes must be in [2, 1,048,576]; got 1"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--seconds", "nan"], "--rounds must be at least 1, and --seconds finite"),
        (["--json", f"{__file__}/x.json"], "--json must be a file that can be written"),
        (["--gamma", "2"], "gamma must be in [0, 1]"),
    ],
)
def test_bad_input_gets_one_sentence(options, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *options])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


def test_table_by_hand():
    row = {"lanes": 8, "compile_seconds": 2.0, "program_bytes": 3 * 2**20}
    measured = {
        "rows": [
            {**row, "steps_per_second": [100.0, 300.0, 200.0]},
            {**row, "lanes": 16, "steps_per_second": [400.0, 410.0, 420.0]},
        ],
        "budget": 820,
    }
    lines = bench.table(measured).splitlines()
    assert " ".join(lines[1].split()) == "8 200 100 to 300 2.0 s 3 MiB"
    assert lines[4] == "fastest: --lanes 16; with them the whole budget takes 2 s a seed"


def test_every_core_works_at_the_same_time(monkeypatch):
    """Two workers that only wait do twice what one does."""
    monkeypatch.setattr(bench.devices, "cpu_count", lambda: 2)

    def work(worker):
        time.sleep(0.02)
        return 3.0

    assert bench.on_every_core(work, 0.2) == pytest.approx(2 * 3.0 / 0.02, rel=0.3)


@pytest.fixture
def cheap(monkeypatch):
    """Nothing is compiled and nothing measured."""
    monkeypatch.setattr(bench.population, "make_chunks", lambda *a: [None])
    monkeypatch.setattr(bench.chunks, "check_memory", lambda *a, **k: "")
    program = SimpleNamespace(start=None, advance=None)
    monkeypatch.setattr(bench.chunks, "compile_programs", lambda *a: [program])
    monkeypatch.setattr(bench.chunks, "lane_shapes", lambda *a: None)
    monkeypatch.setattr(bench.memory, "of_program", lambda x: 1)
    monkeypatch.setattr(bench, "_speed", lambda *a: 100.0)


def test_memory_must_have_room_for_all_workers_at_once(cheap, monkeypatch):
    """Every one of them trains while speed is measured."""
    asked = []
    program = SimpleNamespace(start=None, advance=None)
    monkeypatch.setattr(bench.chunks, "compile_programs", lambda *a: [program] * 5)
    monkeypatch.setattr(bench.chunks, "check_memory", lambda *a, **k: asked.append(a))
    bench.measure(PRESETS["vpg"], [8], 1, 1.0, lambda line: None)
    ((programs, _, groups, _),) = asked
    assert len(groups) == len(programs) == 5


def test_usual_lanes_that_do_not_fit_end_the_list(cheap, monkeypatch):
    """Those that somebody asked for are refused, and so is a config that fits with none."""
    said = []

    def compiled(config, lanes):
        if lanes > most:
            raise DoesNotFit(f"{lanes} lanes are too many")
        return {"lanes": lanes, "steps_per_second": []}, None, None

    monkeypatch.setattr(bench, "_compiled", compiled)
    given = (PRESETS["vpg"], (), 1, 1.0, said.append)
    most = 20
    assert [row["lanes"] for row in bench.measure(*given)["rows"]] == [8, 16]
    assert "32 lanes are too many" in said
    most = 4
    with pytest.raises(DoesNotFit, match="8 lanes"):
        bench.measure(*given)
    most = 8
    with pytest.raises(DoesNotFit, match="16 lanes"):
        bench.measure(PRESETS["vpg"], [8, 16], *given[2:])


def test_lanes_take_turns(cheap):
    said = []
    measured = bench.measure(PRESETS["vpg"], [8, 16], 2, 1.0, said.append)
    assert [row["steps_per_second"] for row in measured["rows"]] == [[100.0] * 2] * 2
    assert said == [
        *("compiling 8 lanes", "compiling 16 lanes"),
        *("round 1 of 2: 8 lanes", "round 1 of 2: 16 lanes"),
        *("round 2 of 2: 8 lanes", "round 2 of 2: 16 lanes"),
    ]


def test_the_textbook_trains_what_it_is_asked_for_or_nothing():
    vpg = PRESETS["vpg"]
    textbook.make_train(vpg)
    textbook.make_train(dataclasses.replace(vpg, env="Acrobot-v1", gamma=0.9))
    for change, words in (
        ({"ent_coef": 0.1}, "ent_coef=0.0 alone"),
        ({"hidden_sizes": (8, 8)}, "one hidden layer"),
        ({"max_grad_norm": None}, "clips gradients"),
        ({"env": "Pendulum-v1"}, "actions are discrete"),
        ({"env": "Breakout-MinAtar"}, "observations are flat"),
    ):
        with pytest.raises(ConfigError, match=words):
            textbook.make_train(dataclasses.replace(vpg, **change))


def test_returns_of_the_last_episodes():
    """Updates with 60, 50, 50 and 40 episodes: the last three hold the last 100 of seed 0."""
    episodes = np.array([[60, 50, 50, 40], [1, 0, 1, 0]])
    return_sum = np.array([[0.0, 140.0, 140.0, 140.0], [10.0, 0.0, 30.0, 0.0]])
    assert contenders.last_hundred(return_sum, episodes).tolist() == [3.0, 20.0]
    assert contenders.last_tenth(return_sum, episodes) == 140.0 / 40


def test_cases_take_turns(monkeypatch):
    order = []

    def in_process(name, case, patience):
        order.append(case.what)
        return {"value": len(order)}

    monkeypatch.setattr(measure, "in_process", in_process)
    rows = measure.by_turns("none", [measure.Case("a", {}), measure.Case("b", {})], 2)
    assert order == ["a", "b"] * 3
    assert rows[1]["cold"] == {"value": 2}
    assert rows[1]["repetitions"] == [{"value": 4}, {"value": 6}]


def test_what_hangs_is_begun_again_where_that_was_expected(monkeypatch):
    """Case a hangs once and is measured all the same; c hangs for ever and is given up; b is b."""
    begun = []

    def in_process(name, case, patience):
        begun.append(case.what)
        if case.what == "c" or (case.what == "a" and begun.count("a") == 2):
            raise measure.HungError(f"{case.what} has not ended")
        return {"value": len(begun)}

    monkeypatch.setattr(measure, "in_process", in_process)
    cases = [measure.Case(what, {}) for what in "abc"]
    a, b, c = measure.by_turns("none", cases, 2, may_hang={"a": 9, "c": 9})
    assert "".join(begun) == "abccc" + "aab" + "ab"
    assert [row["hung"] for row in (a, b, c)] == [1, 0, 3]
    assert [len(row["repetitions"]) for row in (a, b, c)] == [2, 2, 0]
    assert (a["cold"], c["cold"]) == ({"value": 1}, None)
    begun.clear()
    with pytest.raises(SystemExit, match="c has not ended"):
        measure.by_turns("none", cases, 2)


def test_a_ppo_row_that_hung_says_so():
    options = {"seeds": 1, "num_envs": 4}
    row = {"what": "textbook", "options": options, "hung": 2, "steps_per_second": [10.0, 30.0]}
    content = {"limit_flop_per_second": 400.0, "flop_per_step": 10, "left_out": {}}
    shown = ppo.table({**content, "rows": [row]})
    assert "| 20; hung 2 x | 10 to 30 | 1.0 x | 50.0% |" in shown
    shown = ppo.table({**content, "rows": [{**row, "steps_per_second": []}]})
    assert "| 4 | hung 2 x |  |  |  |" in shown


def test_a_row_is_trained_once_for_each_config(monkeypatch, tmp_path):
    """A second call trains nothing, a changed preset its own row, other seeds everything."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    taken = []

    def measure(config):
        taken.append(config.gamma)
        return {"seen": config.gamma}

    def rows(*gammas, seeds=4):
        configs = [dataclasses.replace(PRESETS["vpg"], gamma=gamma) for gamma in gammas]
        wanted = [({"name": i}, config) for i, config in enumerate(configs)]
        taken.clear()
        found = trained.rows("x", wanted, measure, {"seeds": seeds}, lambda rows: str(len(rows)))
        return taken[:], [(row["name"], row["seen"]) for row in found]

    assert rows(0.5, 0.9) == ([0.5, 0.9], [(0, 0.5), (1, 0.9)])
    assert rows(0.5, 0.9) == ([], [(0, 0.5), (1, 0.9)])
    assert rows(0.9, 0.6) == ([0.6], [(0, 0.9), (1, 0.6)])
    assert rows(0.9, 0.6, seeds=8) == ([0.9, 0.6], [(0, 0.9), (1, 0.6)])
    kept = json.loads((tmp_path / "x-cpu.json").read_text())
    assert (kept["seeds"], kept["table"], len(kept["rows"])) == (8, "2", 2)


def test_rows_of_one_config_are_told_apart_by_labels(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    taken = []

    def measure(config, lanes):
        taken.append(lanes)
        return {"seen": lanes}

    def rows(*sizes):
        wanted = [({"lanes": lanes, "note": "-"}, PRESETS["vpg"]) for lanes in sizes]
        found = trained.rows("x", wanted, measure, {}, lambda rows: "", by=("lanes",))
        return [row["seen"] for row in found]

    assert rows(2, 4) == [2, 4]
    assert rows(4, 8, 2) == [4, 8, 2]
    assert taken == [2, 4, 8]


def test_a_row_says_of_which_commit_it_is(monkeypatch, tmp_path):
    """One that was there before the rows said so is of the commit that wrote it."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)

    def rows(commit, *gammas):
        monkeypatch.setattr(provenance, "commit", lambda: commit)
        monkeypatch.setattr(trained, "commit", lambda: commit)
        configs = [dataclasses.replace(PRESETS["vpg"], gamma=gamma) for gamma in gammas]
        trained.rows("x", [({}, config) for config in configs], lambda config: {}, {}, str)
        return record.read("x")

    found = rows("a1", 0.5, 0.6)
    del found["rows"][0]["commit"]
    (tmp_path / "x-cpu.json").write_text(json.dumps(found))
    assert record.commits(found) == "commit a1"
    found = rows("b2", 0.5, 0.6, 0.7)
    assert [row["commit"] for row in found["rows"]] == ["a1", "a1", "b2"]
    assert record.commits(found) == "commits a1 and b2"
    assert record.commits({"commit": "c3", "levels": []}) == "commit c3"


def test_a_page_says_what_was_not_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    text = "<!-- scaling: begin --><!-- scaling: end -->"
    monkeypatch.setitem(readme.PAGES, "page", {"scaling": readme.plain})
    assert "Not measured yet: `python -m benchmarks.scaling`." in readme.render("page", text)
