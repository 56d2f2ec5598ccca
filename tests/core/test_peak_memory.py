"""Memory is this process's own: a program started by a large one does not report its starter's."""

import subprocess
import sys

STARTER = """
import subprocess, sys
held = b"1" * (400 << 20)  # written, so resident
print(subprocess.run([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, check=True).stdout.decode())
"""


def peak(code: str, starter: bool) -> int:
    program = f"from fledge.core.runtime import peak_memory\n{code}\nprint(peak_memory())"
    words = ["-c", STARTER, program] if starter else ["-c", program]
    return int(subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, check=True, timeout=60).stdout)


def test_what_the_starter_held_is_not_counted():
    assert peak("", starter=True) < 200 << 20


def test_own_and_childrens_memory_is_counted():
    assert peak("held = b'1' * (300 << 20)", starter=False) > 300 << 20
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'b = bytes(1) * (300 << 20)'], check=True)"
    assert peak(child.replace("bytes(1)", "b\"1\""), starter=False) > 300 << 20
