"""Protects the layers of packages: imports run downwards, and `import rnnjit` loads little."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rnnjit

ROOT = Path(rnnjit.__file__).parent
#: From the bottom to the top; what stands in one layer does not import each other.
LAYERS = (
    {"errors", "ir", "quantization"},
    {"runtime"},
    {"cells"},
    {"spec"},
    {"backend"},
    {"single_step"},
    {"reference", "recurrence", "codegen"},
    {"dispatch"},
    {"execution"},
    {"frontend"},
    {"tools"},
    {"artifact", "testing"},
    {"bench"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
#: Those that use rnnjit by its public names, as its users do: they stand above what these load.
USERS = {"testing", "bench", "cli", "__main__"}


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imports(source, modules):
    """Every module that a source imports, at any depth, but for what only type checkers read."""
    pending = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in modules else node.module
        pending += ast.iter_child_nodes(node)


def package(module):
    """The part of rnnjit that a module is of; "" is rnnjit itself."""
    return (*module.split("."), "")[1]


def arrows(modules):
    """From each module to those of rnnjit that it imports."""
    return {
        name: {
            to
            for to in imports(path.read_text(encoding="utf-8"), modules)
            if to.partition(".")[0] == "rnnjit"
        }
        for name, path in modules.items()
    }


def wrong(found):
    """The arrows that do not run downwards."""
    for source, targets in found.items():
        for target in targets:
            above, below = package(source), package(target)
            if above == below:
                continue
            if below == "":
                if above not in USERS:
                    yield f"{source} imports rnnjit itself"
            elif above == "" or LEVEL[above] <= LEVEL[below]:
                yield f"{source} imports {target}"


def test_every_part_has_its_layer():
    assert {package(name) for name in MODULES} - {""} == LEVEL.keys()


def test_imports_run_downwards_only():
    assert sorted(wrong(arrows(MODULES))) == []


def test_modules_import_each_other_in_no_circle():
    graph = {name: targets - {"rnnjit"} for name, targets in arrows(MODULES).items()}
    assert len(tuple(TopologicalSorter(graph).static_order())) >= len(MODULES) - 1


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("import rnnjit.cli.output", "rnnjit.cli.output"),
        ("from rnnjit.bench import timing", "rnnjit.bench"),
        ("def f():\n    from rnnjit import tools", "rnnjit.tools"),
        ("if True:\n    import rnnjit", "rnnjit"),
        (
            "try:\n    from rnnjit.frontend import stream\nexcept ImportError:\n    pass",
            "rnnjit.fr",
        ),
    ],
)
def test_an_import_upwards_is_seen_wherever_it_stands(source, target, tmp_path):
    path = tmp_path / "spec.py"
    path.write_text(source)
    (found,) = wrong(arrows({**MODULES, "rnnjit.spec": path}))
    assert found.startswith(f"rnnjit.spec imports {target}")


def test_what_only_type_checkers_read_does_not_count(tmp_path):
    path = tmp_path / "spec.py"
    path.write_text("if TYPE_CHECKING:\n    from rnnjit.frontend import stream\n")
    assert arrows({**MODULES, "rnnjit.spec": path})["rnnjit.spec"] == set()


HEAVY = ("numba", "llvmlite", "tvm", "rich", "matplotlib", "rnnjit_numba", "rnnjit_tvm")
# Backends that build artifacts load the last.
UPPER = ("rnnjit.bench", "rnnjit.tools", "rnnjit.testing", "rnnjit.cli", "rnnjit.artifact")


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import rnnjit", (*HEAVY, *UPPER, "torch")),
        ("import rnnjit; rnnjit.compile", (*HEAVY, *UPPER)),
        ("import rnnjit; rnnjit.Backend; rnnjit.RNNSpec", (*HEAVY, *UPPER, "rnnjit.frontend")),
        (
            "import rnnjit, torch; rnnjit.compile(torch.nn.RNN(2, 3))",
            ("numba", "llvmlite", "tvm", "rich", "matplotlib", *UPPER[:-1]),
        ),
    ],
)
def test_importing_loads_no_more_than_is_used(code, unwanted):
    code = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    loaded = done.stdout.split()
    assert "rnnjit" in loaded
    assert [
        name for name in loaded if any(name == u or name.startswith(f"{u}.") for u in unwanted)
    ] == []
