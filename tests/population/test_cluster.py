"""What a worker of a cluster sends, and what it says of itself; without Ray."""

import importlib
import os
import pickle
import socket
import sys
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxpg import fast
from jaxpg.core.config import Config, ConfigError
from jaxpg.errors import DoesNotFit
from jaxpg.population import (
    chunks,
    cluster,
    crew,
    evaluations,
    memory,
    own,
    population,
    provenance,
)

CONFIG = Config(
    num_envs=2,
    num_steps=4,
    total_steps=8 * 6,
    max_episode_steps=3,
    hidden_sizes=(4,),
    value_steps=1,
    lr_schedule="constant",
)
EVALUATING = evaluations.asked(CONFIG, 8 * 3, 2)


@pytest.fixture(scope="module")
def task():
    (chunk,) = population.make_chunks(CONFIG, [5, 7], [{}], 2, evaluating=EVALUATING)
    return crew.Task(chunk, 2, CONFIG.num_updates, fast.build)


@pytest.fixture(scope="module")
def worker(task):
    made = crew.Worker()
    assert made.compile(pickle.loads(pickle.dumps(task)), 0) > 0
    return made


def test_increments_are_the_snapshots_of_one_machine(worker, task):
    """From the start and from the midst; each segment apart, or all at once where time is given."""
    program = worker._program
    snapshots = [
        jax.tree.map(np.array, snapshot._replace(history=list(snapshot.history)))
        for snapshot in chunks.advance(program, task.chunk, task.updates, None)
    ]
    for at, seconds, calls in ((None, 0.0, 4), (snapshots[1], 0.0, 2), (None, 1e6, 1)):
        history, sent = [] if at is None else list(at.history), []
        begin = (task.chunk, task.updates, at)
        while (found := worker.train(seconds, begin)) is not None:
            sent.append(found)
            begin = None
        assert len(sent) == calls  # segments of 2 end at the points of evaluation, too
        last = sent[-1]
        history = chunks.join_metrics([*history, *(one.metrics for one in sent)])
        end = snapshots[-1]
        assert last.evaluations.shape == (2, 3, 2)
        jax.tree.map(
            np.testing.assert_array_equal,
            (last.lanes, history, last.recent_return, last.evaluations),
            (end.lanes, chunks.join_metrics(end.history), end.recent_return, end.evaluations),
        )


def test_who_is_in_a_hurry_ends_with_the_segment(task, worker):
    worker.hurry()
    found = worker.train(1e6, (task.chunk, task.updates, None))
    assert found.metrics.env_steps.shape == (2, 2)
    worker._hurry.clear()


def test_what_bits_depend_on(tmp_path):
    device = provenance.device()
    here = crew.describe(CONFIG, fast.build, device)
    assert {"jax", "jaxpg", "source of jaxpg", "platform", "form", "processor"} <= here.keys()
    assert not {"python", "numpy", "count"} & here.keys()
    h100 = {"platform": "gpu", "kind": "H100", "form": "fused", "xla_flags": ""}
    gpu = crew.describe(CONFIG, fast.build, h100)
    assert "processor" not in gpu
    flags = crew.describe(CONFIG, fast.build, device | {"xla_flags": "--xla_cpu_max_isa=SSE4_2"})
    assert flags != here
    (tmp_path / "a.py").write_text("x = 1")
    before = provenance.source_sha256.__wrapped__(tmp_path)
    (tmp_path / "a.py").write_text("x = 2")
    assert provenance.source_sha256.__wrapped__(tmp_path) != before


def test_bits_depend_on_the_source_of_ones_own_algorithm(tmp_path, monkeypatch):
    """Of what every node imports for itself; a function of a script or a notebook is sent."""
    device = provenance.device()
    source = "from jaxpg import build\n\n\ndef mine(config):\n    return build(config)\n"
    (tmp_path / "mine_of_a_node.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    build = importlib.import_module("mine_of_a_node").mine
    found = crew.describe(CONFIG, build, device)
    assert found.pop("source of mine_of_a_node:mine") == own.source(build).sha256
    assert found == crew.describe(CONFIG, fast.build, device)
    assert found == crew.describe(CONFIG, lambda config: fast.build(config), device)


def test_bits_depend_on_the_source_of_ones_own_environment(monkeypatch):
    monkeypatch.setattr(own, "env_sha256", lambda name: f"of {name}")
    found = crew.describe(CONFIG, fast.build, provenance.device())
    assert found["source of CartPole-v1"] == "of CartPole-v1"


def test_workers_have_the_settings_of_here(monkeypatch):
    not_theirs = {"JAX_PLATFORMS", "JAX_CUDA_VISIBLE_DEVICES", "OTHER"}
    theirs = {"JAX_ENABLE_X64", "XLA_FLAGS", "JAXPG_FORM", "NVIDIA_TF32_OVERRIDE"}
    for name in theirs | not_theirs:
        monkeypatch.setenv(name, "x")
    variables = cluster.options("GPU")["runtime_env"]["env_vars"]
    assert theirs <= variables.keys()
    assert not not_theirs & variables.keys()
    assert cluster.options("CPU")["runtime_env"]["env_vars"]["JAX_PLATFORMS"] == "cpu"
    monkeypatch.delenv("XLA_FLAGS")  # a node may have some of its own
    assert cluster.options("CPU")["runtime_env"]["env_vars"]["XLA_FLAGS"] == ""


def test_a_head_answers_as_long_as_it_is_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        ray = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(gcs_address=address))
        nodes = cluster.Cluster(ray, "CPU", {}, False, print)
        assert nodes.answers()
    assert not nodes.answers()


DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: Worker
\tactor_id: 1f
\tip: 10.0.0.7
The actor died because its node has died. Node Id: 5c

"""


def test_what_ray_says_is_its_cause():
    assert cluster.said(Exception(DIED)) == (
        "The actor died because its node has died. Node Id: 5c"
    )
    assert cluster.said(Exception("lost.\n\nOne may set A.")) == "lost"
    assert cluster.said(KeyError()) == "KeyError"


class Nowhere:
    """Stands for ray, for an actor of it and for its workers: of none becomes anything."""

    def remote(self, *inputs, **options):
        return (lambda kind: self) if options else self

    def kill(self, worker):
        pass


@pytest.fixture
def made(task, monkeypatch):
    """A crew of nobody, with one job."""
    monkeypatch.setattr(crew, "PAUSE", 0.0)
    monkeypatch.setattr(crew, "REFUSED_SECONDS", 0.0)
    there = cluster.Cluster(Nowhere(), "CPU", provenance.device(), False, print)
    return crew._Crew(there, task, None, [0], threading.Event(), print, crew.NO_LIMITS)


@pytest.mark.parametrize("others", [True, False])
def test_a_sick_node_ends_only_what_nobody_else_trains(made, task, monkeypatch, others):
    """It lost five workers in a row, and ended a run that all other nodes were training."""
    lost = []

    def employ(worker, sent):
        made._heard += others
        lost.append(worker)
        if len(lost) == 3 * crew.LOSSES:
            made._todo.clear()
        raise crew.Lost("sick: it died", task.chunk)

    monkeypatch.setattr(made, "_employ", employ)
    if others:
        made.seat()
        assert len(lost) == 3 * crew.LOSSES
    else:
        said = r"5 .* lost one after .*: sick: it died; it trained 2 seeds, the first of them 5$"
        with pytest.raises(ConfigError, match=said):
            made.seat()


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("INTERNAL: uncorrectable ECC error"),
        memory.ran_out(64, "RESOURCE_EXHAUSTED"),
        MemoryError(),
    ],
)
def test_a_device_that_breaks_or_is_full_loses_its_worker_alone(made, task, monkeypatch, error):
    def broken(*call):
        raise error

    monkeypatch.setattr(made, "_answer", broken)
    snapshots = made._advance(
        SimpleNamespace(train=Nowhere()), threading.Event(), task.chunk, 6, None
    )
    with pytest.raises(crew.Lost, match=r"ECC error|out of memory|MemoryError") as loss:
        next(snapshots)
    assert loss.value.trained is task.chunk


def test_workers_of_a_machine_share_its_memory(worker, task, monkeypatch):
    needs = []
    monkeypatch.setattr(chunks, "compile_programs", lambda *task: [worker._program])
    monkeypatch.setattr(memory, "check", lambda need, *lanes: needs.append(max(need[1:3])))
    for beside in (0, 1, 2):
        assert crew.Worker().compile(task, beside) > 0
    monkeypatch.undo()
    one, two, three = needs
    assert (two, three) == (2 * one, 3 * one)
    monkeypatch.setattr(chunks, "compile_programs", lambda *task: [worker._program])
    monkeypatch.setattr(memory, "available", lambda: two)
    assert crew.Worker().compile(task, 1) > 0
    assert isinstance(crew.Worker().compile(task, 2), DoesNotFit)


class Counted(Nowhere):
    """A worker that is told how many are beside it."""

    def __init__(self, told):
        self.describe = Nowhere()
        self.compile = SimpleNamespace(remote=lambda task, beside: told.append(beside))


def test_who_has_sent_has_taken_its_memory(made, monkeypatch):
    """Of four that come to two machines, the last finds one of the first two training."""
    told, sent = [], [threading.Event() for _ in range(4)]
    for machine, event in zip("aaba", sent, strict=True):
        answers = iter([(machine, made._here), None])
        monkeypatch.setattr(made, "_answer", lambda *call, answers=answers: next(answers))
        made._employ(Counted(told), event)
        if machine == "b":
            sent[0].set()
    assert told == [0, 1, 0, 1]


def test_who_was_refused_is_asked_again(made, monkeypatch):
    """Its node may have been mended."""

    def refuses(*call):
        raise ConfigError("another version")

    monkeypatch.setattr(made, "_answer", refuses)
    made._employ(Counted([]), threading.Event())
    assert not made.refused
    assert list(made._remarks) == ["a node: another version; nothing is trained there"]


class Asked(Nowhere):
    """It has an accelerator of which a node is to say what it is."""

    def __init__(self, is_free, answer):
        self.is_free, self.answer = is_free, answer
        self.exceptions = SimpleNamespace(RayError=ChildProcessError)

    def cluster_resources(self):
        return {"GPU": 2.0}

    def wait(self, calls, timeout):
        return (calls, []) if self.is_free else ([], calls)

    def get(self, call):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_an_accelerator_is_asked_what_it_is():
    notes = []
    gpu = {"platform": "gpu", "kind": "H100"}
    assert cluster._device(Asked(True, gpu), "GPU", notes.append) == {**gpu, "count": 2}
    assert not notes
    cluster._device(Asked(False, gpu), "GPU", notes.append)
    assert notes == ["no GPU of the cluster is free: waiting for one, to ask it what it is"]
    with pytest.raises(ConfigError, match="the cluster has a GPU, and jax finds none there"):
        cluster._device(Asked(True, {"platform": "cpu"}), "GPU", notes.append)
    broken = ChildProcessError("ray::device() (pid=7)\n  File a.py\nImportError: no jaxpg")
    with pytest.raises(ConfigError, match=r"cannot say what it is: ImportError: no jaxpg$"):
        cluster._device(Asked(True, broken), "GPU", notes.append)


def test_uv_run_makes_no_environment_on_the_nodes(monkeypatch):
    """Ray's own way is one for each worker; a node's is what was installed there."""
    monkeypatch.delenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", raising=False)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    cluster._imported()
    assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"


def test_without_ray_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = r"ray is not installed: pip install 'jaxpg\[ray\]'"
    with pytest.raises(ConfigError, match=said), cluster.joined("auto"):
        pass
