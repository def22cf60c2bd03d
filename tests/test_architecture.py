"""Who may import whom, read from the sources."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
NETWORKS_MAY = {
    "modules.batch",
    "modules.mixed_precision",
    "modules.models.patterns",
    "modules.protocols",
    "modules.safetensors_header",  # what a file is, not what trains
    "modules.verification",
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_modules_know_no_network_and_no_script():
    for path in (ROOT / "modules").rglob("*.py"):
        packages = {name.partition(".")[0] for name in imports(path)}
        assert not packages & {"networks", "preprocess", "tools", "bench", "tests"}, path


def test_networks_know_plain_data_only():
    for path in (ROOT / "networks").rglob("*.py"):
        ours = {name for name in imports(path) if name.startswith("modules")}
        assert ours <= NETWORKS_MAY, (path, ours)


def test_main_knows_the_config_and_the_trainer():
    ours = {name for name in imports(ROOT / "main.py") if name.startswith("modules")}
    names = {"config", "console", "errors", "lean_imports", "offline", "out_of_memory"}
    names |= {"trainer", "trial"}
    assert ours == {f"modules.{name}" for name in names}


def test_preprocess_knows_no_trainer_and_no_network():
    for path in (ROOT / "preprocess").rglob("*.py"):
        found = imports(path)
        assert not any(name.startswith("networks") for name in found), path
        assert "modules.trainer" not in found, path


def test_the_config_needs_no_torch():
    for name in (
        "config",
        "config_faults",
        "numbers",
        "sections",
        "save_section",
        "safetensors_header",
        "yaml_source",
        "schema",
        "foreign_names",
        "component",
        "hints",
        "value_words",
        "yaml_text",
        "idle_settings",
        "legacy",
        "legacy_keys",
        "legacy_table",
        "legacy_values",
    ):
        found = {module.partition(".")[0] for module in imports(ROOT / "modules" / f"{name}.py")}
        assert not found & {"torch", "diffusers", "transformers", "accelerate"}, name


def test_no_room_is_without_a_name():
    for package in ("modules", "networks", "preprocess", "tools"):
        stems = {path.stem for path in (ROOT / package).rglob("*.py")}
        assert not stems & {"utils", "util", "helpers", "common", "misc"}
