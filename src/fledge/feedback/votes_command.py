"""`fledge votes`: what the votes say in figures; checking, copying and moving the store; and `fledge invite`."""

from __future__ import annotations

import secrets
from pathlib import Path

from fledge.core.config import Settings
from fledge.core.log import say, visible
from fledge.feedback.agreement import Statistics, statistics
from fledge.feedback.store import Store, store_url

ACTIONS = ("check", "backup", "migrate")


class VotesOptions(Settings, frozen=True, kw_only=True):
    """Votes in figures: `fledge votes RUN`; or look after them: `fledge votes check|backup|migrate RUN`."""

    action: str | None = None
    "check, backup or migrate, followed by the run; the run alone shows its votes."
    run: str | None = None
    "The run whose votes these are."
    store: str | None = None
    "Where the votes are: postgresql://USER@HOST/NAME or a path; none is RUN/votes.sqlite3."
    out: str | None = None
    "backup: the file to write."
    to: str | None = None
    "migrate: the store to fill, postgresql://USER@HOST/NAME or a path; it must be new or empty."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        action, run = self.meant()
        if run is None:
            return ["run: required; `fledge votes RUN`, or `fledge votes check RUN`"]
        if action not in (None, *ACTIONS):
            return [f"action = {action!r}: must be {', '.join(ACTIONS)}, or only the run"]
        needs = {"backup": "out", "migrate": "to"}.get(action)
        found = [] if needs is None or getattr(self, needs) else [f"{needs}: required; say where to with --{needs}"]
        return found + [
            f"{n}: goes with `fledge votes {a} RUN`"
            for n, a in (("out", "backup"), ("to", "migrate"))
            if n != needs and getattr(self, n)
        ]

    def meant(self) -> tuple[str | None, str | None]:
        """(action, run): a single word is the run."""
        return (self.action, self.run) if self.run is not None else (None, self.action)


def run(options: VotesOptions) -> Statistics | None:
    """Do what was asked; the run alone gives its figures. Raises ValueError where the votes cannot be read, or are damaged."""
    action, folder = options.meant()
    return {None: _show, "check": _check, "backup": _backup, "migrate": _migrate}[action](
        store_url(folder, options.store), options
    )


def _check(url: str, options: VotesOptions) -> None:
    with Store.open(url, read_only=True) as store:
        report, name = store.verify(), store.database.name
    if report.problems:
        raise ValueError(f"{name} is damaged:\n  " + "\n  ".join(report.problems) + "\nrestore it from a backup")
    say(f"{name}: {report.rows:,} votes, every digest, link and reference holds")


def _backup(url: str, options: VotesOptions) -> None:
    with Store.open(url, read_only=True) as store:
        store.backup(options.out)
    with Store.open(store_url("", options.out), read_only=True) as copy:
        report = copy.verify()
    if report.problems:
        raise ValueError(f"{options.out}: the copy is damaged: {report.problems[0]}")
    say(f"{options.out}: {report.rows:,} votes, checked")


def _migrate(url: str, options: VotesOptions) -> None:
    from fledge.feedback.migrating import migrate

    if not url.startswith("sqlite:") or Path(url.removeprefix("sqlite:///")).exists():
        with Store.open(url) as source, Store.open(store_url("", options.to)) as target:  # nobody votes meanwhile
            moved, name = migrate(source, target), target.database.name
    else:
        raise ValueError(f"{url.removeprefix('sqlite:///')}: no votes yet; nothing to move")
    for table, count in moved.counts.items():
        say(f"  {table:<12} {count:>9,} rows  sha256 {moved.digests[table][:12]}")
    say(
        f"{name}: the same rows, and the chain of {moved.last_seq:,} votes ends in {moved.head_sha256[:12]} on both sides."
    )
    say(f"From now on add --store {name!r}; the old store was left as it is and no longer grows with the new one.")


def _show(url: str, options: VotesOptions) -> Statistics:
    from rich.console import Console
    from rich.table import Table

    with Store.open(url, read_only=True) as store:
        found = statistics(store)
        models = {c.id: f"{c.stage} {c.path}" for c in store.checkpoints()}
    out = Console(highlight=False)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.kinds.items())
    out.print(f"{found.votes:,} votes{f': {kinds}' if kinds else ' yet'}", markup=False)
    if not found.votes:
        return found
    people = Table("person", "kind", "votes", "left taken", "same", "gold", "median look", "note", box=None)
    for rater in found.raters:
        bias = rater.bias and f"{rater.bias.left_share:.0%} ({rater.bias.left_low:.0%} to {rater.bias.left_high:.0%})"
        gold = f"{rater.gold_right}/{rater.gold_asked}" if rater.gold_asked else ""
        look = "" if rater.median_dwell_ms is None else f"{rater.median_dwell_ms / 1000:.1f} s"
        same = "" if rater.ties is None else f"{rater.ties:.0%}"
        note = f"not counted: {', '.join(rater.flags)}" if rater.flags else ""
        people.add_row(visible(rater.name), rater.kind, f"{rater.votes:,}", bias or "", same, gold, look, visible(note))
    out.print(people)
    table = Table("model", "votes", box=None)
    for model, counts in found.models.items():
        name = models.get(model, model) if model else "not written by a model here"
        table.add_row(visible(name), ", ".join(f"{count:,} {kind}" for kind, count in counts.items()))
    out.print(table)
    for shared in found.agreement:
        kappa = "" if shared.kappa is None else f", {shared.method}'s kappa {shared.kappa:.2f}"
        who = f"{shared.raters} people on {shared.subjects:,} {shared.kind} subjects"
        out.print(f"agreement of {who}: {shared.share:.0%} alike{kappa}", markup=False)
    if found.bias is not None:
        bias = found.bias
        out.print(
            f"position: left was taken in {bias.left_share:.0%} of {bias.left + bias.right:,} decided pairs "
            f"(95% interval {bias.left_low:.0%} to {bias.left_high:.0%})",
            markup=False,
        )
    return found


class InviteOptions(Settings, frozen=True, kw_only=True):
    """Invite somebody to talk and vote: prints their token once. `--revoke` ends it; their votes stay."""

    run: str
    "The run whose page they may use."
    name: str
    "What to call them; statistics show it."
    revoke: bool = False
    "Refuse this person's token and votes from now on."
    store: str | None = None
    "Where the votes are: postgresql://USER@HOST/NAME or a path; none is RUN/votes.sqlite3."


def invite(options: InviteOptions) -> str | None:
    """Make a rater and print the token, which is stored nowhere; or revoke one. Raises ValueError by name."""
    if options.store is None and not Path(options.run).is_dir():
        raise ValueError(f"{options.run}: no such run; `fledge runs` lists them")
    with Store.open(store_url(options.run, options.store)) as store, store.transaction():
        known = [
            p
            for p in store.people()
            if (p.name, p.role, p.disabled_ms) == (options.name, "rater", None) and p.kind == "person"
        ]
        if options.revoke:
            if not known:
                raise ValueError(f"nobody called {options.name!r} is invited: `fledge votes {options.run}` shows names")
            for person in known:
                store.disable_person(person.id)
            say(f"{options.name}: the token no longer works; votes given so far stay")
            return None
        if known:
            raise ValueError(f"{options.name!r} is invited already: choose another name, or --revoke and invite again")
        token = secrets.token_urlsafe(32)
        store.put_person("person", options.name, "rater", secret=token)
    say(f"{options.name} opens the page with this token; it is shown only now. Add it to the address: /?token=TOKEN")
    print(token)
    return token
