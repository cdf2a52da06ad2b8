"""The report: what it says, in a real browser, and of runs by strangers."""

import dataclasses
import html.parser
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import handmade
import numpy as np
import pytest
from browser import MISSING, chromium

from jaxpg import words
from jaxpg.analysis.curves import curve_points
from jaxpg.analysis.outcomes import outcomes
from jaxpg.analysis.stats import iqm
from jaxpg.cli import launch
from jaxpg.cli.arguments import parse
from jaxpg.cli.commands import COMMANDS
from jaxpg.cli.main import main
from jaxpg.core import algorithms, learner
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS
from jaxpg.errors import RunError
from jaxpg.report import canvas, figures
from jaxpg.report import page as report
from jaxpg.runs import reproduce
from jaxpg.runs.load import load
from jaxpg.runs.manifests import Manifest, parse_seeds

RISING = [np.linspace(20, end, 12) for end in (500, 490, 480, 480, 300, 500)]
RISING.append(np.full(12, np.nan))  # finishes no episode
RISING.append(np.array([20, 480, *[30.0] * 10]))  # solves, and loses it
FROZEN = {5: 7}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    made = handmade.run(tmp_path_factory.mktemp("report") / "run", RISING, frozen_at=FROZEN)
    report.make(made)
    return made


@pytest.fixture(scope="module")
def browser():
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    with chromium() as session:
        yield session


class Page(html.parser.HTMLParser):
    """A page's elements with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def read_text(directory: Path) -> str:
    return (directory / report.NAME).read_text(encoding="utf-8")


def read(directory: Path) -> Page:
    return Page(read_text(directory))


def test_every_metric_has_a_picture():
    fits = {Config(fit=fit).reports for fit in algorithms.FITS}
    assert report.METRICS.keys() == {*learner.LOSSES, *itertools.chain.from_iterable(fits)}


def test_it_says_the_numbers(directory):
    text = re.sub(r"\s+", " ", read(directory).text)
    # Final returns: 500, 490, 480, 480, 300, 30; one diverged and one finished no episode: both
    # count as untrained, with 20. The middle half of the eight: 30, 300, 480, 480.
    assert "IQM 322.5" in text
    assert "50.0 %" in text  # 4 of 8 have solved it at the end
    assert "1 seed diverged: counted with a return of 20.0, no better than before training" in text
    assert "1 seed finished no episode: counted with a return of 20.0" in text
    assert "20.0 %" in text  # 1 of 5 that ever solved it has lost it
    assert "jaxpg train vpg" in text
    assert "abc123" in text
    for name in ("learning_rate", "gae_lambda", "total_steps"):
        assert name in text


@pytest.mark.parametrize(
    ("ends", "said", "lines"),
    [
        ((20.0, 300.0), "solved: 475", 1),
        ((20.0, 60.0), "solved: 475 ↑", 0),
        ((700.0, 740.0), "solved: 475 ↓", 0),
    ],
)
def test_what_counts_as_solved_does_not_flatten_the_curves(ends, said, lines):
    with canvas.blank((4, 3)) as figure:
        axes = figure.subplots()
        axes.plot([0.0, 1.0], ends)
        axes.autoscale_view()
        before = axes.get_ylim()
        figures.draw_target(axes, 475.0)
        assert [text.get_text() for text in axes.texts] == [said]
        assert len(axes.lines) == 1 + lines
        if not lines:
            assert axes.get_ylim() == before


def test_a_final_return_over_much_of_the_training_is_said(tmp_path, monkeypatch):
    """Of updates of 100 episodes the last is all of it, of updates of 20 the last five."""
    for episodes, said in ((100, False), (20, True)):
        monkeypatch.setattr(handmade, "EPISODES", episodes)
        made = handmade.run(tmp_path / str(episodes), RISING[:3])
        report.make(made)
        assert ("the last 100 episodes, of which" in read(made).text) == said


def test_the_words_for_the_curve_say_where_it_ends(directory):
    """Not the final return, which is the mean of more episodes."""
    run = load(directory)
    some = outcomes(run.config, run.population)
    amount, returns = curve_points(run.config, run.population)
    shown = report.View(run, some, amount, returns + 1000.0)
    (line,) = re.findall(r"the IQM ends at ([\d.,]+)\.$", report._learning_curve(shown).alt)
    last = returns[np.isfinite(returns[:, -1]), -1] + 1000.0
    assert line == words.returned(iqm(last))


def test_all_that_diverged_have_a_cross(tmp_path):
    """Though they did before any return of theirs, and counts as untrained from there on."""
    made = handmade.run(tmp_path / "run", RISING[:3], frozen_at={0: 0, 1: 1})
    run = load(made)
    amount, returns = curve_points(run.config, run.population)
    view = report.View(run, outcomes(run.config, run.population), amount, returns)
    picture = report._learning_curve(view)
    assert "Crosses mark where a seed diverged" in picture.caption
    assert len(picture.draw.keywords["frozen"]) == 2


def test_a_page_says_nothing_of_solving_where_that_is_not_known(tmp_path):
    made = handmade.run(tmp_path / "run", RISING[:3], env="Mine-v0")
    report.make(made)
    text = read(made).text
    assert "What counts as solved is not known" in text
    assert "never" not in text
    assert "solved after" not in text


def test_every_figure_is_there_as_png_and_svg(directory):
    names = {path.stem for path in (directory / report.FOLDER).glob("*.svg")}
    assert {"learning-curve", "final-returns", "seeds", "performance-profile"} < names
    assert {"time-to-solve", "entropy", "policy-loss", "value-grad-norm"} < names
    for name in names:
        png = (directory / report.FOLDER / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
    shown = {attributes.get("id") for attributes in read(directory).all("figure")}
    assert shown == names


def test_the_label_of_an_axis_is_not_cut_off():
    """However long the numbers are that stand between it and the axis."""

    def draw(axes, number):
        axes.plot([0.0, 1.0], [-0.0125, -0.0025])
        axes.set_ylabel("loss")
        axes.yaxis.set_major_formatter(lambda value, _: number.format(value))

    places = []
    for number in ("{:.1f}", "{:.9f}"):
        size = (4.6, 2.95)
        with canvas.figure_of(partial(draw, number=number), size, 0.12, "x") as figure:
            (axes,) = figure.axes
            assert axes.yaxis.get_tightbbox().x0 > -0.5
            assert axes.get_position().x1 == pytest.approx(1 - canvas.RIGHT / size[0])
            places.append(axes.get_position().x0)
    assert places[0] == pytest.approx(canvas.LEFT / size[0])  # nothing moves without need
    assert places[1] > places[0]


def shown_seeds(directory: Path) -> dict[str, int]:
    """The best, median and worst seed of the figure."""
    svg = (directory / report.FOLDER / "seeds.svg").read_text(encoding="utf-8")
    return {
        rank: int(seed) for rank, seed in re.findall(r"(best|median|worst) \(seed (\d+)\)", svg)
    }


def test_figure_table_and_commands_mean_the_same_three_seeds(tmp_path):
    """Of 32 seeds all but two end at 500: the best, the median and the worst are three seeds."""
    returns = [np.linspace(20, 500, 6)] * 32
    returns[3] = returns[9] = np.linspace(20, 300, 6)
    made = handmade.run(tmp_path / "run", returns)
    report.make(made)
    run = load(made)
    wanted = {rank: run.row(rank) for rank in ("best", "median", "worst")}
    assert shown_seeds(made) == wanted
    assert len(set(wanted.values())) == 3
    table = re.search(r"Seeds by final return.*?</table>", read_text(made), re.DOTALL)[0]
    cells = re.findall(r'<td class="number">([\d,]+)</td>', table)
    ranked = dict(zip(map(int, cells[::2]), map(int, cells[1::2]), strict=True))
    assert (ranked[1], ranked[17], ranked[32]) == tuple(wanted.values())


def test_of_one_seed_and_of_two_no_curve_is_drawn_twice(tmp_path):
    one = handmade.run(tmp_path / "one", [np.linspace(20, 500, 6)])
    report.make(one)
    svg = (one / report.FOLDER / "seeds.svg").read_text(encoding="utf-8")
    assert "best and median and worst (seed 0)" in svg
    two = handmade.run(tmp_path / "two", [np.linspace(20, 500, 6)] * 2)
    report.make(two)
    svg = (two / report.FOLDER / "seeds.svg").read_text(encoding="utf-8")
    assert "best (seed 0)" in svg
    assert "median and worst (seed 1)" in svg


def test_page_summary_and_terminal_say_the_same_digits(tmp_path):
    """-164.35 lies between two digits, and on either side of it in float32 and float64."""
    returns = np.array([[-164.35, -164.35, -164.35]] * 3)
    made = handmade.run(tmp_path / "run", returns, env="Mine-v0")
    report.make(made)
    wanted = words.returned(float(np.float32(-164.35)))
    text = re.sub(r"<svg.*?</svg>", "", read_text(made), flags=re.DOTALL)
    assert set(re.findall(r"-?164\.\d", text)) == {wanted}


def test_small_returns_are_not_rounded_to_nothing(tmp_path):
    made = handmade.run(tmp_path / "run", np.full((5, 4), 0.0234), env="Mine-v0")
    report.make(made)
    text = read(made).text
    assert "IQM 0.0234" in text
    assert "IQM 0.0 " not in text


def test_a_run_that_learnt_nothing_says_so_at_the_top(tmp_path):
    made = handmade.run(tmp_path / "run", RISING[:3])
    report.make(made)
    (of_few,) = re.findall('class="remark">(.*)', read_text(made))  # nor of a run of before
    assert of_few.startswith("of 3 seeds an interval is too narrow")
    summary = json.loads((made / "summary.json").read_text(encoding="utf-8"))
    warning = "nothing shows that it has learnt: try a <larger> learning rate"
    said = {**summary, "learning": {"shown": False, "warning": warning}}
    (made / "summary.json").write_text(json.dumps(said), encoding="utf-8")
    report.make(made)
    text = read(made).text
    assert text.index(warning) < text.index("Learning curve")
    for learning in (None, {"shown": True, "warning": None}, "of a stranger", {"warning": 3}):
        assert report._advice({**summary, "learning": learning}) is None


HOSTILE_RC = """\
backend: TkAgg
text.usetex: True
font.family: Humor Sans
figure.facecolor: black
axes.facecolor: black
savefig.bbox: tight
savefig.transparent: True
svg.fonttype: path
lines.linewidth: 9
axes.formatter.use_locale: True
"""


ELSEWHERE = """\
import sys
from pathlib import Path
from jaxpg.cli.main import main
from jaxpg.report import compare
made, other, foreign = map(Path, sys.argv[1:])
main(["report", str(made)])
main(["report", str(foreign)])
compare.draw(compare.entries([made, other]), made / "compare.svg")
"""


@pytest.fixture(scope="module")
def elsewhere(directory, tmp_path_factory) -> tuple[Path, Path]:
    """The run's report and another's, made by the command in a process with settings of others."""
    place = tmp_path_factory.mktemp("elsewhere")
    made, foreign = place / "run", place / "foreign"
    shutil.copytree(directory, made)
    for path in (made / report.FOLDER).iterdir():
        path.unlink()
    handmade.run(foreign, RISING[:3], env="Bärenfang-v0")
    rc = place / "matplotlibrc"
    rc.write_text(HOSTILE_RC, encoding="utf-8")
    theirs = {"MATPLOTLIBRC": str(rc), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    theirs |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", ELSEWHERE, *map(str, (made, directory, foreign))]
    env = {**os.environ, **theirs}
    done = subprocess.run(command, env=env, capture_output=True, text=True, encoding="ascii")
    assert done.returncode == 0, done.stderr
    return made, foreign


def test_figures_heed_neither_a_matplotlibrc_nor_mplbackend(directory, elsewhere):
    """They are those of this process, to the byte."""
    made, _ = elsewhere
    names = {path.name for path in (directory / report.FOLDER).iterdir()}
    assert len(names) > 10
    for name in names:
        ours = (directory / report.FOLDER / name).read_bytes()
        assert (made / report.FOLDER / name).read_bytes() == ours, name
    assert "<text" in (made / "compare.svg").read_text(encoding="utf-8")


def test_files_are_utf8_wherever_the_report_is_written(elsewhere):
    _, foreign = elsewhere
    assert "Bärenfang-v0 · vpg" in read_text(foreign)


def test_it_needs_nothing_from_elsewhere_and_runs_nothing(directory):
    page = read(directory)
    assert not page.all("script")
    policy = next(x for x in page.all("meta") if x.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]
    for _, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset"):
                assert value.startswith(("#", "data:")), (name, value)
            assert not name.startswith("on")


def test_ids_are_unique_and_every_reference_has_its_target(directory):
    page = read(directory)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    text = (directory / report.NAME).read_text()
    references = set(re.findall(r'href="#([^"]+)"', text)) | set(
        re.findall(r"url\(#([^)]+)\)", text)
    )
    assert references
    assert references <= set(ids)


def test_headings_descend_and_every_figure_has_words(directory):
    page = read(directory)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    images = [x for x in page.all("svg") if x.get("role") == "img"]
    assert len(images) == len(page.all("figure")) + 1  # the first is there for two widths
    assert all(len(x["aria-label"]) > 20 for x in images)
    assert page.all("html")[0]["lang"] == "en"


def test_the_same_run_gives_the_same_page(directory, tmp_path):
    before = (directory / report.NAME).read_text()
    report.make(directory)
    assert (directory / report.NAME).read_text() == before


VISIBLE = """
return [...document.querySelectorAll('figure svg[role=img]')]
  .map(x => [x.closest('figure').id, x.getBoundingClientRect()])
  .filter(([, box]) => box.width > 0)
  .map(([id, box]) => [id, box.width, box.height]);
"""
CONTRAST = """
function rgb(text) { return text.match(/[\\d.]+/g).map(Number); }
function light([r, g, b]) {
  const [x, y, z] = [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}
const low = [];
for (const node of document.querySelectorAll('body *')) {
  const own = [...node.childNodes].some(x => x.nodeType === 3 && x.textContent.trim());
  if (!own || !node.getBoundingClientRect().width || node.tagName === 'style') continue;
  const style = getComputedStyle(node);
  let behind = node;
  while (behind && rgb(getComputedStyle(behind).backgroundColor)[3] === 0)
    behind = behind.parentElement;
  const front = light(rgb(node.closest('svg') ? style.fill : style.color));
  const back = light(rgb(getComputedStyle(behind || document.body).backgroundColor));
  const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
  if (ratio < 4.5) low.push([node.tagName, node.textContent.slice(0, 30), ratio]);
}
return low;
"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(directory, browser, width, dark):
    browser.open(directory / report.NAME, width=width, dark=dark)
    assert browser.messages() == []
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(16, 21, 26)") == dark
    assert browser.run("return document.documentElement.scrollWidth") == width
    shown = browser.run(VISIBLE)
    names = sorted(path.stem for path in (directory / report.FOLDER).glob("*.svg"))
    assert sorted(name for name, *_ in shown) == names  # each once
    for name, across, up in shown:
        assert across > 300, name
        assert up > 100, name
    assert browser.run(CONTRAST) == []  # WCAG 2.1 AA, in figures too


def test_printed_it_is_dark_on_white_whatever_the_screen(directory, browser):
    browser.open(directory / report.NAME, width=1280, dark=True, print_=True)
    style = "getComputedStyle(document.body)"
    assert browser.run(f"return {style}.backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run(f"return {style}.color") == "rgb(0, 0, 0)"
    assert browser.run(CONTRAST) == []


EVIL = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">$x"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    entries = {"<b onmouseover=alert(1)>": EVIL, "python": {"nested": [EVIL]}}
    made = {"commit": EVIL, "command": EVIL, "versions": entries, "device": "not a mapping"}
    directory = tmp_path_factory.mktemp("hostile") / "run"
    handmade.run(directory, RISING[:3], preset=EVIL, made=made, env=EVIL)
    report.make(directory)
    return directory


def test_a_strangers_run_injects_nothing(hostile):
    page = read(hostile)
    assert not page.all("script")
    assert not page.all("img")
    assert not page.all("b")
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert EVIL in page.text  # as text it is there


def test_a_strangers_run_injects_nothing_in_a_browser(hostile, browser):
    browser.open(hostile / report.NAME, width=1280)
    assert browser.messages() == []
    assert "hacked" not in browser.run("return document.title").split("·")[0].replace(EVIL, "")
    assert browser.run("return document.title").startswith("<script>")
    assert browser.run("return document.querySelectorAll('script, img').length") == 0


def test_a_far_target_leaves_the_seeds_the_axis():
    for target, said in (
        (475.0, "solved: 475 →"),
        (-475.0, "← solved: -475"),
        (51.0, "solved: 51"),
    ):
        with canvas.blank((4.6, 2.95)) as figure:
            axes = figure.subplots()
            figures.draw_distribution(axes, np.array([48.0, 49.0, 50.0]), target)
            low, high = axes.get_xlim()
            assert said in axes.get_legend_handles_labels()[1]
        assert high - low < 10.0


@pytest.mark.parametrize(
    ("returns", "frozen_at", "words"),
    [
        ([[np.nan] * 3] * 2, None, "No seed finished an episode"),
        ([[20.0, 20, 20]], None, "1 seed,"),
        ([[20.0, 20, 20]] * 3, {0: 0, 1: 1, 2: 2}, "3 seeds diverged"),
        ([[20.0] * 2_000] * 2, {0: 1, 1: 1}, "2 seeds diverged"),  # before a curve's first point
    ],
)
def test_odd_runs_have_a_page_too(tmp_path, returns, frozen_at, words):
    directory = handmade.run(tmp_path / "run", returns, frozen_at=frozen_at)
    report.make(directory)
    text = read(directory).text
    assert words in text
    assert "The last 100 episodes" not in text


def test_without_a_known_return_for_solved_it_says_so_and_takes_one(tmp_path):
    directory = handmade.run(tmp_path / "run", RISING[:3], env="Mine-v0")
    report.make(directory)
    assert "What counts as solved is not known" in read(directory).text
    assert "time-to-solve" not in (directory / report.NAME).read_text()
    main(["report", str(directory), "--solved", "400"])
    assert "solved at the end" in read(directory).text
    assert 'id="time-to-solve"' in (directory / report.NAME).read_text()


def test_ten_thousand_seeds_stay_a_small_page(tmp_path):
    rng = np.random.default_rng(1)
    returns = np.cumsum(rng.exponential(9.0, (10_000, 20)), axis=1)
    directory = handmade.run(tmp_path / "run", returns)
    report.make(directory)
    assert (directory / report.NAME).stat().st_size < 2.5e6
    assert "500 of the 10,000 seeds" in read(directory).text


def test_the_seeds_that_are_drawn_have_the_best_and_the_worst():
    values = np.random.default_rng(2).normal(size=2_000)
    chosen = values[figures.evenly_by_rank(values)]
    assert len(chosen) == figures.FAINT
    assert {values.min(), values.max()} <= set(chosen)
    assert np.median(chosen) == pytest.approx(np.median(values), abs=0.05)


def manifest(name: str, config: Config, parts: tuple[str, ...] = ("0:4",)) -> Manifest:
    return Manifest(name, config, parts, 16, 1, ({},), {})


@pytest.mark.parametrize("name", PRESETS)
def test_the_commands_make_the_same_run(name):
    config = dataclasses.replace(
        PRESETS[name],
        env="it's $HOME",
        hidden_sizes=(8, 16),
        max_grad_norm=None if PRESETS[name].max_grad_norm else 0.25,
        normalize_advantage=True,
        learning_rate=1 / 3,
        max_episode_steps=7,
        env_params={"gravity": 1e-3, "memory": 3, "noisy": False},
    )
    for wanted in (config, PRESETS[name], dataclasses.replace(PRESETS[name], gamma=0.1)):
        (line,) = reproduce.commands(manifest(name, wanted))
        program, command, *words = shlex.split(line)
        assert (program, command) == ("jaxpg", "train")
        options = parse("train", COMMANDS["train"], words)
        assert options.config == wanted
        assert list(parse_seeds(options.run.seeds)) == [0, 1, 2, 3]
        assert options.run.lanes == 16


def test_what_a_preset_switches_on_can_be_switched_off(monkeypatch):
    normalized = dataclasses.replace(Config(), normalize_advantage=True)
    monkeypatch.setitem(PRESETS, "vpg", normalized)
    (line,) = reproduce.commands(manifest("vpg", Config()))
    assert parse("train", COMMANDS["train"], shlex.split(line)[2:]).config == Config()
    flat = dataclasses.replace(PRESETS["ppo-minatar"], conv_features=())
    (line,) = reproduce.commands(manifest("ppo-minatar", flat))
    assert parse("train", COMMANDS["train"], shlex.split(line)[2:]).config == flat


def test_the_commands_of_a_merged_run_merge():
    lines = reproduce.commands(manifest("vpg", Config(), ("0:4", "7,9")))
    assert [line.split()[1] for line in lines] == ["train", "train", "merge"]
    assert "--seeds 7,9 --out again-1" in lines[1]
    assert lines[2] == "jaxpg merge again-0 again-1 --out again"


def test_a_finished_run_gets_its_report_once_and_only_if_wanted(tmp_path, capsys):
    directory = handmade.run(tmp_path / "run", RISING[:2])
    launch.to_the_end(directory, launch.Launch(report=False))
    assert not (directory / report.NAME).exists()
    launch.to_the_end(directory, launch.Launch())
    assert f"report: {directory / report.NAME}" in capsys.readouterr().out
    (directory / report.NAME).write_text("kept")
    launch.to_the_end(directory, launch.Launch())
    assert (directory / report.NAME).read_text() == "kept"


def test_train_takes_an_option_to_leave_it_out():
    assert parse("train", COMMANDS["train"], []).launch.report
    assert not parse("train", COMMANDS["train"], ["--no-report"]).launch.report


def test_what_is_no_finished_run_is_refused(tmp_path, capsys):
    for arguments, said in (
        (["report", str(tmp_path)], "is not a run"),
        (["report", str(tmp_path / "none")], "is not a run"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
        assert said in capsys.readouterr().err
    directory = handmade.run(tmp_path / "run", RISING[:2])
    (directory / "summary.json").unlink()
    with pytest.raises(RunError, match="is not finished"):
        report.make(directory)


def test_a_directory_that_cannot_be_written_gets_a_sentence(tmp_path):
    directory = handmade.run(tmp_path / "run", RISING[:2])
    (directory / report.FOLDER).write_text("in the way")
    with pytest.raises(RunError, match="cannot be written"):
        report.make(directory)
    assert load(directory).seeds == [0, 1]  # the run is as it was
