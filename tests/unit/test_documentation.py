"""README and pages keep to what they promise, and name files and functions that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PACKAGE = ROOT / "esper_ray"
LEANING = {"What", "Of", "As", "Where", "Which", "Whether", "Who", "How"}


def test_the_readme_is_for_five_minutes_and_has_the_two_commands() -> None:
    assert len(README.splitlines()) <= 120
    main_job, tests = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert main_job.endswith("esper-ray train")
    assert tests.endswith("-m pytest")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_a_link_of_the_readme_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_the_glossary_has_a_line_for_each_word_of_our_own() -> None:
    rows = re.findall(r"^\| (\w[\w ]*) \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    own = "host slot seed blueprint incubation gate fossilize cull kept accuracy rent twin ticket governor"
    assert " ".join(rows) == f"word {own}"


def test_the_architecture_page_names_functions_that_exist() -> None:
    """A name stands as `folder/file.py: Class.method`, or with the folder named before."""
    named = re.findall(r"`([\w/]+\.py): ([\w.]+)`", (ROOT / "docs" / "architecture.md").read_text())
    assert len(named) > 20
    for file, name in named:
        candidates = [path for path in PACKAGE.rglob("*.py") if str(path).endswith(f"/{file}")]
        source = "\n".join(path.read_text() for path in candidates)
        for part in name.split("."):
            assert re.search(rf"\b(class|def) {part}\b", source), f"{file}: {name}"


def test_the_search_page_names_every_search_file() -> None:
    page = (ROOT / "docs" / "search.md").read_text()
    named = set(re.findall(r"^\| `(\w+\.yaml)`", page, re.MULTILINE)) - {"best.yaml"}
    searches = {path.name for path in (ROOT / "tune_configs").glob("*.yaml") if "\nspace:" in path.read_text()}
    assert named == searches


def test_the_notebooks_page_names_every_notebook() -> None:
    named = set(re.findall(r"`(\d\d_\w+\.ipynb)`", (ROOT / "docs" / "notebooks.md").read_text()))
    assert named == {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}


def test_the_first_line_of_a_docstring_is_a_plain_sentence() -> None:
    leaning, seen = [], 0
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            for statement in node.body if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else ():
                match statement:
                    case ast.Expr(ast.Constant(str(text))):
                        seen += 1
                        if text.split()[0] in LEANING:
                            leaning.append(f"{file.relative_to(PACKAGE)}:{statement.lineno}: {text.splitlines()[0]}")
    assert seen > 1000 and leaning == []
