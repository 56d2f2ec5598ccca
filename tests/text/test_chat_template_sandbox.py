"""Templates are programs of strangers: what they try ends in the child, soon, and with its reason."""

import time

import pytest
from foreign_models import NAMES, qwen2

from fledge.text import sandbox
from fledge.text.chat_template import derive
from fledge.text.sandbox import Asked, Refusal, render_all

CHAT = [Asked([{"role": "user", "content": "hi"}], True)]


def one(template: str) -> str | Refusal:
    return render_all(template, CHAT, {"bos_token": "<s>"})[0]


def test_templates_see_what_transformers_gives_them():
    assert (
        one("{{ bos_token }}{{ messages[0].content }}{{ add_generation_prompt }}{{ tools }}{{ nothing }}")
        == "<s>hiTrueNone"
    )
    assert one("{{ {'b': '<é>', 'a': 1} | tojson }}") == '{"b": "<é>", "a": 1}'
    assert one("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "1"
    assert one("{% generation %}{% set x = 'a' %}{{ x }}{% endgeneration %}") == "a"
    assert one("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"
    assert one("a\n  {% if true %}\nb\n  {% endif %}\n") == "a\nb\n"  # blocks take their lines with them
    assert one("{{ '🦊'.encode is defined }}{{ '\\u4e2d' }}🦊") == "True中🦊"


def test_each_chat_fails_for_itself():
    asked = [Asked([{"role": role, "content": "x"}]) for role in ("user", "system", "user")]
    found = render_all(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}ok", asked, {}
    )
    assert found == ["ok", Refusal("TemplateError: no system"), "ok"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}{{ strftime_now.__globals__['os'] }}",
        "{% include '/etc/passwd' %}",
        "{{ ('{0.__class__.__mro__}'|attr('format'))(1) }}",
        "{{ range(1000000000)|list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_ways_out_are_closed(template):
    found = one(template)
    assert isinstance(found, Refusal) or found == ""
    if isinstance(found, Refusal):
        assert any(
            k in found.why for k in ("SecurityError", "TypeError", "OverflowError", "RecursionError", "Undefined")
        )


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ x|nosuchfilter }}", "cannot be read: TemplateAssertionError: No filter named 'nosuchfilter'"),
        ("{% for m in messages %}", "cannot be read: TemplateSyntaxError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be read: RecursionError"),
        ("{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
         "more than 512 MiB of memory"),
        ("{{ 'a' * 10**10 }}", "more than 512 MiB of memory"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "writes more than 2,000,000 characters"),
        ("x" * 200_001, "has 200,001 characters"),
    ],
)  # fmt: skip
def test_too_much_is_stopped(template, why):
    with pytest.raises(ValueError, match=why):
        one(template)


def test_nested_loops_are_stopped_by_the_clock_of_the_cpu():
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"used more than {sandbox.CPU_SECONDS} s of computing"):
        one(loops)
    assert time.monotonic() - started < sandbox.WALL_SECONDS


def test_half_a_character_is_no_text():
    found = one("{{ '\\ud800' }}")
    assert isinstance(found, Refusal) and "UnicodeEncodeError" in found.why


def test_an_old_jinja2_with_known_ways_out_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.1.5")
    with pytest.raises(ValueError, match=r"jinja2 3\.1\.5 lets templates out of its sandbox"):
        one("ok")


def test_a_child_that_sleeps_is_stopped_by_the_clock_on_the_wall(monkeypatch):
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 0.01)
    with pytest.raises(ValueError, match=r"ran for more than 0.01 s"):
        one("ok")


def test_the_child_has_no_files_processes_or_surroundings(tmp_path):
    """Whatever ran there could open nothing: the limits are set before the template is read."""
    probe = tmp_path / "probe.py"
    source = (
        "import sys, os; sys.path.insert(0, {path!r}); import sandbox, socket\n"
        "sandbox._limit()\n"
        "for act in (lambda: open('/etc/hostname'), lambda: socket.socket(), lambda: os.pipe()):\n"
        "    try: act()\n"
        "    except OSError as error: print(error.errno)\n"
    )
    probe.write_text(source.format(path=str(sandbox.Path(sandbox.__file__).parent)))
    done = sandbox.subprocess.run(
        [sandbox.sys.executable, "-I", str(probe)], capture_output=True, check=True, text=True
    )
    assert done.stdout.split() == ["24"] * 3  # EMFILE


def test_an_import_reports_what_was_stopped():
    with pytest.raises(
        ValueError, match=r"cannot be used: the chat template cannot be read: .*nosuch.*--template chatml"
    ):
        derive(qwen2(), NAMES["qwen2"], "{{ messages|nosuch }}")
