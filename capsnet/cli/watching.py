"""A parent for each of the processes that train together.

JAX's runtime ends a process at once where another one is lost, and nothing in
it could say so in one line. Nothing here imports Keras.
"""

import collections
import os
import re
import signal
import sys
import threading

from capsnet.cli.hosts import meet
from capsnet.messages import HUSH, UserError, fail

# Seconds between a polite request to end and a rude one.
PATIENCE = 10
# Lines that a silent process says after all when it fails.
LINES = 40
RESUME = (
    "all processes end, and the finished epochs are saved: start all of them "
    "again with --resume"
)
# What JAX's runtime says before it ends a process, and what it means.
MEANINGS = (
    (
        r"stopped sending heartbeats\):((?:\n\d+)+)",
        "process {lost} ended, or cannot be reached; " + RESUME,
    ),
    (
        "newer incarnation",
        "another process has the same number; give each its own --process",
    ),
    (
        "Unexpected task registered",
        "process 0 counts fewer processes; start all with the same number",
    ),
    (
        "RegisterTask",
        "{count} processes did not come together within {wait} s; start all "
        "of them, and see whether a firewall closes the port",
    ),
    (
        "Failed to send RPC|PollForError",
        "process 0 ended, or cannot be reached; " + RESUME,
    ),
)


def watch(group):
    """Goes on in a child; ends this process with it, in one line.

    Args:
        group: A `Group`, or None: then nothing happens.
    """
    if group is None:
        return
    HUSH.end()  # It begins anew in the child, whose errors come here.
    sys.argv[0] += f" ({group})"  # Begins all its errors.
    try:
        meet(group)
    except UserError as error:
        sys.exit(fail(error, 2))
    parent, alive = os.pipe()
    lines, errors = os.pipe()
    child = os.fork()
    if child:
        os.close(parent)
        os.close(errors)
        sys.exit(follow(group, child, lines))
    os.close(alive)
    os.close(lines)
    os.setpgrp()  # Ctrl-C is for the parent, which passes it on.
    os.dup2(errors, 2)
    HUSH.begin()
    if group.number:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent):
    """Ends this process when its parent is gone, even by SIGKILL."""
    os.read(parent, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def follow(group, child, lines):
    """Waits for the child; returns the exit status.

    What it says of errors is passed on, but of a silent process (all but 0)
    only if it fails. Signals are passed on; a child that is in the middle of
    an exchange hears none but SIGKILL.
    """

    asked = []

    def end(number, _):
        asked.append(number)
        os.kill(child, number)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
        signal.alarm(PATIENCE)

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    said = collections.deque(maxlen=LINES)
    with open(lines, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            said.append(line)
            if group.number == 0:
                print(line, end="", file=sys.stderr, flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status and group.number:
        sys.stderr.writelines(said)
    if status >= 0:
        return status
    if asked:
        name = signal.Signals(asked[0]).name
        return fail(f"ended by {name}", 128 + asked[0])
    return fail(reason(group, status, said), 1)


def reason(group, status, said):
    """Why a process was ended by a signal, in one line.

    Args:
        group: A `Group`.
        status: The signal's number, negative.
        said: The last lines that the process wrote to standard error.
    """
    text = "".join(said)
    for pattern, meaning in MEANINGS if -status == signal.SIGABRT else ():
        if found := re.search(pattern, text):
            lost = " and ".join(found[1].split()) if found.groups() else ""
            meaning = meaning.format(
                lost=lost, count=group.count, wait=group.wait
            )
            return meaning
    memory = ", perhaps for want of memory" * (-status == signal.SIGKILL)
    return f"it was ended by {signal.Signals(-status).name}{memory}"
