"""The guide notebook as a page: its cells and the outputs stored in it; nothing is executed, nothing is fetched."""

import html
import json
import re
from pathlib import Path

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # colours of a terminal


def as_markdown(path: Path) -> str:
    """A notebook (nbformat 4) as Markdown: code with its text, pictures and tables below it."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
        elif cell["cell_type"] == "code" and text.strip():
            parts.append(f"```python\n{text.rstrip()}\n```")
            parts += [shown for output in cell.get("outputs", []) if (shown := _output(output))]
    return "\n\n".join(parts) + "\n"


def _output(output: dict) -> str:
    if output["output_type"] == "stream":
        return _text("".join(output["text"]))
    if output["output_type"] == "error":
        return _text("\n".join(output["traceback"]))
    data = {
        kind: "".join(value) if isinstance(value, list) else value for kind, value in output.get("data", {}).items()
    }
    if "image/svg+xml" in data:
        return f'<div class="output">{data["image/svg+xml"][data["image/svg+xml"].index("<svg") :]}</div>'
    if "image/png" in data:
        return f'<p class="output"><img alt="" src="data:image/png;base64,{data["image/png"].strip()}"></p>'
    if "text/html" in data:
        return f'<div class="output">{data["text/html"]}</div>'
    return _text(data["text/plain"]) if "text/plain" in data else ""


def _text(text: str) -> str:
    shown = html.escape(_ESCAPES.sub("", text).rstrip(), quote=False)
    return f'<pre class="output"><code>{shown}</code></pre>' if shown else ""
