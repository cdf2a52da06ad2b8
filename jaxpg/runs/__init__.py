"""A run directory: training that survives being killed at any instant.

    manifest.json    what is trained, and how that came about; written once, and by extend
    checkpoints/     of each chunk of seeds the newest two states, whole; see `checkpoints`
    progress.jsonl   a line per commit, to be looked at; nothing is read back from it
    lock             held by the process that works here
    summary.json, results.npz, params.safetensors, curve.png     once it is finished

Imports point up: durable, lock, watch, manifest, results, trained, checkpoints, share, run; then
load, edit, retrace, track, and python, which trains from Python.
"""


class RunError(Exception):
    """A run directory cannot be used as asked: one sentence that says why."""


class Stopped(Exception):
    """Training was asked to stop; everything that it reported is on the disk."""
