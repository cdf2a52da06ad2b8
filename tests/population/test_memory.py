"""Memory: what is predicted, what is refused, and what is taken instead."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from jaxpg.cli.main import main
from jaxpg.core.config import Config, ConfigError
from jaxpg.errors import DoesNotFit
from jaxpg.population import cgroups, chunks, memory, population
from jaxpg.population.memory import Need
from jaxpg.runs.python import train_population

TINY = Config(num_envs=2, num_steps=4, total_steps=24, hidden_sizes=(4,), value_steps=1)
OPTIONS = ["--num-envs", "2", "--num-steps", "4", "--total-steps", "24", "--hidden-sizes", "4"]
MIB = 2**20


def compiled(platform, program_bytes):
    used = SimpleNamespace(
        argument_size_in_bytes=program_bytes,
        output_size_in_bytes=2 * program_bytes,
        alias_size_in_bytes=2 * program_bytes,
        temp_size_in_bytes=0,
    )
    function = SimpleNamespace(memory_analysis=lambda: used)
    device = SimpleNamespace(platform=platform)
    return SimpleNamespace(device=device, start=function, advance=function, evaluate=None)


@pytest.fixture(scope="module")
def lane():
    (chunk,) = population.make_chunks(TINY, [0, 1], [{}], 2)
    return chunks.lane_shapes(chunk)


def bytes_of(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_lanes_stay_on_a_device_while_their_policies_act(lane):
    """The program that evaluates is given the parameters alone."""
    rest = bytes_of(lane) - bytes_of(lane.state.params)
    for platform, beside in (("gpu", rest), ("cpu", 0)):
        program = compiled(platform, MIB)
        program.evaluate = compiled(platform, 2 * MIB).start
        need = memory.predict([program], lane, 1, 800, writes=False)
        without = memory.predict([compiled(platform, 2 * MIB)], lane, 1, 800, writes=False)
        assert need.device + need.training == without.device + without.training + beside


def test_prediction_by_hand(lane):
    """Two lanes, five chunks of 100 updates, two cores: 32 bytes a lane and update."""
    need = memory.predict([compiled("cpu", MIB)] * 2, lane, 5, 800, writes=False)
    state, params = bytes_of(lane), bytes_of(lane.state.params)
    assert need.device == 0
    assert need.training == 2 * (MIB + state + 3 * 2 * 100 * 32)
    assert need.results == 5 * (state + 3 * 2 * 100 * 32 + params + memory.ARRAYS)
    written = memory.predict([compiled("cpu", MIB)] * 2, lane, 5, 800, writes=True)
    more = memory.WRITING + 5 * (2 * params + 2 * memory.LINE)
    assert written.results == need.results + more
    one = memory.predict([compiled("cpu", MIB)] * 2, lane, 1, 800, writes=False)
    assert one.training == need.training // 2  # one chunk has one worker
    kept = memory.predict([], lane, 5, 800, writes=False, elsewhere=3)
    assert (kept.device, kept.results) == (0, need.results)
    assert kept.training == 3 * (state + 3 * 2 * 100 * 32)  # their programs are elsewhere, too


def test_a_device_has_memory_of_its_own(lane):
    need = memory.predict([compiled("gpu", MIB)] * 4, lane, 5, 800, writes=False)
    assert need.device == MIB
    assert need.training == 4 * (bytes_of(lane) + 3 * 2 * 100 * 32)


def room(monkeypatch, free):
    monkeypatch.setattr(memory, "available", lambda: free)


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch):
    room(monkeypatch, 100 * MIB)
    fits = Need(device=0, training=60 * MIB, results=90 * MIB, host=500 * MIB)
    line = memory.check(fits, 16, [])
    assert line == "memory: 500 MiB at the peak, 90 MiB more than now; 100 MiB are available"
    with pytest.raises(DoesNotFit, match="--lanes 7 would fit") as refused:
        memory.check(fits._replace(training=200 * MIB), 16, [])
    assert refused.value.lanes == 7  # 16 / 2, less a tenth
    with pytest.raises(DoesNotFit, match="fewer environments or steps") as refused:
        memory.check(fits._replace(training=2000 * MIB), 16, [])
    assert refused.value.lanes is None
    with pytest.raises(DoesNotFit, match="train fewer seeds at once") as refused:
        memory.check(fits._replace(results=101 * MIB), 16, [])
    assert refused.value.lanes is None
    room(monkeypatch, None)
    assert "available" not in memory.check(fits._replace(results=2**50), 16, [])


def test_lanes_that_nobody_chose_become_fewer_until_they_fit():
    tried = []

    def attempt(lanes):
        tried.append(lanes)
        if lanes is None or lanes > 4:
            raise memory.no_room(lanes or 16, "23.73G exceeds 15.75G")
        return "trained"

    told = []
    assert memory.with_lanes_that_fit(None, attempt, told.append) == "trained"
    assert tried == [None, 8, 4]
    assert (
        "16 lanes the program does not fit into the device (23.73G exceeds 15.75G): --lanes 8"
        in (str(told[0]))
    )
    with pytest.raises(DoesNotFit):
        memory.with_lanes_that_fit(8, attempt)
    assert memory.no_room(3, "").lanes is None


@pytest.mark.parametrize("said", ["RESOURCE_EXHAUSTED: Ran out of memory", "INTERNAL: a bug"])
def test_a_compiler_that_finds_no_room_is_understood(said, monkeypatch):
    """As a TPU's does, before anything is predicted; what else it finds is an error of ours."""

    def compile_on_each(*given):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(chunks.devices, "compile_on_each", compile_on_each)
    (chunk,) = population.make_chunks(TINY, [1, 2], [{}], 2)
    expected = DoesNotFit if said.startswith("RESOURCE") else jax.errors.JaxRuntimeError
    with pytest.raises(expected, match=said.partition(":")[0]):
        chunks.compile_programs(chunk, 1)


def test_a_device_that_runs_out_while_it_trains_is_said_in_a_sentence():
    (chunk,) = population.make_chunks(TINY, [1, 2], [{}], 2)
    (program,) = chunks.compile_programs(chunk, 1, workers=1)

    def advance(*given):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    said = r"ran out of memory while 2 lanes trained \(RESOURCE_EXHAUSTED: .* 9 bytes\): free it"
    with pytest.raises(ConfigError, match=said):
        next(chunks.advance(program._replace(advance=advance), chunk, 3, None))


def test_a_backend_that_tells_less_is_not_asked_for_more():
    assert memory.of_program(SimpleNamespace(memory_analysis=lambda: None)) == 0
    need = Need(device=50 * MIB, training=MIB, results=MIB, host=MIB)
    silent = SimpleNamespace(memory_stats=lambda: {"bytes_in_use": 30 * MIB})
    assert memory.check(need, 256, [silent]).endswith("50 MiB on each device")


def test_a_device_too_small_is_refused(monkeypatch):
    room(monkeypatch, 2**40)
    stats = {"bytes_limit": 80 * MIB, "bytes_in_use": 30 * MIB}
    devices = [SimpleNamespace(memory_stats=lambda: None),
               SimpleNamespace(memory_stats=lambda: stats)]  # fmt: skip
    need = Need(device=50 * MIB, training=MIB, results=MIB, host=MIB)
    assert "50 MiB on each device, which has 50 MiB" in memory.check(need, 256, devices)
    with pytest.raises(DoesNotFit, match="with 256 lanes the device must hold 100 MiB") as refused:
        memory.check(need._replace(device=100 * MIB), 256, devices)
    assert refused.value.lanes == 115


@pytest.mark.slow
def test_fewer_lanes_are_taken_where_nobody_chose_them(monkeypatch):
    whole = memory.predict

    def by_lanes(programs, lane, *rest, **options):
        lanes = lane.state.update.shape[0]
        return whole(programs, lane, *rest, **options)._replace(training=lanes * MIB)

    monkeypatch.setattr(memory, "predict", by_lanes)
    monkeypatch.setattr(population, "default_lanes", lambda device: 6)
    room(monkeypatch, 5 * MIB)
    made = train_population(TINY, [0, 1, 2])
    assert made.lanes == 4


@pytest.mark.slow
def test_train_says_refuses_and_adapts(monkeypatch, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", "vpg", "--seeds", "3", "--value-steps", "1", *OPTIONS, "--out", str(out)]
    whole = memory.predict

    def by_lanes(programs, lane, *rest, **options):
        lanes = lane.state.update.shape[0]
        return whole(programs, lane, *rest, **options)._replace(training=lanes * MIB, results=0)

    monkeypatch.setattr(memory, "predict", by_lanes)
    room(monkeypatch, 5 * MIB)
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--lanes", "16"])
    assert exit_.value.code == 2
    assert "--lanes 4 would fit" in capsys.readouterr().err
    main(command)  # the refused run has left nothing that is in the way
    said = capsys.readouterr()
    assert "--lanes 4 would fit, and is taken" in said.err
    assert "memory: " in said.err
    assert json.loads((out / "manifest.json").read_text())["lanes"] == 4
    assert json.loads((out / "summary.json").read_text())["lanes"] == 4


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_control_group_counts(version, monkeypatch, tmp_path):
    """A group that may have 300 bytes and has 100, of which 30 are a cache that it can drop."""
    limit, usage, root = (
        ("memory.max", "memory.current", tmp_path)
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", tmp_path / "memory")
    )
    for folder, most in ((root / "job", "300"), (root / "job" / "step", "max")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(most if version == 2 or most != "max" else str(2**62))
        (folder / usage).write_text("100")
        (folder / "memory.stat").write_text("anon 70\ninactive_file 30\n")
    real = Path.read_text
    groups = "0::/job/step\n" if version == 2 else "3:cpu:/other\n4:cpu,memory:/job/step\n"

    def read_text(path, *rest, **named):
        if path == Path("/proc/meminfo"):
            return "MemTotal: 9 kB\nMemAvailable: 8 kB\n"
        return groups if path == Path("/proc/self/cgroup") else real(path, *rest, **named)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    assert memory.available() == 230
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "none")
    assert memory.available() == 8 * 1024


def test_importing_it_imports_no_jax():
    import subprocess
    import sys

    code = "import sys, jaxpg.population.memory; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
