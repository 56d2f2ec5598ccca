"""Results of experiments that are commands (`fledge methods`, `fledge filters`, ...) as results of the labs.

The command and the lab measure the same in each seed, so what the one found the other can judge and draw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fledge import __version__
from fledge.core.config import build
from fledge.core.log import say
from fledge.labs.catalogue import entry
from fledge.labs.running import judged, write_result

COMMANDS = {"P3": "filters", "P4": "rephrasing", "R3": "methods", "R5": "overoptimise", "R7": "mixtures"}
"""Lab -> the command whose seeds it shares."""


def adopt(name: str, path: Path) -> dict[str, Any]:
    """What result.json of a lab holds, from result.json of its command.

    Time, machine and code version are not known and stay empty. Raises ValueError for a lab that no command shares, and
    for a file that is no such result.
    """
    name = name.upper()
    lab = entry(name).load()
    if name not in COMMANDS:
        raise ValueError(f"{name} has no command of its own: those that have are {', '.join(COMMANDS)}")
    told = msgspec.json.decode(path.read_bytes())
    if not {"options", "seeds", "verdict"} <= set(told):
        raise ValueError(f"{path} is no result.json of `fledge {COMMANDS[name]}`")
    fields = {f.name for f in msgspec.structs.fields(lab.Setup)}
    setup = build(lab.Setup, {key: value for key, value in told["options"].items() if key in fields})
    return judged(name, "pocket", setup, told["seeds"]) | {
        "minutes": [], "core_minutes": [], "minutes_predicted": None, "command": _command(COMMANDS[name], told["options"]), "code": "",
        "fledge": __version__, "machine": None,
    }  # fmt: skip


def _command(verb: str, options: dict[str, Any]) -> str:
    words = [f"fledge {verb} --out {options['out']} --seeds {options['seeds']}"]
    if parent := options.get("parent"):
        words.append(f"--from {parent}")
    return " ".join(words)


def adopt_all(results: Path, names: list[str]) -> list[Path]:
    """RESULTS/NAME.json of each lab (all that share a command where `names` is empty) from RESULTS/../COMMAND.json.

    What a lab measured itself is kept. Raises ValueError as adopt does, and where there is nothing to take.
    """
    written = []
    for name in [n.upper() for n in names] or COMMANDS:
        source, path = results.parent / f"{COMMANDS.get(name)}.json", results / f"{name}.json"
        if names and name in COMMANDS and not source.exists():
            raise ValueError(f"{source} is missing: run `fledge {COMMANDS[name]}` and put its result.json there")
        if path.exists() and msgspec.json.decode(path.read_bytes())["minutes"]:
            say(f"{path} was measured by the lab itself: kept")
        elif names or source.exists():
            write_result(path, adopt(name, source))
            written.append(path)
    return written
