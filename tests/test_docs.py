"""The documentation is true: its code runs, its links and commands exist, its scripts do their job.

`make docs` builds the site, where any warning is an error.
"""

import inspect
import io
import json
import os
import re
import shlex
import signal
import subprocess
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path

import jax
import pytest
import yaml

import jaxpg
from jaxpg.cli import commands
from jaxpg.cli import main as cli
from jaxpg.cli.arguments import ELSEWHERE
from jaxpg.core.config import FIELDS
from tests import pages

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *DOCS.glob("**/*.md")]
    if "_build" not in path.relative_to(ROOT).parts
)
SUPERVISE = DOCS / "scaling" / "supervise.sh"


@pytest.fixture
def a_readers_jax():
    """The page runs without our strictness, and what it sets is undone."""
    before = jax.config.read("jax_enable_x64")
    with jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_enable_x64", before)


def run_code(blocks, name):
    """Run blocks in order in one namespace; what they print."""
    printed, namespace = io.StringIO(), {"__name__": "page"}
    for code in blocks:
        with redirect_stdout(printed):
            exec(compile(code, name, "exec"), namespace)
    return printed.getvalue(), namespace


def fences(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.S | re.M)


def test_the_mathematics_holds(a_readers_jax):
    page = DOCS / "mathematics.md"
    blocks = fences(page, "python")
    assert len(blocks) == 8
    printed, _ = run_code(blocks, str(page))
    assert printed == "".join(fences(page, "text"))


@pytest.mark.slow
def test_the_first_run(tmp_path, monkeypatch, capsys, a_readers_jax):
    monkeypatch.chdir(tmp_path)
    small = ["--seeds", "4", "--lanes", "2", "--num-envs", "2", "--num-steps", "64"]
    cli.main(["train", "vpg", *small, "--total-steps", "512", "--out", "runs/first"])
    capsys.readouterr()
    page = DOCS / "start.md"
    read_results, train = fences(page, "python")
    printed, _ = run_code([read_results], str(page))
    assert re.fullmatch(r"mean return while learning: \d+; of seed 3: \d+\n", printed)
    printed, _ = run_code([train], str(page))
    assert printed == "(8, 20)\n(8, 64, 2)\n"


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, a_readers_jax):
    """Its code cells, in order, in one process, on a fifth of the steps that a reader takes."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = json.loads((DOCS / "quickstart.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == 4
    assert "total_steps=61_440" in code[0]
    code[0] = code[0].replace("61_440", "12_288")
    printed, namespace = run_code(code, "quickstart.ipynb")
    assert printed.splitlines()[0].startswith("98,304 environment steps")
    assert namespace["scores"].shape == (4, 8)
    assert (namespace["scores"] > 8).all()
    # The last cell draws nothing at random: it prints here what the file shows.
    shown = "".join(cells[-2]["outputs"][0]["text"])
    assert shown.count("exact") == 2
    assert printed.endswith(shown)


def test_the_notebook_shows_what_it_prints():
    cells = json.loads((DOCS / "quickstart.ipynb").read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert "print(" in "".join(cell["source"])
            assert any(output["output_type"] == "stream" for output in cell["outputs"])
            pictures = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
            assert len(pictures) == ("alt" in cell["metadata"])


def test_the_twins_page_is_true(a_readers_jax):
    assert pages.run(DOCS / "torch.md") == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_that_is_linked_exists(page):
    for target in re.findall(r"\(#(jaxpg[\w.]*)\)", page.read_text()):
        module, names = target, []
        while not _is_module(module):
            module, _, name = module.rpartition(".")
            names.insert(0, name)
        assert names, target
        thing = import_module(module)
        for name in names:
            thing = getattr(thing, name)
        assert inspect.getdoc(thing), f"{target} has no docstring"


def test_every_public_name_is_in_the_reference():
    pages = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"automodule:: (jaxpg[\w.]*)", pages))
    for module in documented:
        assert import_module(module).__doc__, f"{module} has no docstring"
    core = {f"jaxpg.core.{path.stem}" for path in Path(jaxpg.core.__path__[0]).glob("[!_]*.py")}
    assert core <= documented, core - documented
    index = (DOCS / "api" / "index.md").read_text()
    for name in set(jaxpg.__all__) - {"__version__"}:
        thing = getattr(jaxpg, name)
        assert inspect.getdoc(thing), f"jaxpg.{name} has no docstring"
        assert thing.__module__ in documented, name
        assert f"[`{name}`](#{thing.__module__}.{name})" in index


def command_lines():
    """Every `jaxpg …` in a fence, script or manifest of the documentation, as arguments."""
    for page in [*PAGES, *sorted((DOCS / "scaling").iterdir())]:
        text = page.read_text()
        if page.suffix == ".md":
            fenced = re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.S | re.M)
            inline = re.findall(r"(?<!`)`(jaxpg [^`\n]+)`", text)
            text = "\n".join([*fenced, *inline])
        text = re.sub(r"\\\n\s*|\n\s+(?=--)", " ", text)  # lines that go on
        for line in re.findall(r"(?<![\w./-])jaxpg (?=[a-z]+ )(?!:)(.*)", text):
            line = re.split(r"\s#|[>;&]|\"$", line)[0].replace("…", "")
            try:
                words = shlex.split(line)
            except ValueError:  # a quote that was opened before the command
                words = shlex.split(line.replace('"', ""))
            if words[0] in {*commands.COMMANDS, *commands.FORMER}:
                yield pytest.param(words, id=f"{page.name}: {line.strip()}")


@pytest.mark.parametrize("words", list(command_lines()))
def test_every_command_has_the_options_that_are_shown(words, capsys):
    command, *rest = words
    options = [word.split("=")[0] for word in rest if word.startswith("--")]
    known = help_of(command, capsys)
    for option in options:
        assert re.search(rf"{option}(?![\w-])", known), option


def test_no_two_runs_of_the_pages_have_one_directory():
    """They could not be trained one after the other; but on a cluster the same run can."""
    made = {}
    for found in command_lines():
        (words,) = found.values
        words = [word for word in words if word not in ("--cluster", "auto")]
        if "--out" in words and words[0] in ("train", "sweep", "race", "merge"):
            made.setdefault(words[words.index("--out") + 1], set()).add(" ".join(words))
    for page in PAGES:
        for line in re.findall(
            r"^(.* = jaxpg\.train_population\(.*)$", page.read_text(), flags=re.M
        ):
            if found := re.search('out="(.*?)"', line):
                made.setdefault(found[1], set()).add(line)
    assert len(made) > 15
    assert not {directory: lines for directory, lines in made.items() if len(lines) > 1}


def test_what_others_call_an_option_is_ours_in_the_questions():
    rows = re.findall(r"^\| (`.*) \| `(\w+)`.* \|$", (DOCS / "faq.md").read_text(), flags=re.M)
    said = {theirs: ours for them, ours in rows for theirs in re.findall(r"`(\w+)`", them)}
    own = {ours for ours in said.values() if ours not in FIELDS}
    assert own == {"seeds", "track"}
    named = {k.replace("-", "_"): x.replace("-", "_") for k, x in ELSEWHERE.items()}
    both = named.keys() & said.keys()
    assert len(both) > 10
    assert {name: said[name] for name in both} == {name: named[name] for name in both}


def help_of(command, capsys):
    if command not in _HELP:
        try:
            cli.main([command, "--help"])
        except SystemExit as ended:
            assert ended.code == 0  # noqa: PT017  (some exit, some return)
        _HELP[command] = capsys.readouterr().out
    return _HELP[command]


_HELP: dict[str, str] = {}


def test_the_commands_of_the_pages_are_found():
    shown = [parameter.values[0] for parameter in command_lines()]
    assert len(shown) > 20
    assert any("--cluster" in words for words in shown)
    assert any(words[0] == "merge" for words in shown)


@pytest.mark.parametrize(
    ("codes", "ends", "runs"),
    [([0], 0, 1), ([75, 76, 0], 0, 3), ([2], 2, 1), ([137, 134, 2], 2, 3), ([75] * 9, 75, 4)],
)
def test_supervise_starts_again_what_asks_for_it(codes, ends, runs, tmp_path):
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/bash\necho . >> runs\nread -r -a codes < codes\nn=$(wc -l < runs)\n"
        'exit "${codes[$((n - 1))]}"\n'
    )
    program.chmod(0o755)
    (tmp_path / "codes").write_text(" ".join(map(str, codes)) + "\n")
    environment = {**os.environ, "RESTART_SECONDS": "0", "MAX_RESTARTS": "3"}
    done = subprocess.run([SUPERVISE, program], cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == ends
    assert len((tmp_path / "runs").read_text().splitlines()) == runs


def test_supervise_passes_a_stop_on(tmp_path):
    """TERM reaches the program, which saves and exits with 75, and is not started again."""
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/bash\ntrap 'echo saved; exit 75' TERM\necho begun\nwhile true; do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    with subprocess.Popen(
        [SUPERVISE, program], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            process.terminate()
            rest, _ = process.communicate(timeout=20)
        finally:
            with suppress(ProcessLookupError):  # both have ended, as they should
                os.killpg(process.pid, signal.SIGKILL)
    assert (rest, process.returncode) == ("saved\n", 75)


def stand_ins(folder, **bodies):
    """An environment whose PATH begins with these programs."""
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "17",
        "SLURM_NNODES": "4",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURMD_NODENAME": "first",
    }
    array = {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3", "SCRATCH": "/scratch"}
    return {**os.environ, **slurm, **array, "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (75, True), (76, True)])
@pytest.mark.parametrize("name", ["slurm.sh", "array.sh"])
def test_a_slurm_job_is_queued_again_when_it_was_stopped(name, code, requeued, tmp_path):
    train = f'echo "$@" >> jaxpg.log; exit {code}'
    environment = stand_ins(
        tmp_path,
        srun='while [[ $1 == --* ]]; do shift; done; "$@"',
        ray='echo "$@" >> ray.log',
        jaxpg=train,
        scontrol='echo "$@"',
    )
    script = ["bash", "-u", DOCS / "scaling" / name]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    job = {"slurm.sh": "17", "array.sh": "17_3"}[name]
    assert done.stdout == (f"requeue {job}\n" if requeued else "")


def test_a_slurm_job_passes_a_stop_on(tmp_path):
    """TERM reaches the training, which saves and exits with 75: it is waited for, and requeued.
    Also at once after it has begun, with a shell that is slow."""
    environment = stand_ins(
        tmp_path,
        srun="true",
        ray="true",
        jaxpg="trap 'sleep 1; exit 75' TERM\necho begun\nwhile true; do sleep 0.1; done",
        scontrol='echo "$@"',
    )
    slow = (
        (DOCS / "scaling" / "slurm.sh").read_text().replace("training=$!", "training=$!\nsleep 1")
    )
    script = ["bash", "-u", "-c", slow]
    with subprocess.Popen(
        script, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        rest, _ = process.communicate(timeout=20)
    assert (rest, process.returncode) == ("requeue 17\n", 75)


def test_ssh_passes_a_stop_on(tmp_path):
    """The training saves while its cluster is still there."""
    environment = stand_ins(
        tmp_path,
        ray='echo "ray $1"',
        ssh='shift; echo "there: $@"',
        jaxpg="trap 'sleep 1; echo saved; exit 75' TERM\necho begun\n"
        "while true; do sleep 0.1; done",
    )
    script = ["bash", DOCS / "scaling" / "ssh.sh", "jaxpg"]
    with subprocess.Popen(
        script,
        cwd=tmp_path,
        env=environment | {"HOSTS": "one"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            while process.stdout.readline() != "begun\n":
                assert process.poll() is None
            process.terminate()
            rest, _ = process.communicate(timeout=20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert rest.splitlines() == ["saved", "there: ray stop", "ray stop"]
    assert process.returncode == 75


def test_the_kubernetes_job_is_complete():
    job = yaml.safe_load((DOCS / "scaling" / "kubernetes.yaml").read_text())
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"  # it trains nothing
    pod = head["template"]["spec"]
    [container] = pod["containers"]
    [claim] = pod["volumes"]
    [mount] = container["volumeMounts"]
    assert mount["name"] == claim["name"]
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[words.index("--out") + 1].startswith(mount["mountPath"] + "/")
    [workers] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    [worker] = workers["template"]["spec"]["containers"]
    assert worker["image"] == container["image"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]


def test_the_workflow_does_what_ci_does():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    when = {"push", "pull_request", "schedule", "workflow_dispatch"}
    assert set(workflow[True]) == when  # YAML's `on`
    commands = []
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            commands += [step["run"]] if "run" in step else []
            if step.get("uses", "").startswith("actions/setup-python"):
                assert step["with"]["python-version"] in ("3.11", "${{ matrix.python }}")
                paths = step["with"]["cache-dependency-path"].split()
                assert all((ROOT / path).exists() for path in paths)
    assert commands == [".ci/run", "make ${{ matrix.target }}", "make docs"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    targets = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    made = {one["target"] for one in workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]}
    assert {"docs", *made} <= {name for line in targets for name in line.split()}


def _is_module(name):
    try:
        import_module(name)
    except ModuleNotFoundError:
        return False
    return True
