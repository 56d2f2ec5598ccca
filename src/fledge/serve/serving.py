"""RUN/serving.json as a server follows it: which checkpoint is served, and whether that has changed."""

from pathlib import Path

from fledge.core.checkpoint import SERVING, Serving, read_serving, write_serving

__all__ = ["Serving", "read_serving", "stamp", "write_serving"]


def stamp(run: Path | str) -> tuple[int, int]:
    """Changes whenever serving.json is replaced; (0, 0) where there is none."""
    try:
        status = (Path(run) / SERVING).stat()
    except (FileNotFoundError, NotADirectoryError):
        return (0, 0)
    return (status.st_mtime_ns, status.st_ino)
