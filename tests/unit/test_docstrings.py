import ast
import re

from tests.conftest import ROOT

# A docstring that begins with one of these is a clause that only makes sense beside the code.
CLAUSE = re.compile(r"(Whether|What|How|Where|Which|Who|The same|Those|Of|As|Raises)\b")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings():
    """Yield the place of each docstring in job/, whether it is that of a public function, and its text."""
    for file in sorted((ROOT / "job").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
                name = getattr(node, "name", "")
                is_public = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not name.startswith("_")
                yield f"{file.relative_to(ROOT)} {name}: {text.splitlines()[0]}", is_public, text


def test_docstrings_begin_with_what_a_function_does_or_a_noun():
    assert [place for place, _, text in docstrings() if CLAUSE.match(text)] == []


def test_docstrings_of_public_functions_begin_with_a_capital_letter():
    assert [place for place, is_public, text in docstrings() if is_public and not text[0].isupper()] == []
