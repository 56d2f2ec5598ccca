"""Tool calls, tool results and reasoning as the text of ordinary turns.

A model here knows three roles and no token for tools, so what other projects keep in fields is written out in the form
that Qwen2.5 and Qwen3 were trained on, Hermes' (their chat_template.jinja):

    tools             at the end of the system message: a list of signatures between <tools> and </tools>
    tool_calls        <tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call> at the end of the assistant's message
    a tool's result   <tool_response>\\n...\\n</tool_response> as a user message; results in a row share one
    reasoning_content <think>\\n...\\n</think>\\n\\n at the start of the assistant's message
    python, python_output (nanochat's parts)   a call of the tool `python` and its result

So the assistant learns to call and to reason, and never to make up a result. Which rows hold such things, and whether
they are rejected or written out, is the policy `tools`: "reject" (the default) or "text".
"""

from __future__ import annotations

import json
from typing import Any, Literal

from fledge.text.files import Row, RowRejected, brief
from fledge.text.messages import AS_TEXT, ROLES, TOOL_ROLES, typed

Policy = Literal["reject", "text"]

CALL_ROLES = frozenset({"function_call", "tool_call"})
TALKS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "conversation_a", "conversation_b")

_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_FOOT = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
_Plain = dict[str, Any]  # {"role", "content"}


def without_tools(row: Row, policy: Policy) -> Row:
    """`row` with its tools written out as text, or RowRejected, as `policy` says."""
    if policy == "text":
        return _written_out(row)
    if _some_tools(row.get("tools")):
        raise RowRejected(f"row with tools, which is not supported as it is: {AS_TEXT}", brief(row["tools"]))
    return row


def _written_out(row: Row) -> Row:
    talks = {name: row[name] for name in TALKS if isinstance(row.get(name), list | dict)}
    found: list[Any] = [row["tools"]] if _some_tools(row.get("tools")) else []
    changed: Row = {key: value for key, value in row.items() if key != "tools"}
    for name, value in talks.items():
        messages = [typed(m, dict, f"a message of {name}") for m in (value if isinstance(value, list) else [value])]
        found += [m["tools"] for m in messages if _some_tools(m.get("tools"))]
        changed[name] = _turns(messages)
    if not found:
        return changed
    if any(one != found[0] for one in found):
        raise RowRejected("row with different tools in different places", brief(found))
    system = _signatures(_read_tools(found[0]))
    told = [row["system"]] if isinstance(row.get("system"), str) else []
    for name in talks:  # the system message moves to the row's own field, from where it is put before every talk
        if changed[name] and ROLES.get(str(changed[name][0]["role"])) == "system":
            told.append(typed(changed[name].pop(0)["content"] or "", str, "content"))
    told = [text for text in dict.fromkeys(told) if text.strip()]
    if len(told) > 1:
        raise RowRejected("row with several system messages", brief(told))
    return {**changed, "system": "\n\n".join([*told, system])}


def _some_tools(value: Any) -> bool:
    return bool(value) and not (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def _read_tools(value: Any) -> list[Any]:
    """A list of signatures, which data sets also write as a string of JSON."""
    tools = _from_json(value, "tools") if isinstance(value, str) else value
    tools = [tools] if isinstance(tools, dict) else tools
    return [typed(tool, dict, "a tool") for tool in typed(tools, list, "tools")]


def _signatures(tools: list[Any]) -> str:
    shown = (tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)
    return _HEAD + "".join(f"\n{_dumped(tool)}" for tool in shown) + _FOOT


def _turns(messages: list[Row]) -> list[_Plain]:
    """The messages as {role, content}; calls join the assistant's message before them, results the user's."""
    turns: list[_Plain] = []
    answered = False  # the last turn is a tool's result
    for message in messages:
        keys = ("from", "value") if message.get("role") is None else ("role", "content")
        role, content = message.get(keys[0]), message.get(keys[1])
        if not isinstance(role, str):
            raise RowRejected("message without a role", brief(message))
        if role in CALL_ROLES:
            _join(turns, "assistant", "\n".join(map(_call, _calls(content))))
            answered = False
        elif role in TOOL_ROLES:
            result = f"<tool_response>\n{_text(content)}\n</tool_response>"
            if answered:
                turns[-1]["content"] += f"\n{result}"
            else:
                turns.append({"role": "user", "content": result})
            answered = True
        elif ROLES.get(role) == "assistant":
            answered = _assistant(turns, message, content)
        else:
            turns.append({"role": role, "content": content})
            answered = False
    return turns


def _join(turns: list[_Plain], role: str, text: str) -> None:
    """Add `text` to the last turn where that is by `role`, else as a turn of its own."""
    if turns and turns[-1]["role"] == role and isinstance(turns[-1]["content"], str):
        turns[-1]["content"] += f"\n{text}" if turns[-1]["content"] else text
    else:
        turns.append({"role": role, "content": text})


def _assistant(turns: list[_Plain], message: Row, content: Any) -> bool:
    """Append an assistant's message; nanochat's results in its middle cut it. Returns whether it ends with a result."""
    reasoning = message.get("reasoning_content")
    before = f"<think>\n{_text(reasoning).strip(chr(10))}\n</think>\n\n" if reasoning else ""
    called = _calls(message.get("tool_calls") or []) + _calls(message.get("function_call") or [])
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    if not any(isinstance(p, dict) and p.get("type") in ("python", "python_output") for p in parts):
        if not before and not called:
            turns.append({"role": "assistant", "content": content})
            return False
        calls = "\n".join(map(_call, called))
        said = _text(content)
        turns.append({"role": "assistant", "content": before + said + ("\n" if said and calls else "") + calls})
        return False
    text, ended = before, False
    for part in parts:
        kind, said = typed(part, dict, "a part of content").get("type"), _text(part.get("text"))
        ended = kind == "python_output"
        if ended:
            turns.append({"role": "assistant", "content": text})
            turns.append({"role": "user", "content": f"<tool_response>\n{said}\n</tool_response>"})
            text = ""
        elif kind == "python":
            text += ("\n" if text else "") + _call({"name": "python", "arguments": {"code": said}})
        elif kind == "text":
            text += said
        else:
            raise RowRejected("content part that is not text", f"type is {brief(kind)}")
    if not ended:
        turns.append({"role": "assistant", "content": text + "".join(f"\n{_call(call)}" for call in called)})
    return ended


def _calls(value: Any) -> list[Any]:
    """The calls of a message: OpenAI's list, its older single one, or sharegpt's string of JSON."""
    value = _from_json(value, "a tool call") if isinstance(value, str) else value
    return value if isinstance(value, list) else [value]


def _call(value: Any) -> str:
    call = typed(value, dict, "a tool call")
    call = typed(call["function"], dict, "function") if call.get("function") is not None else call
    arguments = call.get("arguments", call.get("parameters"))
    arguments = _from_json(arguments, "arguments") if isinstance(arguments, str) else arguments
    named = {
        "name": typed(call.get("name"), str, "name"),
        "arguments": {} if arguments is None else typed(arguments, dict, "arguments"),
    }
    return f"<tool_call>\n{_dumped(named)}\n</tool_call>"


def _text(content: Any) -> str:
    """Text, or text parts; nothing is the empty text."""
    if content is None:
        return ""
    if isinstance(content, dict):
        return _dumped(content)
    if isinstance(content, list):
        kinds = [typed(part, dict, "a part of content").get("type") for part in content]
        if any(kind != "text" for kind in kinds):
            raise RowRejected("content part that is not text", f"type is {brief(kinds)}")
        return "".join(typed(part.get("text"), str, "text") for part in content)
    return typed(content, str, "content")


def _from_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowRejected(f"{name} that is no JSON", brief(text)) from None


def _dumped(value: Any) -> str:
    """As transformers' `tojson` writes it; null fields are left out, for tables give every row the fields of all."""
    return json.dumps(_without_nulls(value), ensure_ascii=False)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(held) for key, held in value.items() if held is not None}
    return [_without_nulls(held) for held in value] if isinstance(value, list) else value
