"""Checkpoints: the whole state of one chunk of seeds after some of its updates, in one file.

    checkpoints/CHUNK-UPDATE-SHA256.safetensors

It holds the lanes (parameters, optimizer, environments, ring, key, update, cause of freezing),
the metrics of all updates so far, the recent returns, and the evaluations so far where there are
any. The name carries the SHA-256 of the content, without which a flipped bit would load in silence;
shapes and dtypes are known before anything is read. Loading executes nothing.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors

from jaxpg import files, words
from jaxpg.core.config import STATIC
from jaxpg.core.types import Metrics
from jaxpg.errors import Foreign, RunError
from jaxpg.population.chunks import (
    COUNTED,
    Chunk,
    Lane,
    Snapshot,
    join_metrics,
    metric_names,
    points_of,
)
from jaxpg.population.evaluations import MODES
from jaxpg.runs import manifests

FOLDER = "checkpoints"
KEPT = 2  # of each chunk
HEADER = 2**20  # bytes; no header is as large
NAME = re.compile(r"(\d{6})-(\d{10})-([0-9a-f]{64})\.safetensors")


class Checkpoint(NamedTuple):
    """A file that says by its name whose it is."""

    path: Path
    chunk: int
    update: int
    sha256: str


class Loaded(NamedTuple):
    """A checkpoint's content."""

    snapshot: Snapshot  # numpy
    seconds: float  # that the run had taken until then


def name(chunk: int, update: int, sha256: str) -> str:
    """The file's name."""
    return f"{chunk:06d}-{update:010d}-{sha256}.safetensors"


def listed(directory: Path) -> dict[int, list[Checkpoint]]:
    """The checkpoints of each chunk, the newest last, by their names alone.

    Raises:
      RunError: if the folder cannot be read.
    """
    found: dict[int, list[Checkpoint]] = {}
    folder = directory / FOLDER
    with files.reading(folder):
        paths = sorted(folder.iterdir()) if folder.exists() else []
    for path in paths:
        match = NAME.fullmatch(path.name)
        if match:
            at = Checkpoint(path, int(match[1]), int(match[2]), match[3])
            found.setdefault(at.chunk, []).append(at)
    return found


def identity(chunk: Chunk) -> str:
    """A hash of what a chunk trains; of the budget only if the learning rate depends on it, of
    options and evaluations only if there are any. What it starts from is in its keys."""
    config = chunk.config
    untold = manifests.BUDGETS if config.lr_schedule == "constant" else ()
    fields = {
        name: jax.tree.map(np.ndarray.tolist, value) if name not in STATIC else value
        for name, value in vars(config).items()
        if name not in untold
        and (name not in manifests.LATER or np.any(value != manifests.LATER[name]))
    }
    trained = [fields, chunk.keys.tolist()]
    if chunk.options:
        trained.append(jax.tree.map(np.ndarray.tolist, chunk.options))
    if chunk.evaluating:
        trained.append(chunk.evaluating)
    text = json.dumps(trained, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def save(
    directory: Path, index: int, chunk: Chunk, snapshot: Snapshot, seconds: float
) -> Checkpoint:
    """Write one, durably.

    Raises:
      RunError: if it could not be written, as on a full disk; nothing is lost.
    """
    metrics = join_metrics(snapshot.history)
    whole = (snapshot.lanes, metrics, snapshot.recent_return, snapshot.evaluations)
    leaves = {name: np.asarray(leaf) for name, leaf in _named(whole).items()}
    metadata = {"identity": identity(chunk), "seconds": repr(seconds)}
    content = files.safetensors(leaves, metadata)
    sha256 = hashlib.sha256(content).hexdigest()
    update = metrics.env_steps.shape[1]
    path = directory / FOLDER / name(index, update, sha256)
    again = manifests.resume_line(directory)
    advice = f"; everything reported so far is saved: make room, then {again}"
    with files.writing(directory, advice):
        files.write(path, content)
    return Checkpoint(path, index, update, sha256)


def load(at: Checkpoint, chunk: Chunk, lanes: Lane, num_updates: int) -> Loaded:
    """Read one and check it.

    Args:
      chunk: that it must be of.
      lanes: its shapes and dtypes, from `chunks.lane_shapes`.
      num_updates: the most that it may have done.

    Raises:
      RunError: if it is damaged; as Foreign, if it is whole but not of this run and version.
    """
    wanted = shapes(lanes, chunk, at.update)
    size = sum(_size(x) for x in _named(wanted).values())
    with files.reading(at.path), at.path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != at.sha256:
            raise RunError(f"{at.path} is damaged: its content has not the SHA-256 of its name")
        if at.update > num_updates or not size <= file.tell() <= size + HEADER:
            raise _foreign(at.path)
        file.seek(0)
        content = file.read()
    return parse(content, at.path, chunk, wanted)


def parse(content: bytes, path: Path, chunk: Chunk, wanted: Any) -> Loaded:
    """The checkpoint that these bytes are.

    Args:
      wanted: from `shapes`.

    Raises:
      RunError: if they are none; as Foreign, if they are not of this run and version.
    """
    try:
        leaves = from_safetensors(content)
        metadata = files.safetensors_metadata(content)
        seconds = float(metadata["seconds"])
        whose = metadata["identity"]
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is not a checkpoint ({words.line(error)})") from None
    names = _named(wanted)
    expected = {name: (x.shape, np.dtype(x.dtype)) for name, x in names.items()}
    if whose != identity(chunk) or expected != {
        name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()
    }:
        raise _foreign(path)
    structure = jax.tree.structure(wanted)
    whole = jax.tree.unflatten(structure, [leaves[name] for name in names])
    lanes, metrics, recent, evaluations = whole
    return Loaded(Snapshot(lanes, [metrics], recent, evaluations), seconds)


def seconds(directory: Path) -> float:
    """That a run had taken until its last save that can be read; 0 without one."""
    found = [0.0]
    for kept in listed(directory).values():
        for at in reversed(kept):
            try:
                with files.reading(at.path):
                    metadata = files.safetensors_metadata(at.path.read_bytes())
                    found.append(float(metadata["seconds"]))
            except RunError:
                continue  # that it is damaged is said, and mended, where it is loaded
            break
    return max(found)


def shapes(lanes: Lane, chunk: Chunk, update: int) -> Any:
    """Shapes and dtypes of (lanes, metrics, recent returns, evaluations) after so many updates."""
    floats, num_lanes = lanes.state.recent_returns.rows.dtype, len(chunk.keys)
    metrics: dict[str, Any] = {
        name: jax.ShapeDtypeStruct((num_lanes, update), "int32" if name in COUNTED else floats)
        for name in metric_names(chunk.config)
    }
    evaluations = None
    if chunk.evaluating is not None:
        times = sum(point <= update for point in points_of(chunk))
        evaluations = jax.ShapeDtypeStruct((num_lanes, times, len(MODES)), floats)
    return lanes, Metrics(**metrics), jax.ShapeDtypeStruct((num_lanes,), floats), evaluations


def _foreign(path: Path) -> Foreign:
    return Foreign(
        f"{path} is whole, but of another run or version: continue with the versions that "
        f"{manifests.NAME} names, or move it away"
    )


def _size(x: Any) -> int:
    return int(np.prod(x.shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize


def _named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
