import tomllib

from tests.conftest import ROOT


def test_every_module_has_a_layer():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {name.strip() for layer in contracts[0]["layers"] for name in layer.split("|")}
    modules = (file.relative_to(ROOT).with_suffix("").parts for file in (ROOT / "job").rglob("*.py"))
    without = [".".join(m) for m in modules if m[-1] != "__init__" and not {".".join(m[:k]) for k in range(2, 5)} & layers]
    assert without == []
