"""Tests of the benchmark of several processes: its two tables."""

import re

import sharing

ENVIRONMENT = {
    "processor": "p",
    "cores": 2,
    "system": "s",
    "python": "3",
    "backend": "jax",
    "versions": {"jax": "1.0", "keras": "3.15"},
}


def row(processes, seconds, moved):
    return {
        "network": "ours",
        "processes": processes,
        "seconds_per_step": seconds,
        "batch_size": 100 * processes,
        "bytes_per_step": moved,
        "weights": 10**6,
        "environment": ENVIRONMENT,
    }


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_have_the_measured_speeds_and_the_arithmetic_of_the_weights():
    rows = [row(1, [0.5, 0.4, 0.7], 0.0), row(2, [1.0], 8.5e6)]
    machine, measured, marked, arithmetic = sharing.describe({"rows": rows})
    assert "jax 1.0" in machine and re.match("Arithmetic, not meas", marked)
    one, two = map(cells, measured.splitlines()[2:])
    assert one == "ours|1|200|1.00|0.500 (0.400 to 0.700)|0.00|0.00".split("|")
    assert two == "ours|2|200|1.00|1.00|8.50|8.00".split("|")
    # 8 MB in 2.56 ms at 25 Gbit/s, in 0.32 ms at 25 GB/s.
    (only,) = map(cells, arithmetic.splitlines()[2:])
    expected = "ours|1,000,000|8.00|2.56|10.2|0.320|1.28".split("|")
    assert only == expected


def test_pictures_are_of_the_size_of_mnist(tmp_path):
    path = tmp_path / "data.npz"
    sharing.write_pictures(path, 20)
    with sharing.np.load(path) as arrays:
        assert arrays["x_train"].shape == (20, 28, 28, 1)
        assert set(arrays["y_train"]) == set(arrays["y_test"]) == set(range(10))


def test_bytes_of_the_loopback_device_grow_with_what_it_carries():
    with sharing.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        before = sharing.loopback_bytes()
        with sharing.socket.create_connection(listener.getsockname()) as sent:
            received, _ = listener.accept()
            sent.sendall(bytes(10**5))
            while len(received.recv(10**5, sharing.socket.MSG_PEEK)) < 10**4:
                pass
            received.close()
    assert sharing.loopback_bytes() - before >= 10**4
