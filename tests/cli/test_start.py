"""Tests of how a script begins: before Keras is there, and while it comes."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

from running import heed_ctrl_c

ROOT = Path(__file__).parents[2]
BEFORE_THE_CHECK = """
capsulenet.py capsulenet-multi-gpu.py capsnet/__init__.py capsnet/files.py
capsnet/messages.py capsnet/cli/__init__.py capsnet/cli/checks.py
capsnet/cli/hosts.py capsnet/cli/watching.py
capsnet/cli/options.py capsnet/cli/parser.py capsnet/cli/paths.py
capsnet/cli/resuming.py
capsnet/training/recipes.py
"""


def run(code):
    """Runs Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )


def test_older_python_is_told_before_all_else():
    code = (
        "import runpy, sys; sys.version_info, sys.version = (3, 10), '3.10.9 x'"
        "; runpy.run_path('capsulenet.py', run_name='__main__')"
    )
    done = run(code)
    expected = "capsulenet.py: expected Python 3.11 or newer, got 3.10.9\n"
    assert (done.returncode, done.stderr) == (2, expected)
    # It gets that far: an older one can read what is imported before.
    for path in BEFORE_THE_CHECK.split():
        ast.parse((ROOT / path).read_text(), feature_version=(3, 8))


def test_libraries_print_nothing_while_they_are_imported():
    code = (
        "import os, sys; from capsnet.cli import checks; checks.start(''); "
        "os.write(2, b'noise '); print('said', file=sys.stderr); "
        "checks.started(); os.write(2, b'heard'); 1 / 0"
    )
    done = run(code)
    assert done.stderr.startswith("said\nheardTraceback")


def test_garbage_is_collected_again_once_the_libraries_are_there():
    code = (
        "import gc; from capsnet.cli import checks; checks.start(''); "
        "before = gc.isenabled(); checks.started(); "
        "print(before, gc.isenabled(), gc.get_freeze_count() > 0)"
    )
    done = run(code)
    assert done.stdout == "False True True\n", done.stderr


def test_interrupted_import_is_one_line_and_status_130(tmp_path):
    fake = tmp_path / "keras.py"
    fake.write_text("import time; print('here', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, ROOT / "capsulenet.py", "--dataset", "digits"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    try:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, message) == (
        130,
        "capsulenet.py: interrupted\n",
    )
