"""How the house is built: who imports whom, and how long a room may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import capsnet

ROOT = Path(__file__).parents[1]
ROOMS = {
    p.relative_to(ROOT).as_posix(): p for p in ROOT.glob("capsnet/**/*.py")
}
SCRIPTS = {path.name: path for path in ROOT.glob("*.py")}
BESIDE = {
    path.relative_to(ROOT).as_posix(): path
    for folder in ("tests", "benchmarks")
    for path in ROOT.glob(f"{folder}/**/*.py")
}
OURS = ("capsnet", "capsulelayers", "capsulenet", "utils")
GROUND = "files fonts devices messages".split()
GROUND = tuple(f"capsnet.{room}" for room in GROUND)
# What of ours a file may import, by the beginning of its name.
ALLOWED = {
    "utils.py": GROUND,
    "capsulelayers.py": (
        *GROUND,
        "capsnet.models.arguments",
        "capsnet.models.fastconv",
        "capsnet.models.initializers",
        "capsnet.models.normalization",
        "capsnet.models.routings",
        "capsnet.models.vectors",
    ),
    "capsulenet": OURS,
    "capsnet/data/": ("capsnet", "utils"),
    **dict.fromkeys(
        (
            f"capsnet/{wing}/"
            for wing in "models training evaluation cli".split()
        ),
        ("capsnet", "capsulelayers", "utils"),
    ),
    "capsnet/": ("capsnet",),
}
FREE_OF_KERAS = (
    "capsnet.data, capsnet.models, capsnet.training, capsnet.evaluation, "
    "capsnet.messages, capsnet.files, capsnet.training.recipes, "
    "capsnet.cli.options, capsnet.cli.checks"
)


def imports(tree):
    """The modules of ours that the statements in a tree import."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (f"{n}." for n in names if n.split(".")[0] in OURS)


def test_rooms_and_functions_are_short():
    longest = {"capsulenet.py": 400, "capsulelayers.py": 450}
    longest["capsulenet-multi-gpu.py"] = 150
    for name, path in {**ROOMS, **SCRIPTS, **BESIDE}.items():
        text = path.read_text(encoding="utf-8")
        usual = 350 if name in BESIDE else 300
        assert len(text.splitlines()) <= longest.get(name, usual), name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                has_docstring = ast.get_docstring(node) is not None
                above = first.end_lineno if has_docstring else first.lineno - 1
                assert node.end_lineno - above <= 40, f"{name}: {node.name}"


@pytest.mark.parametrize("name", sorted({**ROOMS, **SCRIPTS}))
def test_imports_run_down(name):
    tree = ast.parse({**ROOMS, **SCRIPTS}[name].read_text(encoding="utf-8"))
    allowed = next(ALLOWED[key] for key in ALLOWED if name.startswith(key))
    for module in imports(tree):
        assert module.startswith(tuple(f"{each}." for each in allowed))
    for node in ast.walk(tree):
        # An import inside a function would hide a circle.
        if isinstance(node, ast.FunctionDef):
            assert not list(imports(node))
    if name.endswith("__init__.py"):
        assert len(tree.body) == 1 and ast.get_docstring(tree)


def test_the_map_of_the_house_names_every_room_and_no_other():
    words = capsnet.__doc__.replace(",", " ").split()
    drawn = {word for word in words if word.endswith(".py")}
    rooms = {path.name for path in ROOMS.values()}
    assert drawn == rooms - {"__init__.py"}


def test_what_a_command_line_needs_is_free_of_keras():
    code = f"import sys, {FREE_OF_KERAS}\nassert 'keras' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
