"""The trackers themselves: what TensorBoard, trackio and wandb are told of one run. Imported with their package only."""

import contextvars
import importlib.util
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

_STORED_WITHIN_SECONDS = 30.0  # as long as trackio itself waits when a run is finished


class Target(NamedTuple):
    """One run as a tracker knows it."""

    run: Path  # absolute
    name: str  # such as first/sft: of the run in its journey
    project: str | None  # None is that of the tracker's own variable, else "fledge"
    folder: Path | None  # where the tracker's files go; None is beside the run, for trackio its own place

    @property
    def group(self) -> str | None:
        """The journey or experiment that the run belongs to."""
        return self.name.split("/")[0] if "/" in self.name else None


class Begin(NamedTuple):
    """Where a tracker goes on."""

    step: int  # highest step it holds; 0 holds nothing
    id: str  # these two stay for one log, however often the follower is started again
    name: str
    config: dict[str, Any]  # the recipe, flat


class Texts(NamedTuple):
    """What the model answered at one step."""

    step: int
    samples: list[dict[str, Any]]  # prompt, text


class Tracker(Protocol):
    """One run in one tracker. `place` is the folder where a follower remembers how far it came."""

    place: Path
    held: int | None  # highest step by the tracker's own store, where that can be asked
    look: str  # how to see it

    def purge(self, step: int) -> None: ...  # take back all points from this step on

    def send(self, step: int, figures: dict[str, float], texts: Iterable[Texts]) -> None: ...

    def flush(self) -> None: ...  # return when all that was sent is stored, or raise

    def close(self) -> None: ...


def require_package(to: str) -> None:
    """Raise ValueError, naming the extra to install, where the tracker's package is missing. Imports nothing."""
    try:
        found = importlib.util.find_spec(to)
    except (ImportError, ValueError):  # a broken installation: importing it would fail too
        found = None
    if found is None or found.origin is None:  # a folder of that name, such as ./wandb with runs in it, is no package
        raise ValueError(f'{to} is not installed: pip install "fledge[trackers]"')


class TensorBoard:
    """Event files by TensorBoard's own writer of records; every start of the follower writes a file of its own.

    The files are numbered instead of named by the second, so that they are read in the order they were written.
    """

    rewinds = True

    @staticmethod
    def home(target: Target) -> Path:
        return target.run / "tensorboard" if target.folder is None else target.folder / target.name

    @staticmethod
    def unused_name(target: Target, id: str) -> str:
        return target.name

    def __init__(self, target: Target, begin: Begin):
        """Opens the next event file; points above begin.step that a killed follower left are taken back."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._session, self._text = Event, SessionLog, text_pb
        self.place, self.held = self.home(target), None
        top = target.run.parents[target.name.count("/")] if target.folder is None else target.folder
        self.look = f"tensorboard --logdir {top}"
        numbers = [int(p.name.split(".")[3]) for p in self.place.glob("events.out.tfevents.*.fledge")]
        number = max(numbers, default=0) + 1
        self._records = RecordWriter(open(self.place / f"events.out.tfevents.{number:010d}.fledge", "xb"))
        self._write(file_version="brain.Event:2")
        if number > 1:
            self.purge(begin.step + 1 if begin.step else 0)
        if not begin.step:
            plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in begin.config.items()}
            table = "\n".join(["|setting|value|", "|-|-|", *(f"|{k}|{_cell(v)}|" for k, v in plain.items())])
            self._write(step=0, summary=hparams_pb(plain))
            self._write(step=0, summary=self._text("recipe", table))

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def purge(self, step: int) -> None:
        """SummaryWriter's purge_step: readers drop every event of this step and later."""
        self._write(step=step, session_log=self._session(status=self._session.START))

    def send(self, step: int, figures: dict[str, float], texts: Iterable[Texts]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if figures:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
            self._write(step=step, summary=Summary(value=values))
        for at, samples in texts:
            for number, sample in enumerate(samples, 1):
                shown = f"**{_cell(sample['prompt'])}**\n\n{_cell(sample['text'])}"
                self._write(step=at, summary=self._text(f"samples/{number}", shown))

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()


def _cell(value: Any) -> str:
    """Text that Markdown shows as it stands."""
    return str(value).replace("|", "\\|").replace("\n", "  \n")


class Trackio:
    """A run in trackio's own store, or in the Space or server that its variables name."""

    rewinds = False

    @staticmethod
    def home(target: Target) -> Path:
        from trackio.utils import TRACKIO_DIR

        return Path(TRACKIO_DIR) / "fledge" / _key(target, Trackio.project(target))

    @staticmethod
    def project(target: Target) -> str:
        return target.project or os.environ.get("TRACKIO_PROJECT") or "fledge"

    def __init__(self, target: Target, begin: Begin):
        import trackio

        self.place, self._project = self.home(target), self.project(target)
        self.look = f"trackio show --project {self._project}"
        # init() ends the run that its context holds: each run has a context of its own, so that several stay open
        self._run = contextvars.copy_context().run(
            trackio.init, project=self._project, name=begin.name, group=target.group, config=begin.config, resume="allow",
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        self._table, self._store = trackio.Table, trackio.SQLiteStorage
        self._local = self._is_local()
        self._sent: int | None = None
        self.held = self._stored() if self._local else None

    @staticmethod
    def _is_local() -> bool:
        return not any(os.environ.get(v) for v in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))

    @staticmethod
    def unused_name(target: Target, id: str) -> str:
        """A name that no run of the project has: trackio knows runs by their names and would go on with another's."""
        import trackio

        project = Trackio.project(target)
        if Trackio._is_local() and target.name not in trackio.SQLiteStorage.get_runs(project):
            return target.name
        return f"{target.name} ({id[:4]})"

    def _stored(self) -> int | None:
        return self._store.get_max_step_for_run(self._project, self._run.name, run_id=self._run.id)

    def purge(self, step: int) -> None:
        """Points stay: those of a step that is done again are not sent again."""

    def send(self, step: int, figures: dict[str, float], texts: Iterable[Texts]) -> None:
        rows = [{"step": at, "prompt": s["prompt"], "text": s["text"]} for at, samples in texts for s in samples]
        held = {"samples": self._table(columns=list(rows[0]), data=[list(r.values()) for r in rows])} if rows else {}
        self._run.log(figures | held, step=step)
        self._sent = step

    def flush(self) -> None:
        """Wait for the thread that stores what was logged: it only warns when it cannot."""
        until = time.monotonic() + _STORED_WITHIN_SECONDS
        while self._local and self._sent is not None and (self._stored() or 0) < self._sent:
            if time.monotonic() > until:
                raise OSError(f"trackio stored nothing within {_STORED_WITHIN_SECONDS:.0f} s; is its disk full?")
            time.sleep(0.05)

    def close(self) -> None:
        self._run.finish()


class Wandb:
    """A run in Weights & Biases; WANDB_MODE, WANDB_PROJECT, WANDB_DIR and its login are respected."""

    rewinds = False

    @staticmethod
    def _folder(target: Target) -> Path:
        return target.folder or Path(os.environ.get("WANDB_DIR") or target.run)

    @staticmethod
    def home(target: Target) -> Path:
        return Wandb._folder(target) / "wandb" / f"fledge-{_key(target, Wandb.project(target))}"

    @staticmethod
    def project(target: Target) -> str:
        return target.project or os.environ.get("WANDB_PROJECT") or "fledge"

    @staticmethod
    def unused_name(target: Target, id: str) -> str:
        return target.name  # wandb knows runs by their id

    def __init__(self, target: Target, begin: Begin):
        import wandb

        self.place, self.held, self._next = self.home(target), None, begin.step + 1
        self._table = wandb.Table
        self._run = wandb.init(
            project=self.project(target), name=begin.name, group=target.group, id=begin.id, config=begin.config,
            dir=str(self._folder(target)), resume="allow", reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, save_code=False),
        )  # fmt: skip
        offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun")
        files = self._folder(target) / "wandb" / "offline-run-*"
        self.look = f"wandb sync {files}" if offline else str(self._run.url)

    def purge(self, step: int) -> None:
        """Points stay: those of a step that is done again are not sent again."""

    def send(self, step: int, figures: dict[str, float], texts: Iterable[Texts]) -> None:
        rows = [[at, s["prompt"], s["text"]] for at, samples in texts for s in samples]
        held = {"samples": self._table(columns=["step", "prompt", "text"], data=rows)} if rows else {}
        step = max(step, self._next)  # wandb takes no step twice
        self._run.log(figures | held, step=step, commit=True)
        self._next = step + 1

    def flush(self) -> None:
        """wandb's own process stores what it is given, in order; it outlives ours."""

    def close(self) -> None:
        self._run.finish()


def _key(target: Target, project: str) -> str:
    """Which run of which project, as a name of a folder."""
    from fledge.core.durable import sha256

    return sha256(f"{project}\n{target.run}".encode())[:16]


KINDS = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}
