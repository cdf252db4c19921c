"""Which processes train together, as flags and launchers say. No Keras."""

import os
import signal
import socket

import pytest

from capsnet.cli import hosts, watching
from capsnet.cli.checks import parse_args
from capsnet.cli.hosts import Group
from capsnet.messages import UserError

BY_HAND = "--hosts localhost:1234 --processes 2 --process 1"
SLURM = {
    **{"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]"},
    **{"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"},
    **{"SLURM_PROCID": "3", "SLURM_LOCALID": "1"},
}
OPEN_MPI = {
    **{"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
    **{"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
}
KERAS = {
    "KERAS_DISTRIBUTION_JOB_ADDRESSES": "one:1,two:1",
    "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
    "KERAS_DISTRIBUTION_PROCESS_ID": "1",
}


@pytest.fixture(autouse=True)
def on_jax(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KERAS_", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KERAS_BACKEND", "jax")


def group(monkeypatch, line, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return parse_args(line.split(), multi_gpu=True).group


@pytest.mark.parametrize(
    "line, variables, expected",
    (
        ("", {}, None),
        (BY_HAND, {}, Group(2, 1, "localhost:1234")),
        ("--hosts a:1 --processes 1 --process 0", {}, None),
        # JAX itself knows where process 0 is.
        ("", SLURM, Group(4, 3, None, 1)),
        ("", OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "x"}, Group(4, 3, None, 1)),
        ("--hosts a:1", OPEN_MPI, Group(4, 3, "a:1", 1)),
        # mpirun within a step of SLURM.
        ("--hosts a:1", OPEN_MPI | SLURM, Group(4, 3, "a:1", 1)),
        (BY_HAND, SLURM, Group(2, 1, "localhost:1234")),
        ("", KERAS, Group(2, 1, "one:1")),
        # One process of a larger job: nobody else comes.
        ("", SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        ("", OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ("", {"KERAS_DISTRIBUTION_NUM_PROCESSES": "1"}, None),
    ),
)
def test_processes_are_those_of_the_flags_or_of_the_launcher(
    monkeypatch, line, variables, expected
):
    assert group(monkeypatch, line, variables) == expected


def test_open_mpi_5_meets_on_one_host_at_a_port_of_its_own(monkeypatch):
    one = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    ports = set()
    for job in ("prterun-a-1@1", "prterun-a-2@1"):
        found = group(monkeypatch, "", one | {"PMIX_NAMESPACE": job})
        host, port = hosts.split(found.address)
        assert host == "127.0.0.1" and 61440 <= port < 65536
        ports.add(port)
    assert len(ports) == 2


@pytest.mark.parametrize(
    "line, variables, expected",
    (
        ("--processes 2", {}, "have no effect without --hosts"),
        ("--process 0", {}, "have no effect without --hosts"),
        ("--hosts a:1", {}, "--hosts needs --processes N and --process I"),
        ("--hosts a:1 --process 0", {}, "--hosts needs --processes N"),
        (f"{BY_HAND[:-1]}2", {}, "from 0 to 1, of --processes 2, got 2"),
        ("", OPEN_MPI, "Open MPI 5 does not tell where process 0 is: add"),
        (
            "",
            {"KERAS_DISTRIBUTION_NUM_PROCESSES": "2"},
            "says that there are 2 processes, and KERAS_DISTRIBUTION_PROCESS_ID"
            " not which this is",
        ),
        (
            "",
            KERAS | {"KERAS_DISTRIBUTION_NUM_PROCESSES": "two"},
            "DISTRIBUTION_NUM_PROCESSES expects a whole number, got 'two'",
        ),
        ("", SLURM | {"SLURM_LOCALID": "x"}, "SLURM_LOCALID expects a whole"),
        (
            "",
            KERAS | {"KERAS_DISTRIBUTION_JOB_ADDRESSES": "one,two:1"},
            "JOB_ADDRESSES expects ADDRESS:PORT of process 0 first, got 'one'",
        ),
        ("--hosts a", {}, "expected ADDRESS:PORT, got 'a'"),
        ("--hosts :1", {}, "expected ADDRESS:PORT, got ':1'"),
        ("--hosts a:65536", {}, "expected ADDRESS:PORT"),
        (f"-t -w m.keras {BY_HAND}", {}, "--hosts has no effect with -t"),
    ),
)
def test_what_does_not_fit_is_one_line(
    monkeypatch, here, error_of, line, variables, expected
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert expected in error_of(*line.split(), multi_gpu=True)


@pytest.mark.parametrize(
    "backend, why",
    (
        ("tensorflow", "MultiWorkerMirroredStrategy does not work with it"),
        ("torch", "keras.distribution comes with Keras 3.16"),
    ),
)
def test_other_backends_name_the_one_that_can(
    monkeypatch, here, error_of, backend, why
):
    monkeypatch.setattr("capsnet.cli.checks.check_package", lambda *_: None)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    message = error_of(*BY_HAND.split(), multi_gpu=True)
    assert "--hosts needs KERAS_BACKEND=jax" in message and why in message
    assert group(monkeypatch, "", {}) is None
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    message = error_of(multi_gpu=True)
    assert "a run of 4 processes needs KERAS_BACKEND=jax" in message
    # A test is for one process on any backend.
    args = parse_args(["-t", "-w", "m.keras"], multi_gpu=True)
    assert args.group == Group(4, 3)


@pytest.mark.parametrize(
    "local, visible, gpus, expected",
    (
        (None, None, None, None),
        (None, None, 2, [0, 1]),
        # A process for each GPU of the host, which all see.
        (3, None, None, [3]),
        (3, "0,1,2,3", None, [3]),
        (1, "0,1,2,3", 2, [2, 3]),
        # Each sees its own alone: srun --gpus-per-task.
        (3, "3", None, [0]),
        (1, "2,3", 2, [0, 1]),
        (0, None, 4, [0, 1, 2, 3]),
    ),
)
def test_gpus_of_a_host_are_divided_unless_each_process_sees_its_own(
    monkeypatch, local, visible, gpus, expected
):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hosts.devices(Group(8, 5, None, local), gpus) == expected


def test_port_in_use_is_refused_by_process_0_alone():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} .*in use"):
            hosts.meet(Group(2, 0, f"localhost:{port}"))
        hosts.meet(Group(2, 1, f"localhost:{port}"))
    hosts.meet(Group(2, 0, f"localhost:{port}"))


def test_process_0_that_does_not_come_is_waited_for_so_long():
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="does not answer at .* for 1 s"):
        hosts.meet(Group(2, 1, f"localhost:{port}", wait=1))
    for name in ("no-such.invalid", "two..dots"):
        with pytest.raises(UserError, match=f"cannot find '{name}' .\\w"):
            hosts.meet(Group(2, 1, f"{name}:1"))


@pytest.mark.parametrize(
    "said, expected",
    (
        (
            "UNAVAILABLE: The following tasks are unhealthy (stopped sending "
            "heartbeats):\n1\n12\nThe tasks have crashed.",
            "process 1 and 12 ended, or cannot be reached",
        ),
        (
            "UNAVAILABLE: Failed to send RPC to coordination service.",
            "process 0 ended, or cannot be reached",
        ),
        (
            "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla/RegisterTask",
            "16 processes did not come together within 300 s",
        ),
        (
            "ALREADY_EXISTS: a newer incarnation.\n\nRPC: /xla/RegisterTask",
            "another process has the same number",
        ),
        ("something else", "it was ended by SIGABRT"),
    ),
)
def test_last_words_of_the_runtime_are_told_in_one_line(said, expected):
    lines = said.splitlines(keepends=True)
    reason = watching.reason(Group(16, 3), -signal.SIGABRT, lines)
    assert expected in reason and "\n" not in reason
    killed = watching.reason(Group(16, 3), -signal.SIGKILL, lines)
    assert killed == "it was ended by SIGKILL, perhaps for want of memory"
