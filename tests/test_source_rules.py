"""Rules of the C sources and of the public Python names."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
from pathlib import Path

import pytest

from mom import _core, ops

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "mom_c"
LAYERS = ["base", "kernels", "gemm", "ops", "model", "bindings"]
SOURCES = sorted(path for path in CORE.rglob("*") if path.suffix in (".c", ".h", ".inc"))
FORBIDDEN = re.compile(r"\b(printf|fprintf|puts|putchar|perror|exit|_exit|abort|quick_exit)\s*\(")
ALLOCATES = re.compile(r"\b(malloc|calloc|realloc|free|aligned_alloc|posix_memalign|strdup|alloca)\s*\(")


def code_of(path: Path) -> str:
    """A file's text without comments and string literals."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"', " ", text, flags=re.DOTALL)


def name(path: Path) -> str:
    return path.relative_to(CORE).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_include_their_own_layer_and_those_above_only(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(CORE).parts[0])
    for included in includes(path):
        assert LAYERS.index(included.split("/")[0]) <= layer, included
        assert (CORE / included).is_file(), included


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)


def test_no_file_includes_itself_over_others() -> None:
    graphlib.TopologicalSorter({name(path): includes(path) for path in SOURCES}).prepare()  # an error names the circle


def test_no_two_sources_call_each_other() -> None:
    """Not over others either: whoever reads a file has to know only files that do not know it."""
    code = {name(path): code_of(path) for path in SOURCES if path.suffix == ".c"}
    definition = re.compile(r"^(?!static|typedef|extern)\w[\w *]*?\b(mom_\w+)\([^;{}]*\)\s*\{", re.MULTILINE)
    home = {function: file for file, text in code.items() for function in definition.findall(text)}
    assert home["mom_call_begin"] == "bindings/call.c" and len(home) > 200
    calls = {
        file: {home[word] for word in set(re.findall(r"\bmom_\w+", text)) if word in home} - {file}
        for file, text in code.items()
    }
    graphlib.TopologicalSorter(calls).prepare()


@pytest.mark.parametrize("path", [p for p in SOURCES if not name(p).startswith("bindings/")], ids=name)
def test_core_knows_no_python_prints_nothing_and_never_exits(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"#\s*include\s+<(Python\.h|numpy/)", text)
    code = code_of(path)
    assert not FORBIDDEN.search(code)
    assert "Py_" not in code and "PyObject" not in code
    if name(path) != "base/memory.c":
        assert not ALLOCATES.search(code), "memory comes from base/arena only"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".h"], ids=name)
def test_headers_are_guarded_by_their_path(path: Path) -> None:
    guard = f"MOM_{'_'.join(path.relative_to(CORE).with_suffix('').parts).upper()}_H"
    assert f"#ifndef {guard}\n#define {guard}\n" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [p for p in SOURCES if name(p).startswith("kernels/")], ids=name)
def test_kernels_keep_no_state_use_no_threads_and_no_arena(path: Path) -> None:
    """The only writable static is the list of level names, which every caller fills alike."""
    assert not re.search(r"\bmom_(parallel|arena|memory)_\w+\s*\(|#\s*pragma\s+omp\s+(?!simd)", code_of(path))
    statics = re.findall(r"^\s*static\s+(?!inline|const|void|_)([^;(){]*)(?:=|;)", code_of(path), re.MULTILINE)
    assert [s for s in statics if "names" not in s] == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_sources_leave_no_notes_and_no_tabs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)
    assert "\t" not in text and not re.search(r"[ \t]+$", text, re.MULTILINE)
    assert text.endswith("\n")


def test_all_public_operators_are_documented() -> None:
    for public in ops.__all__:
        member = getattr(ops, public)
        doc = inspect.getdoc(member)
        assert doc, public
        if inspect.isfunction(member) and public != "use_level":
            assert "Parameters\n----------" in doc and "Returns\n-------" in doc, public
            for parameter in inspect.signature(member).parameters.values():
                if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                    assert re.search(rf"\b{parameter.name}\b", doc), f"{public}: {parameter.name}"


def test_all_public_names_of_operators_are_listed() -> None:
    tree = ast.parse(inspect.getsource(ops))
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert {n for n in defined if not n.startswith("_")} <= set(ops.__all__)


def test_stubs_name_what_the_extension_has() -> None:
    stub = ast.parse((ROOT / "python/mom/_core.pyi").read_text(encoding="utf-8"))
    functions = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    members = {n: getattr(_core, n) for n in dir(_core) if not n.startswith("__")}
    assert set(members) == set(functions) | set(classes)
    for public, node in functions.items():
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        assert arguments == list(inspect.signature(members[public]).parameters), public
    for public, node in classes.items():
        declared = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        have = {n for n in vars(members[public]) if not n.startswith("__")}
        assert {n for n in declared if not n.startswith("__")} == have, public
