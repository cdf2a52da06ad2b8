"""Runs on a Ray cluster, of several nodes on this machine: the same bits, whoever is lost."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxpg.cli.main import main
from jaxpg.core.config import ConfigError
from jaxpg.errors import Stopped
from jaxpg.population import cluster, crew, provenance
from jaxpg.runs import checkpoints, run
from jaxpg.runs.python import train_population
from jaxpg.runs.watch import EXIT_STOPPED
from tests.faulty import FAULTS, Hung, Killed, Sick, Stillborn
from tests.runs.test_faults import OPTIONS, finish, reported, saved, start, when_reported
from tests.runs.test_runs import SEEDS, TINY, assert_same_results, begun

pytestmark = pytest.mark.as_users_run(1)
ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'jaxpg[ray]'")

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("JAXPG_KILLS", "2"))
# In a process of its own: Ray forks, which jax does not like, and what is left over ends with it.
KEEPER = """
import sys
from ray.cluster_utils import Cluster
made, nodes = Cluster(), {}
made.add_node(num_cpus=0, include_dashboard=False)
print(made.address, flush=True)
for line in sys.stdin:
    word, name, *environment = line.split()
    if word == "add":
        variables = dict(entry.split("=", 1) for entry in environment)
        nodes[name] = made.add_node(num_cpus=1, env_vars=variables)
    else:
        made.remove_node(nodes.pop(name), allow_graceful=False)
    print(word, flush=True)
made.shutdown()
"""


class Nodes:
    """A cluster on this machine: a head that trains nothing, and nodes with a core each."""

    def __init__(self):
        command = [sys.executable, "-c", KEEPER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        environment = os.environ | {"RAY_worker_niceness": "0"}  # 15 else
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.address = self.process.stdout.readline().strip()

    def add(self, name, **environment):
        self._say("add", name, *(f"{key}={value}" for key, value in environment.items()))

    def remove(self, name):
        """As if its machine had died."""
        self._say("remove", name)

    def close(self):
        self.process.communicate(timeout=120)

    def _say(self, *words):
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == words[0]


@pytest.fixture(scope="module")
def nodes():
    made = Nodes()
    made.add("a")
    made.add("b")
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run by this machine alone."""
    out = tmp_path_factory.mktemp("cluster") / "whole"
    run.train(begun(out), stall_seconds=600.0)
    return out


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A longer one, as of test_faults.py."""
    out = tmp_path_factory.mktemp("cluster") / "longer"
    main(["train", "vpg", *OPTIONS, "--out", str(out)])
    return out


@pytest.fixture
def every_segment(monkeypatch):
    """Is saved and reported."""
    monkeypatch.setattr(run, "SAVE_RATIO", 0.0)


def train(directory, nodes, **options):
    notes = []
    with cluster.joined(nodes.address, options.pop("mixed", False), notes.append) as joined:
        run.train(directory, nodes=joined, **{"stall_seconds": 600.0, **options})
    return notes


def test_stopped_and_continued_it_has_the_bits_of_one_machine(whole, nodes, tmp_path, stop_after):
    out, seen = begun(tmp_path / "run"), []
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        train(out, nodes, report=stop_after(3, seen))
    assert signal.getsignal(signal.SIGTERM) is handler
    done, seen = seen[-1].fraction, []
    assert 0 < done < 1
    train(out, nodes, report=seen.append)
    assert min(at.fraction for at in seen) > done  # nothing is done twice
    assert_same_results(whole, out)


def test_in_memory_with_one_worker_killed(whole, nodes, tmp_path, monkeypatch, caplog):
    """The chunk goes on from where it was, with another worker; and that is said."""
    monkeypatch.setenv(FAULTS, str(tmp_path))
    monkeypatch.setattr(crew, "Worker", Killed)
    seen = []
    options = {"lanes": 2, "segments": 7, "cluster": nodes.address, "report": seen.append}
    found = train_population(TINY, SEEDS, **options)
    assert (tmp_path / "met").exists()
    assert re.search("a worker is lost .*: what was trained there goes on from", caplog.text)
    fractions = [at.fraction for at in seen]
    assert fractions == sorted(set(fractions))  # no segment is trained twice
    assert fractions[-1] == 1.0
    assert found.manifest.made["device"]["count"] == 2
    found.save(tmp_path / "saved")
    assert_same_results(whole, tmp_path / "saved")


def test_who_differs_trains_nothing_unless_that_is_meant(whole, nodes, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "source_sha256", lambda folder: "another")
    with pytest.raises(ConfigError, match=r"source of jaxpg \w{64}, here another.*--mixed"):
        train(begun(tmp_path / "run"), nodes)
    assert not checkpoints.listed(tmp_path / "run")
    notes = train(tmp_path / "run", nodes, mixed=True)
    assert any("here another), and trains all the same" in note for note in notes)
    assert_same_results(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_worker_that_hangs_is_given_up(whole, nodes, tmp_path, monkeypatch, every_segment):
    monkeypatch.setenv(FAULTS, str(tmp_path))
    monkeypatch.setattr(crew, "Worker", Hung)
    notes = train(begun(tmp_path / "run"), nodes, stall_seconds=5.0)
    assert any("no answer for 5 s" in note for note in notes)
    assert_same_results(whole, tmp_path / "run")


@pytest.mark.slow
def test_workers_that_all_die_end_it(nodes, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "Worker", Stillborn)
    with pytest.raises(ConfigError, match="5 workers were lost one after another"):
        train(begun(tmp_path / "run", seeds=[2, 9]), nodes)


@pytest.mark.slow
def test_a_sick_node_costs_its_own_workers(whole, tmp_path, monkeypatch):
    """Its device breaks in each chunk that it is given; another, which joins then, trains them."""
    monkeypatch.setattr(crew, "Worker", Sick)
    some = Nodes()
    some.add("sick", SICK="yes")
    notes = []

    def note(sentence):
        notes.append(sentence)
        if len(notes) == 1:
            some.add("well")

    with cluster.joined(some.address, note=note) as joined:
        run.train(begun(tmp_path / "run"), nodes=joined, stall_seconds=600.0)
    some.close()
    assert "JaxRuntimeError: INTERNAL: uncorrectable ECC error" in notes[0]
    assert_same_results(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_node_with_another_version_is_left_out(whole, tmp_path, every_segment):
    """Its workers find another jaxpg's metadata first."""
    theirs = tmp_path / "theirs" / "jaxpg-0.0.7.dist-info"
    theirs.mkdir(parents=True)
    (theirs / "METADATA").write_text("Metadata-Version: 2.1\nName: jaxpg\nVersion: 0.0.7\n")
    some = Nodes()
    some.add("theirs", PYTHONPATH=theirs.parent)
    with pytest.raises(ConfigError, match=r"differs .*jaxpg 0\.0\.7, here"):
        train(begun(tmp_path / "run"), some)
    some.add("ours")
    notes = train(tmp_path / "run", some)
    some.close()
    assert any("jaxpg 0.0.7" in note and "nothing is trained there" in note for note in notes)
    assert_same_results(whole, tmp_path / "run")


@pytest.mark.slow
def test_nodes_that_join_and_leave(tmp_path, uninterrupted, monkeypatch):
    """Killed at random instants, one at a time, until none is left; and others that join."""
    rng, some = random.Random(KILLS), Nodes()
    some.add("0")
    out, said = tmp_path / "run", []
    with start(out, options=["--cluster", some.address]) as process:
        reader = threading.Thread(target=lambda: said.extend(process.stderr))
        reader.start()
        for kill in range(KILLS):
            when_reported(process, out, reported(out))
            time.sleep(rng.random() * 0.4)
            before = saved(out)
            some.remove(str(kill))
            assert saved(out) >= before
            some.add(str(kill + 1))
        assert process.wait() == 0
        reader.join()
    some.close()
    assert any("is lost" in line or "are lost" in line for line in said), said
    assert_same_results(uninterrupted, out)


@pytest.mark.slow
def test_who_writes_is_killed_and_signalled(nodes, tmp_path, uninterrupted):
    """SIGKILL to the process, at random instants; SIGTERM: exit 75, and the line that goes on."""
    rng, out, cluster_ = random.Random(0), tmp_path / "run", ["--cluster", nodes.address]
    for _ in range(KILLS):
        process = start(out, options=cluster_)
        when_reported(process, out, reported(out))
        time.sleep(rng.random() * 0.4)
        process.kill()
        process.communicate()
        assert saved(out) >= reported(out) - 1e-12
    process = start(out, options=cluster_)
    when_reported(process, out, reported(out))
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    if code == EXIT_STOPPED:
        assert f"jaxpg resume {out} --cluster {nodes.address}" in errors
    main(["resume", str(out), *cluster_, "--no-report"])
    assert_same_results(uninterrupted, out)


@pytest.mark.slow
def test_without_a_node_it_waits(whole, tmp_path, monkeypatch, every_segment):
    monkeypatch.setattr(crew, "PATIENCE", 1.0)
    some, heard = Nodes(), threading.Event()
    some.add("a")

    def leave(at):
        if not heard.is_set():
            heard.set()
            some.remove("a")

    waiting = threading.Timer(20.0, some.add, ["b"])
    waiting.start()
    notes = train(begun(tmp_path / "run"), some, report=leave)
    waiting.join()
    some.close()
    assert any("waiting for one" in note for note in notes)
    assert_same_results(whole, tmp_path / "run")


# What Ray waits for before it believes that a node is gone: 2 s.
PATIENCE = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


class Network:
    """Two machines of their own addresses, one cable between them, and a Ray node on each: the
    first has the head, too. Made of Linux's network namespaces, which only root may."""

    names = (f"jaxpg-{os.getpid()}-here", f"jaxpg-{os.getpid()}-there")
    addresses = ("10.213.77.1", "10.213.77.2")
    head = f"{addresses[0]}:6379"

    def __init__(self):
        self.nodes = []
        try:
            for name in self.names:
                self._ip("netns", "add", name)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here ({error})")
        here, there = self.names
        self._ip(*f"link add cable netns {here} type veth peer name cable netns {there}".split())
        for name, address in zip(self.names, self.addresses, strict=True):
            self._ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            self._ip("-n", name, "link", "set", "lo", "up")
            self._ip("-n", name, "link", "set", "cable", "up")
        self._start(0, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false")
        for place in (0, 1):
            self._start(place, f"--address={self.head}", "--num-cpus=1")

    def within(self, place):
        """The words before a command that runs on the first machine, or the second."""
        return ["ip", "netns", "exec", self.names[place]]

    def cable(self, state):
        self._ip("-n", self.names[0], "link", "set", "cable", state)

    def close(self):
        for node in reversed(self.nodes):
            node.terminate()
            node.communicate(timeout=60)
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def _ip(self, *words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def _start(self, place, *options):
        command = [*self.within(place), sys.executable, "-m", "ray.scripts.scripts", "start"]
        command += ["--block", f"--node-ip-address={self.addresses[place]}", *options]
        own = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        node = subprocess.Popen(command, env=os.environ | PATIENCE | own, **pipes)
        self.nodes.append(node)
        assert any("runtime started" in line for line in node.stdout)


@pytest.fixture
def network():
    made = Network()
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, None], ids=["for half a second", "for good"])
def test_a_network_that_parts(network, uninterrupted, tmp_path, seconds):
    """Nobody is lost who is heard of again soon; of who is not the chunk goes on elsewhere."""
    out, options = tmp_path / "run", ["--cluster", network.head]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    process = start(out, options=options, through=network.within(0), env=environment)
    while process.poll() is None and len(checkpoints.listed(out)) < 2:
        time.sleep(0.005)  # both machines train
    network.cable("down")
    assert process.poll() is None
    if seconds:
        time.sleep(seconds)
        network.cable("up")
    code, errors = finish(process)
    assert code == 0, errors
    assert ("is lost" in errors) == (seconds is None), errors
    assert_same_results(uninterrupted, out)


@pytest.mark.slow
def test_a_full_object_store(whole, tmp_path, monkeypatch, every_segment):
    """Somebody else's objects fill it: what is sent is spilled to the disk, and arrives."""
    some = Nodes()
    some.add("a")
    ray.init(some.address, log_to_driver=False, logging_level="ERROR")
    try:
        taken = [ray.put(bytes(20 * 2**20)) for _ in range(20)]  # of 150 MB
        train(begun(tmp_path / "run"), some)
        assert len(ray.get(taken[0])) == 20 * 2**20
    finally:
        ray.shutdown()
        some.close()
    assert_same_results(whole, tmp_path / "run")


# Stand-ins for the programs of docs/scaling: ssh, srun and gcloud are a local shell, each node has
# one core, and `ray stop` ends what this test has started, and nobody else's.
STAND_INS = {
    "ssh": 'shift; exec "$@"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "gcloud": 'exec bash -c "${@: -1}"',
    "scontrol": 'echo "$@"',
    "jaxpg": f"""
        words=()
        while [ $# -gt 0 ]; do
          [ "$1" = --seeds ] && shift || words+=("$1")
          shift
        done
        exec "$PYTHON" -m jaxpg "${{words[@]}}" {" ".join(OPTIONS)}
    """,
    "ray": """
        if [ "$1" = stop ]; then
          [ ! -e pids ] || kill $(cat pids)
          rm -f pids
          exit
        fi
        words=(start --num-cpus=1 --block)
        shift
        for word in "$@"; do [[ $word =~ block|num-cpus ]] || words+=("$word"); done
        log=$(mktemp)
        export RAY_worker_niceness=0
        setsid "$PYTHON" -m ray.scripts.scripts "${words[@]}" > "$log" 2>&1 &
        echo $! >> pids
        until grep -q "runtime started" "$log"; do kill -0 $! || exit 1; sleep 0.1; done
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "ssh.sh jaxpg train vpg --seeds 10000 --out runs/big",
        "tpu.sh my-pod jaxpg train vpg --seeds 10000 --out runs/big",
        "slurm.sh",
    ],
)
def test_the_scripts_of_the_page(line, uninterrupted, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "HOSTS": "node1",
        "RAY_AUTH_MODE": "disabled",  # a head asks for a token wherever it finds one
        "WORKERS": "2",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_ID": "17",
        "SLURMD_NODENAME": "node0",
        "SCRATCH": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    script = f"{ROOT / 'docs' / 'scaling'}/{line}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out = {"slurm.sh": tmp_path / "jaxpg" / "big"}.get(line, tmp_path / "runs" / "big")
    assert_same_results(uninterrupted, out)
    assert not (tmp_path / "pids").exists()  # every node has left


@pytest.mark.slow
def test_a_sweep(nodes, tmp_path):
    small = ["--num-envs", "3", "--num-steps", "24", "--total-steps", "360", "--hidden-sizes", "6"]
    command = ["sweep", "vpg", "--grid", "gamma=0.9,0.99", "--seeds", "3", "--lanes", "2", *small]
    main([*command, "--out", str(tmp_path / "here"), "--no-report"])
    there = [*command, "--out", str(tmp_path / "there"), "--no-report"]
    main([*there, "--cluster", nodes.address])
    assert_same_results(tmp_path / "here" / "1-all", tmp_path / "there" / "1-all")
