"""The control groups that this process lies in: what a container or a scheduler limits."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def groups(controller: str) -> Iterator[tuple[int, Path]]:
    """Version (1 or 2) and folder of each group that may limit the process, the outer ones last.

    A folder need not be there: a container does not see what it lies in.

    Args:
      controller: "cpu" or "memory".
    """
    try:
        text = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return  # not Linux
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        version, root = (1, ROOT / controller) if controllers else (2, ROOT)
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            yield version, group
