"""The tables of the READMEs are built anew from what was measured."""

import json
import re
import shutil
import statistics
from pathlib import Path

import compare
import differences
import growth
import mnist
import processes
import pytest
import recipes
import robustness
import routings
import runner
import settings
import sharing
import speed
from published import cells_of

ROOT = Path(__file__).parents[2]
FOLDERS = ("mnist", "alone-cpu", "alone-gpu", "differences", "recipes")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def shown(readme, name):
    """The text between the marks of a README."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    return re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.S)


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("speed", speed),
        ("speed-faster", speed),
        ("settings", settings),
        ("growth", growth),
        ("routings", routings),
        ("sharing", sharing),
    ],
)
def test_tables_are_those_of_the_measured_figures(name, script):
    path = ROOT / "benchmarks" / f"{name}.json"
    if not path.exists():
        assert shown("benchmarks/README.md", name)[1].startswith("Not measured")
        pytest.skip(f"{name}.py has measured nothing yet")
    record = read_json(path)
    text = processes.block(record, script.describe)
    assert shown("benchmarks/README.md", name)[1] == text and len(text) > 500


def ratios(name):
    """The medians of a table of goals, as text."""
    goals = read_json(ROOT / "benchmarks" / f"{name}.json")["goals"]
    return {row["what"]: f"{row['median']:.2f}" for row in goals}


def test_speed_in_the_main_readme_is_the_measured_one():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = cells_of(text[text.index("## Speed") :])[1:]
    faster, slower = ratios("speed-faster"), ratios("speed")
    networks = cells_of(shown("benchmarks/README.md", "speed-faster")[1])
    networks = {line[0]: line for line in networks}
    kinds = ("training", "predict", "memory")
    for column, (kind, line) in enumerate(zip(kinds, lines, strict=True), 1):
        what = f"{kind}, ours / classic"
        both = [networks[each][column] for each in ("ours", "classic")]
        expected = [*both, faster[what], slower[what]]
        heads = [cell.split()[0].rstrip(";") for cell in line[1:]]
        assert heads == [each.split()[0] for each in expected]
    assert f"; small {slower['training, small / classic']} " in lines[0][4]


@pytest.mark.parametrize(
    ("script", "name"),
    [
        (mnist, "mnist"),
        (compare, "compare"),
        (differences, "differences"),
        (recipes, "recipes"),
    ],
)
def test_tables_are_those_of_the_committed_logs(tmp_path, script, name):
    out = tmp_path / "result"
    for folder in FOLDERS:
        shutil.copytree(ROOT / "result" / folder, out / folder)
    assert script.main(["--report", "--out", str(out)]) == 0
    made = (out / "README.md").read_text(encoding="utf-8")
    assert made == shown("result/README.md", name)[0] + "\n"


def test_table_of_robustness_is_that_of_the_committed_logs(tmp_path):
    for folder in (ROOT / "result").glob("robustness/*"):
        shutil.copytree(folder, tmp_path / "robustness" / folder.name)
    assert robustness.main(["--report", "--out", str(tmp_path)]) == 0
    made = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert made == shown("result/README.md", "robustness")[0] + "\n"


def test_short_table_of_the_main_readme_is_that_of_the_logs(tmp_path):
    readme, out = tmp_path / "README.md", tmp_path / "result"
    for name in FOLDERS[:3]:
        shutil.copytree(ROOT / "result" / name, out / name)
    readme.write_text("<!-- results -->\n<!-- /results -->\n")
    assert mnist.main(["--report", "--out", str(out)]) == 0
    made = readme.read_text(encoding="utf-8")
    assert made.count("\n| v") == 4 and "2 cores" in made
    committed = shown("README.md", "results")
    if committed is None:
        pytest.skip("the README has no such table")
    assert made == committed[0] + "\n"


def test_figures_of_fashion_mnist_are_those_of_its_test():
    text = (ROOT / "result" / "README.md").read_text(encoding="utf-8")
    figures = read_json(ROOT / "result" / "fashion-mnist" / "test.json")
    worst = max(figures["classes"].values(), key=lambda each: each["error"])
    assert worst is figures["classes"]["Shirt"]
    assert f"test error of {figures['test_error']:.2f} %" in text
    assert f"{worst['error']:.1f} % of the shirts" in text


def wanted(argv):
    """What decides about the run of a command line."""
    flags = runner.comparable(runner.recorded(*argv))
    return flags | {"dataset": flags["dataset"].lower().replace("_", "-")}


@pytest.mark.parametrize(("folder", "lines"), [("small", 7), ("pairs", 4)])
def test_tables_written_by_hand_are_those_of_their_runs(folder, lines):
    text = (ROOT / "result" / "README.md").read_text(encoding="utf-8")
    pattern = rf"\| .*`python capsulenet.py (.*)` (\|.*)\]\({folder}/(.*)/log"
    found = re.findall(pattern, text)
    assert len(found) == lines
    for argv, cells, name in found:
        run = ROOT / "result" / folder / name
        record = runner.read_record(run / "run.json")
        assert wanted(argv.split()) == runner.comparable(record["flags"])
        values = [record["test_error"]]
        if folder == "pairs":
            kinds = ("exact_error", "error_per_digit", "at_least_one_right")
            values = [len(runner.read_log(run / "log.csv"))]
            values += map(record.get, kinds)
            values += [statistics.median(record["seconds_per_epoch"])]
        figures = [cell.strip() for cell in cells.split("|")[1:-1]]
        for value, cell in zip(values, figures, strict=True):
            digits = len(cell.partition(".")[2])
            assert f"{value:.{digits}f}" == cell


def test_every_file_that_the_readmes_link_is_there():
    for folder in ("result", "benchmarks"):
        text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#:]+)\)", text)
        assert len(links) >= 5
        assert [p for p in links if not (ROOT / folder / p).exists()] == []
