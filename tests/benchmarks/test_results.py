"""Tests of the tables that mnist.py and differences.py make of runs."""

import differences
import mnist
import pytest
import runner
from PIL import Image
from published import add, cells_of, record_of, report_of, write_log, write_run


def picture_of(out):
    with Image.open(out / "mnist.png") as picture:
        return picture.copy()


def test_mean_and_standard_deviation_of_a_row(tmp_path):
    # Mean 0.34; deviations -0.04, 0.01, 0.03: sqrt(0.0026 / 2) = 0.036.
    for seed, error in enumerate((0.30, 0.35, 0.37)):
        add(tmp_path, mnist.STUDY, "v4-classic", seed, 2, error)
    add(tmp_path, mnist.STUDY, "v3-paper", 0, 1, 0.5)
    text = report_of(mnist.STUDY, tmp_path)
    expected = "v4-classic|3|yes|0.340|0.036|3|0.30|2||".split("|")
    expected += ["CPU", "0.25 (0.005)", "0.34 (0.016)"]
    once = "v3-paper|3|no|0.50||1|0.50|1||".split("|")
    once += ["CPU", "0.35 (0.036)", "0.40 (0.016)"]
    # Rows without runs are not shown.
    assert cells_of(text)[1:] == [expected, once]
    assert "\n\nCPU: Some CPU, 2 cores, tensorflow. Minutes are " in text
    command = "-r 3 --recipe classic --epochs 2 --seed SEED`"
    assert f"`python capsulenet.py {command}" in text
    assert "[2](mnist/v4-classic-2/log.csv)" in text
    picture = (tmp_path / "mnist.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("error", [0.0, 0.5])
def test_runs_without_any_error_are_drawn_too(tmp_path, error):
    add(tmp_path, mnist.STUDY, "v4-paper", 0, 1, error)
    report_of(mnist.STUDY, tmp_path)
    assert (tmp_path / "mnist.png").exists()


def test_other_epochs_flags_and_backends_are_told_apart(tmp_path):
    decay = ("--lr_decay", "0.8", "--image_size", "20", "20")
    add(tmp_path, mnist.STUDY, "v4-classic", 0, 2, 0.4)
    add(tmp_path, mnist.STUDY, "v4-classic", 1, 3, 0.3)
    name = "v4-classic-0-0123abcd"
    add(tmp_path, mnist.STUDY, "v4-classic", 0, 2, 0.2, *decay, name=name)
    gpu = {"backend": "jax", "accelerator": "Some GPU"}
    add(tmp_path, mnist.STUDY, "v4-classic", 2, 3, 0.5, **gpu)
    # As an older record may say.
    record = record_of(mnist.STUDY, "v4-classic", 3, 2, 0.6)
    record["flags"] |= {"no_longer_a_flag": 1, "batch_size": 100}
    write_run(tmp_path / "mnist" / "v4-classic-3", record)
    text = report_of(mnist.STUDY, tmp_path)
    flags = "--image_size 20 20 --lr_decay 0.8"
    lines = {
        (c[0], c[3], c[5], c[7], c[10]) for c in cells_of(text, "v4-classic")
    }
    assert lines == {
        ("v4-classic", "0.500", "2", "2", "CPU"),
        ("v4-classic", "0.400", "2", "3", "CPU, GPU"),
        (f"v4-classic {flags}", "0.20", "1", "2", "CPU"),
    }
    machine = "Some CPU, 2 cores"
    assert f"CPU: {machine}, tensorflow. GPU: Some GPU, {machine}, jax." in text
    assert f"--recipe classic {flags} --epochs 2 --seed SEED`" in text
    assert "`KERAS_BACKEND=jax python capsulenet.py -r 3" in text


def test_unfinished_runs_are_listed_and_not_averaged(tmp_path):
    add(tmp_path, mnist.STUDY, "v4-classic", 0, 2, 0.4)
    write_log(tmp_path / "mnist" / "v4-classic-1", [3, 2, 0.1])
    text = report_of(mnist.STUDY, tmp_path)
    assert cells_of(text, "v4-classic")[0][3:6] == ["0.40", "", "1"]
    assert "Unfinished: v4-classic-1 (3 epochs done)." in text


def test_command_of_a_run_gives_its_flags(tmp_path):
    extra = ("--lam_recon", "0.392", "--batch_size", "50", "--ema", "0.99")
    record = record_of(
        mnist.STUDY, "v4-paper", 5, 3, 0.4, *extra, "--grayscale"
    )
    write_run(tmp_path / "mnist" / "v4-paper-5", record)
    (found,) = runner.read_runs(mnist.STUDY, tmp_path)
    words = mnist.command_of(found).split()
    assert words[:2] == ["python", "capsulenet.py"]
    flags = runner.recorded(*words[2:])
    assert {**flags, "save_dir": ""} == {**record["flags"], "save_dir": ""}


@pytest.mark.parametrize("seeds", [1, 2])
def test_short_table_has_one_recipe_that_no_error_chooses(tmp_path, seeds):
    out, readme = tmp_path / "result", tmp_path / "README.md"
    old = "# A\n\n<!-- results -->\nold\n<!-- /results -->\n\nend\n"
    readme.write_text(old)
    for version, error in (("v1", 0.5), ("v4", 0.4)):
        for seed in range(seeds):
            error += 0.1 * seed
            add(out, mnist.STUDY, f"{version}-classic", seed, 2, error)
    add(out, mnist.STUDY, "v4-paper", 0, 9, 0.1)
    add(out, mnist.STUDY, "v4-classic", 0, 1, 0.1, name="v4-classic-0-0123abcd")
    report_of(mnist.STUDY, out)
    text = readme.read_text()
    errors = (
        ["0.50", "0.40"] if seeds == 1 else ["0.550 (0.071)", "0.450 (0.071)"]
    )
    v1 = ["v1", "1", "no", errors[0], str(seeds), "2", "", "", "CPU"]
    v4 = ["v4", "3", "yes", errors[1], str(seeds), "2", "", "", "CPU"]
    assert cells_of(text)[1:] == [
        [*v1, "0.34 (0.032)", "0.39 (0.024)"],
        [*v4, "0.25 (0.005)", "0.34 (0.016)"],
    ]
    assert (
        "v1: `-r 1 --lam_recon 0 --recipe classic --epochs 2`; "
        "v4: `-r 3 --recipe classic --epochs 2`.\n\n"
        "CPU: Some CPU, 2 cores, tensorflow. "
    ) in text
    assert text.startswith("# A\n\n<!-- results -->") and text.endswith("end\n")
    readme.write_text("# A\n")
    report_of(mnist.STUDY, out)
    assert readme.read_text() == "# A\n"


def test_short_table_says_where_settings_differ(tmp_path):
    out, readme = tmp_path / "result", tmp_path / "README.md"
    readme.write_text("<!-- results -->\n<!-- /results -->\n")
    add(out, mnist.STUDY, "v1-classic", 0, 2, 0.5, "--lr_decay", "0.8")
    add(out, mnist.STUDY, "v4-classic", 0, 7, 0.4, backend="jax")
    report_of(mnist.STUDY, out)
    assert (
        "v1: `-r 1 --lam_recon 0 --recipe classic --lr_decay 0.8 --epochs 2`; "
        "v4: `-r 3 --recipe classic --epochs 7`.\n\nCPU: "
        "Some CPU, 2 cores, tensorflow; Some CPU, 2 cores, jax. "
    ) in readme.read_text()


def test_minutes_are_those_of_a_machine_with_nothing_else_to_do(tmp_path):
    out, readme = tmp_path / "result", tmp_path / "README.md"
    readme.write_text("<!-- results -->\n<!-- /results -->\n")
    add(out, mnist.STUDY, "v4-classic", 0, 30, 0.4)
    add(out, mnist.STUDY, "small", 0, 9, 0.3)
    # Two runs of 12 epochs count for more than one of 20.
    for seed in range(2):
        name = f"small-{seed}-0123abcd"
        add(out, mnist.STUDY, "small", seed, 12, 0.5, name=name)
    add(out, mnist.STUDY, "small", 0, 20, 0.6, name="small-0-89abcdef")
    # The rate does not change what an epoch takes; the batches do.
    for epochs, flag in ((15, "--lr"), (25, "--batch_size")):
        name = f"small-0-{epochs:08}"
        add(out, mnist.STUDY, "small", 0, epochs, 0.6, flag, "1", name=name)
    report_of(mnist.STUDY, out)
    by_epoch = picture_of(out)
    # Beside other work an epoch took 10 and 11 seconds, alone 8, and half a
    # second on a GPU.
    record = record_of(mnist.STUDY, "small", 0, 3, 2.0)
    record["seconds_per_epoch"] = [8.0, 9.0, 7.0]
    write_run(out / "alone-cpu" / "mnist" / "small-0", record)
    record["seconds_per_epoch"] = [9.0, 0.5, 0.4]
    record["environment"] |= {"accelerator": "Some GPU", "backend": "jax"}
    write_run(out / "alone-gpu" / "mnist" / "small-0", record)
    text = report_of(mnist.STUDY, out)
    lines = {(c[7], c[8], c[9]) for c in cells_of(text, "small")}
    expected = {("9", "1.20", "0.0750"), ("12", "1.60", "0.100")}
    expected |= {("15", "2.00", "0.125"), ("25", "", "")}
    assert lines == {*expected, ("20", "2.67", "0.167")}
    cpu = "Some CPU, 2 cores"
    said = f"CPU: {cpu}, tensorflow. GPU: Some GPU, {cpu}, jax. Minutes are "
    v4 = ["v4", "3", "yes", "0.40", "1", "30", "", "", "CPU"]
    small = ["small", "attention", "yes", "0.500 (0.000)", "2", "12"]
    assert cells_of(readme.read_text())[1:] == [
        [*v4, "0.25 (0.005)", "0.34 (0.016)"],
        [*small, "1.60", "0.100", "CPU", "", ""],
    ]
    assert said in text and said in readme.read_text()
    # Below the panel of epochs comes one of minutes.
    assert picture_of(out).height > 1.8 * by_epoch.height


def test_machine_of_the_minutes_is_named_first(tmp_path):
    """Of two processors, the one on which nothing else ran."""
    record = record_of(mnist.STUDY, "small", 0, 3, 2.0)
    write_run(tmp_path / "alone-cpu" / "mnist" / "small-0", record)
    record["environment"] |= {"processor": "Another"}
    write_run(tmp_path / "mnist" / "small-0", record)
    said = "CPU: Some CPU, 2 cores, tensorflow; Another, 2 cores, tensorflow. "
    said += "Minutes are those of the first named, with nothing else running."
    assert said in report_of(mnist.STUDY, tmp_path)


def test_differences_are_means_over_seeds(tmp_path):
    folder = tmp_path / "differences"
    losses = {"capsnet_loss": 0.4, "decoder_loss": 0.04}
    for row, seed, error in (("bias", 0, 1.0), ("bias", 1, 1.5)):
        record = record_of(differences.STUDY, row, seed, 2, error)
        write_run(folder / f"{row}-{seed}", record, **losses)
    record = record_of(differences.STUDY, "no-decoder", 0, 2, 2.5)
    write_run(folder / "no-decoder-0", record)
    add(tmp_path, differences.STUDY, "classic", 0, 1, 3.0, "--lr_decay", "0.5")
    (folder / "scale-0").mkdir()  # Not finished.
    text = report_of(differences.STUDY, tmp_path)
    assert "Some CPU" in text
    assert cells_of(text)[1:] == [
        ["classic", "`--lr_decay 0.5`", "3.00", "", "0.100", "", "1"],
        ["bias", "`--capsule_bias 0.1`"]
        + ["2.25", "1.25", "0.400", "0.0400", "2"],
        ["no-decoder", "`--lam_recon 0`", "3.50", "2.50", "0.100", "", "1"],
    ]


@pytest.mark.parametrize("script", [mnist, differences])
def test_nothing_to_report_is_one_line(tmp_path, capsys, script):
    assert script.main(["--report", "--out", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_damaged_record_is_one_line(tmp_path, capsys):
    write_log(tmp_path / "mnist" / "v4-paper-0", [1])
    (tmp_path / "mnist" / "v4-paper-0" / "run.json").write_text("{")
    assert mnist.main(["--report", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.json" in line
