"""`fledge convert`: files of rows in another shape."""

from __future__ import annotations

from pathlib import Path

from fledge.core.config import Settings
from fledge.core.durable import canonical_json, write_atomically
from fledge.core.log import say
from fledge.text.convert import ANY_KIND, Converted, Take, Target, convert
from fledge.text.readers import Rejects
from fledge.text.tools import Policy
from fledge.text.writing import file_problems


class ConvertOptions(Settings, frozen=True, kw_only=True):
    """Write conversations, pairs, votes, prompts or text in another shape; what it cannot hold is counted, by reason."""

    inputs: list[str]
    "Files and folders to read: JSONL, JSON, Parquet or Arrow, also .gz and .zst, in any accepted shape."
    to: Target
    "messages, sharegpt, alpaca, prompt-completion, dpo, pairs (dpo with ties), kto, prompts or text."
    out: str
    "File to write: .jsonl or .json, also .gz and .zst, .parquet or .arrow."
    take: Take = "all"
    "all, or liked: only chosen and liked answers, as conversations."
    tools: Policy = "reject"
    "Rows with tool calls, tool results or reasoning: reject, or write them out as text."
    rename: list[str] = []
    "Columns under other names, THEIRS=OURS: input=prompt."
    report: str | None = None
    "File for what was left out and rejected, with samples, as JSON."
    encoding: str | None = None
    "Encoding of the files where it is not UTF-8."
    skip_bad: int = 0
    "Broken lines to skip in all before it is an error."

    def problems(self) -> list[str]:
        found = file_problems(Path(self.out))
        if not self.inputs:
            found.append("inputs: none; name at least one file or folder")
        for pair in self.rename:
            if "" in pair.partition("="):
                found.append(f"rename = {pair!r}: must be THEIRS=OURS, such as input=prompt")
        if self.take == "liked" and self.to not in ANY_KIND:
            found.append(f"take = liked makes conversations: to = {self.to} must be one of {', '.join(ANY_KIND)}")
        theirs, ours = ([pair.partition("=")[side] for pair in self.rename] for side in (0, 2))
        if len(set(theirs)) < len(theirs) or len(set(ours)) < len(ours):
            found.append(f"rename = {', '.join(self.rename)}: a name stands there twice")
        return found


def run(options: ConvertOptions) -> Converted:
    """Write the file; prints how many rows there are, what they lost, and the rows left out by reason."""
    rejects = Rejects()
    names = {theirs: ours for theirs, _, ours in (pair.partition("=") for pair in options.rename)}
    done = convert(
        options.inputs, options.to, options.out, take=options.take, tools=options.tools, rename=names,
        encoding=options.encoding, skip_bad=options.skip_bad, rejects=rejects,
    )  # fmt: skip
    say(f"{options.out}: {done.rows:,} rows")
    if done.left_out:
        say("not held: " + ", ".join(f"{count:,} {what}" for what, count in done.left_out.items()))
    if rejects.total:
        say(rejects.summary())
    if options.report:
        write_atomically(Path(options.report), canonical_json(done))
    return done
