"""A run directory: training that survives being killed at any instant.

manifest.json    what is trained, and how that came about; written once, and by `edit`
checkpoints/     of each chunk of seeds the newest two states, whole; see `checkpoints`
progress.jsonl   a line per commit, to be looked at; nothing is read back from it
lock             held by the process that works here
start.safetensors   what its seeds start from, if that was trained before
tracker.json     which tracker is told, and how far
summary.json, results.npz, params.safetensors, curve.png, report.html     once it is finished

Until something is saved a manifest is written anew, too, where files of one's own have changed.
"""
