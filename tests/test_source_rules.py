"""Rules of the C sources and of the public Python names."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mom import _core, ops

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "mom_c"
LAYERS = ["base", "kernels", "gemm", "ops", "model", "bindings", "examples", "tests"]
SOURCES = sorted(path for path in CORE.rglob("*") if path.suffix in (".c", ".h", ".inc"))
PROGRAMS = ("examples/", "tests/")  # with a main function; no part of the library or of the extension
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
        assert not (name(path).startswith(PROGRAMS) and included.startswith("bindings/")), included


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)


def test_no_file_includes_itself_over_others() -> None:
    graphlib.TopologicalSorter({name(path): includes(path) for path in SOURCES}).prepare()  # an error names the circle


def test_no_two_sources_call_each_other() -> None:
    """Not over others either: whoever reads a file has to know only files that do not know it."""
    library = [path for path in SOURCES if path.suffix == ".c" and not name(path).startswith(PROGRAMS)]
    code = {name(path): code_of(path) for path in library}
    definition = re.compile(r"^(?!static|typedef|extern)\w[\w *]*?\b(mom_\w+)\([^;{}]*\)\s*\{", re.MULTILINE)
    home = {function: file for file, text in code.items() for function in definition.findall(text)}
    assert home["mom_call_fail"] == "bindings/call.c" and len(home) > 200
    calls = {
        file: {home[word] for word in set(re.findall(r"\bmom_\w+", text)) if word in home} - {file}
        for file, text in code.items()
    }
    graphlib.TopologicalSorter(calls).prepare()


@pytest.mark.parametrize("path", [p for p in SOURCES if not name(p).startswith(("bindings/", *PROGRAMS))], ids=name)
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
    defined = set()
    for path in (ROOT / "python/mom/ops").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined |= {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert {n for n in defined if not n.startswith("_")} - {"is_bfloat16"} <= set(ops.__all__)


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


# ---------------------------------------------------------------------- the Python package
PACKAGE = ROOT / "python" / "mom"
#: Folders and single modules of the package. Each may import itself and those before it.
PARTS = [
    *("errors", "familiar", "_version", "_json", "_html", "_reading", "_openmp", "_core", "_extras", "_arguments"),
    *("_progress", "settings", "runtime", "distributed"),
    *("routers", "file_fields", "presets", "config"),
    *("ops", "files", "interventions", "reference", "data", "model", "training", "glue", "xsum"),
    *("evaluate", "analysis", "surgery", "accounting", "sweep", "sklearn", "demo", "report"),
    *("cli", "__main__", "__init__"),
]
MODULES = {
    ".".join(("mom", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in sorted(PACKAGE.rglob("*.py"))
}


def part_of(module: str) -> str:
    return module.split(".")[1]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node but what is for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from statements(child)


def imports_of(module: str) -> Iterator[tuple[str, str]]:
    """Modules of the package that a module imports anywhere in its code, and the imported names."""
    package = module.split(".")[:-1]
    for node in statements(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
        source = ".".join(part for part in base if part)
        for alias in node.names:
            if f"{source}.{alias.name}" in MODULES:
                yield f"{source}.{alias.name}", ""
            elif f"{source}.{alias.name}.__init__" in MODULES:
                yield f"{source}.{alias.name}.__init__", ""
            else:
                yield (source if source in MODULES else f"{source}.__init__"), alias.name


def test_python_modules_import_their_own_folder_and_those_before_it_only() -> None:
    assert {part_of(module) for module in MODULES} | {"_core"} == set(PARTS)
    order = {name: number for number, name in enumerate(PARTS)}
    climbing = [
        f"{module} imports {target}"
        for module in MODULES
        for target, name in imports_of(module)
        if name != "_core" and order[part_of(target)] > order[part_of(module)]
    ]
    assert climbing == []


def test_python_modules_do_not_import_each_other_in_a_circle() -> None:
    below = {module: {t for t, name in imports_of(module) if name != "_core"} for module in MODULES}
    while free := [module for module, targets in below.items() if not targets & below.keys()]:
        for module in free:
            del below[module]
    assert not below, f"a circle among {sorted(below)}"


def length_of(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    documented = ast.get_docstring(function, clean=False)
    own = (function.end_lineno or 0) - function.lineno + 1
    return own - (documented.count("\n") + 1 if documented else 0)


@pytest.mark.parametrize("module", MODULES)
def test_python_files_and_functions_are_short(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    assert text.count("\n") <= 700
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if length_of(f) > 60] == []


@pytest.mark.parametrize("module", MODULES)
def test_python_modules_use_no_private_names_of_others(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_own(node)}
    own |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own |= {n.target.id for n in ast.walk(tree) if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not is_own(node)}
    used |= {name for _, name in imports_of(module)} - {"_core"}
    named_tuple = {"_asdict", "_replace"}
    private = {name for name in used - own - named_tuple if name.startswith("_") and not name.startswith("__")}
    assert private == set()


def is_own(node: ast.Attribute) -> bool:
    """Whether an attribute is one of the object or class that the code belongs to."""
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
