"""One checkpoint format: a folder that is either whole and verified, or is not there.

    run/checkpoints/step-000200/
        model.safetensors  optimizer.safetensors  state.json  card.json  tokenizer.json  MANIFEST.json

Written to a temporary folder, every file fsynced, the manifest (sizes, sha256) last, then renamed. No pickle.
"""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fledge.core.durable import (
    canonical_json,
    fsync_folder,
    one_at_a_time,
    run_lock,
    sha256,
    write_atomically,
    write_durably,
)

__all__ = [
    "Checkpoint", "DamagedCheckpoint", "Serving", "canonical_json", "fsync_folder", "list_checkpoints",
    "load_checkpoint", "one_at_a_time", "read_serving", "remove_unfinished", "require_space", "resolve", "run_lock",
    "save_checkpoint", "sha256", "step_of", "verify", "write_atomically", "write_durably", "write_serving",
]  # fmt: skip

FORMAT = "fledge-checkpoint-1"
SERVING = "serving.json"
_KEEP = 2  # the newest and the one before, to fall back on


class DamagedCheckpoint(ValueError):
    """A checkpoint whose bytes are not what its manifest says; names the file and the way out."""


def remove_unfinished(run: Path) -> None:
    """Delete what a killed save left behind; only for the process that holds the run's lock."""
    for left in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _discard(checkpoint: Path) -> None:
    """Delete a checkpoint, its name first, so that a folder named step-N is whole at every moment."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
    os.rename(checkpoint, aside)
    shutil.rmtree(aside, ignore_errors=True)


def save_checkpoint(
    run: Path,
    step: int,
    *,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    card: dict[str, Any],
    tokenizer: bytes = b"",
) -> Path:
    """Write step `step` of `run` and return its folder; older checkpoints beyond the last two are removed after."""
    parent = run / "checkpoints"
    final, temporary = parent / f"step-{step:07d}", parent / f".step-{step:07d}.tmp"
    files = {
        "model.safetensors": save_tensors({k: v.detach().cpu().contiguous() for k, v in model.items()}),
        "optimizer.safetensors": save_tensors({k: v.detach().cpu().contiguous() for k, v in optimizer.items()}),
        "state.json": canonical_json(state),
        "card.json": canonical_json(card),
        "tokenizer.json": tokenizer,
    }
    try:
        remove_unfinished(run)
        temporary.mkdir(parents=True)
        for name, data in files.items():
            write_durably(temporary / name, data)
        body = {
            "format": FORMAT,
            "step": step,
            "files": {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in files.items()},
        }
        manifest = {"body": body, "sha256": sha256(canonical_json(body))}
        write_durably(temporary / "MANIFEST.json", canonical_json(manifest))
        fsync_folder(temporary)
        if final.exists():  # the same step saved again
            _discard(final)
        os.rename(temporary, final)
        fsync_folder(parent)
        fsync_folder(run)  # where `checkpoints` and metrics.jsonl are entries
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        size = sum(map(len, files.values()))
        raise OSError(
            error.errno,
            f"could not write checkpoint {final} ({size / 1e6:.1f} MB): {error.strerror}; earlier checkpoints are "
            "intact. Free space or make the folder writable, then `fledge resume`",
        ) from error
    for old in list_checkpoints(run)[:-_KEEP]:
        with suppress(OSError):  # one too many harms nothing, the next save tries again
            _discard(old)
    return final


def step_of(checkpoint: Path) -> int:
    """The step a checkpoint folder is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first; unfinished temporary folders and other names are not checkpoints."""
    found = (run / "checkpoints").glob("step-*")
    return sorted((c for c in found if c.name.removeprefix("step-").isdecimal()), key=step_of)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} is missing from the checkpoint") from None


def verify(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Read every file once, check each against the manifest and return (bytes by name, manifest body).

    Raises DamagedCheckpoint naming the file. Any flipped bit is found: the files by their sha256, the manifest by its
    own and by being the canonical encoding of what it says.
    """
    path = folder / "MANIFEST.json"
    raw = _read(path)
    try:
        manifest = msgspec.json.decode(raw)
        body = manifest["body"]
        whole = canonical_json(manifest) == raw and sha256(canonical_json(body)) == manifest["sha256"]
    except (ValueError, KeyError, TypeError):  # not JSON, not UTF-8, or not of this shape
        whole = False
    if not whole:
        raise DamagedCheckpoint(f"{path} is damaged: its sha256 is not the one it states")
    if body["format"] != FORMAT:
        raise DamagedCheckpoint(f"{path} has format {body['format']!r}; this version reads {FORMAT!r}")
    files = {}
    for name, expected in body["files"].items():
        data = files[name] = _read(folder / name)
        if len(data) != expected["bytes"] or sha256(data) != expected["sha256"]:
            raise DamagedCheckpoint(
                f"{folder / name} is damaged: {len(data)} bytes with sha256 {sha256(data)[:12]}, "
                f"the manifest says {expected['bytes']} bytes, {expected['sha256'][:12]}"
            )
    return files, body


class Checkpoint(msgspec.Struct):
    """A verified checkpoint in memory."""

    path: Path
    id: str  # sha256 of the manifest: names the exact weights
    step: int
    card: dict[str, Any]
    state: dict[str, Any]
    files: dict[str, bytes]

    def model_tensors(self) -> dict[str, Tensor]:
        return load_tensors(self.files["model.safetensors"])

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return load_tensors(self.files["optimizer.safetensors"])


class Serving(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What RUN/serving.json says: a promotion writes it, and whoever names the run means this checkpoint from then on."""

    checkpoint: str  # its folder, relative to the run
    id: str  # sha256 of its manifest: names the exact weights


def read_serving(run: Path | str) -> Serving | None:
    """What RUN/serving.json says, or None where nothing was ever promoted. Raises ValueError naming a damaged file."""
    path = Path(run) / SERVING
    try:
        return msgspec.json.decode(path.read_bytes(), type=Serving)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): it holds {{checkpoint, id}} of the served model; restore it, or delete it "
            "to serve the run's newest checkpoint"
        ) from None


def write_serving(run: Path | str, checkpoint: Path | str, id: str) -> None:
    """Serve `checkpoint` from now on; readers see the old or the new one, never a mixture."""
    run, checkpoint = Path(run), Path(checkpoint)
    if not (checkpoint / "MANIFEST.json").exists():
        raise ValueError(f"{checkpoint} is no checkpoint: it has no MANIFEST.json")
    relative = os.path.relpath(checkpoint.resolve(), run.resolve())
    write_atomically(run / SERVING, canonical_json(Serving(relative, id)))


def _served(run: Path) -> Path | None:
    """The checkpoint that RUN/serving.json names, where there is such a file. Raises ValueError where it is gone."""
    serving = read_serving(run)
    if serving is None:
        return None
    folder = run / serving.checkpoint
    try:
        held = sha256(canonical_json(msgspec.json.decode((folder / "MANIFEST.json").read_bytes())["body"]))
    except OSError:
        held = "nothing"
    except (ValueError, KeyError, TypeError):
        return folder  # damaged: who loads it is told by `verify`, file and remedy
    if held != serving.id:
        raise ValueError(
            f"{run / SERVING} names {serving.checkpoint} ({serving.id[:12]}), where there is {held[:12]}: restore that "
            "checkpoint, or delete the file to serve the run's newest one"
        )
    return folder


def resolve(path: Path | str) -> Path:
    """The checkpoint folder meant by a path: itself, the one its serving.json names, or the newest in a stage's run
    folder or of a journey's last model.

    Raises ValueError when there is none.
    """
    path = Path(path)
    if (path / "MANIFEST.json").exists():
        return path
    if (served := _served(path)) is not None:
        return served
    for candidate in (path, *(path / name for name in ("aligned", "sft", "base"))):
        if found := list_checkpoints(candidate):
            return found[-1]
    raise ValueError(
        f"no checkpoint in {path}: expected a checkpoint folder, a stage's run folder or a journey's folder"
    )


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Verify and load. A damaged newest checkpoint is an error that offers the one before; it is never used silently."""
    folder = resolve(path)
    try:
        files, body = verify(folder)
    except DamagedCheckpoint as error:
        known = list_checkpoints(folder.parent.parent)
        older = known[: known.index(folder)] if folder in known else []
        offer = (
            f"the checkpoint before it is {older[-1]}: remove {folder} to continue from there"
            if older
            else "there is no earlier checkpoint: restore this one from a backup or start the stage again"
        )
        raise DamagedCheckpoint(f"{error}. Nothing was changed; {offer}") from None
    return Checkpoint(
        path=folder,
        id=sha256(canonical_json(body)),
        step=body["step"],
        card=msgspec.json.decode(files["card.json"]),
        state=msgspec.json.decode(files["state.json"]),
        files=files,
    )


def require_space(run: Path, checkpoint_bytes: int) -> None:
    """Raise OSError before any work when the disk cannot hold the two checkpoints that are kept while one is written."""
    free, missing = shutil.disk_usage(run).free, max(1, _KEEP + 1 - len(list_checkpoints(run)))
    if free < missing * checkpoint_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{run} has {free / 1e6:.1f} MB free; {missing} checkpoints (two are kept while the next is written) need "
            f"{missing * checkpoint_bytes / 1e6:.1f} MB: free space or choose another --out",
        )
