"""Builds the extension mom._core; everything else about the package is in pyproject.toml.

The C files of mom_c/ become one extension, with the compiler flags of mom_c/flags.mk. Environment variables change the
build:

MOM_OPENMP=0        no OpenMP, even where the compiler has it
MOM_DEBUG=1         assertions, debug information, all warnings as errors
MOM_WERROR=1        optimised as usual, all warnings as errors
MOM_SANITIZE=1      AddressSanitizer and UndefinedBehaviorSanitizer
MOM_COVERAGE=1      counts how often each line and branch runs, for `make coverage`; needs GCC
MOM_AMX_EMULATED=1  level amx on any processor with AVX-512, its instructions in plain C: slow, to test all the rest
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path("mom_c")


def read_flags() -> dict[str, str]:
    """Read the variables of mom_c/flags.mk and replace references to other variables."""
    flags: dict[str, str] = {}
    for line in (ROOT / "flags.mk").read_text().splitlines():
        assignment = re.fullmatch(r"(\w+) :=(.*)", line)
        if assignment:
            name, value = assignment.groups()
            flags[name] = re.sub(r"\$\((\w+)\)", lambda reference: flags[reference[1]], value).strip()
    return flags


FLAGS = read_flags()


def enabled(name: str, default: bool = False) -> bool:
    return os.environ.get(name, "1" if default else "0") not in ("", "0")


def files(pattern: str) -> list[str]:
    """Source files of the core. Its examples and tests are left out, since they are separate programs."""
    return sorted(path.as_posix() for path in ROOT.glob(pattern) if path.parent.name not in ("examples", "tests"))


#: Options of the compiler that decide for which processor and by which arithmetic it translates.
_OWN = ("-m", "-O", "-ffast-math", "-funsafe-math-optimizations", "-ffinite-math-only", "-fassociative-math", "-flto")
#: Options that begin like those, and choose neither.
_KEPT = ("-m32", "-m64", "-mthreads", "-mmacosx-version-min")


def without_own(command: list[str]) -> list[str]:
    """A compiler's command without options from CFLAGS that only `mom_c/flags.mk` may set."""
    return [word for word in command if not word.startswith(_OWN) or word.startswith(_KEPT)]


# A Python for both kinds of Apple processors asks for code for both. One build is for one processor: this machine's.
if sys.platform == "darwin":
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")

NO_COMPILER = """mom is built from C, and no C compiler works here ({command}). Install one: \
'apt install build-essential', 'dnf install gcc' or 'xcode-select --install'."""
NO_HEADERS = """mom is built from C, and Python's header files are missing. Install them: \
'apt install python3-dev' or 'dnf install python3-devel'."""
TWO_PROCESSORS = """ARCHFLAGS: mom cannot be built for several processors at once ({names}), since each gets \
instructions of its own. Build once for each, such as with ARCHFLAGS='-arch {name}'."""
NO_OPENMP = """The C compiler has no OpenMP, so mom will compute on one thread. For all of them, install OpenMP \
('apt install libomp-dev' for Clang, 'brew install libomp' on macOS) or build with CC=gcc."""


def words(name: str) -> list[str]:
    return FLAGS.get(name, "").split()


def level_of(source: str) -> str | None:
    """The instruction-set level a file belongs to, by its name: ``level_<level>.c`` and ``gemm_ukr_<level>.c``."""
    stem = Path(source).stem
    return stem.rsplit("_", 1)[1] if stem.startswith(("level_", "gemm_ukr_")) else None


def levels_to_build(has: Callable[[str], bool]) -> list[str]:
    """The level baseline, and those of the compiler's architecture that the compiler knows, best last."""
    known = [level for name in words("ARCHITECTURES") if has(name) for level in words(f"LEVELS_{name}")]
    return ["baseline", *(level for level in known if level not in words("PROBED_LEVELS") or has(level))]


def homebrew_folder() -> list[str]:
    """Where Homebrew keeps libomp, if there is a Homebrew."""
    try:
        done = subprocess.run(["brew", "--prefix", "libomp"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split("\n")[:1] if done.returncode == 0 else []


def openmp_choices(platform: str, environment: Mapping[str, str], prefix: str) -> list[tuple[list[str], list[str]]]:
    """Options of the compiler and of the linker that may give OpenMP, to be tried in this order.

    The clang of macOS has no OpenMP of its own. It takes the library libomp of Homebrew or conda.
    """
    choices = [(["-fopenmp"], ["-fopenmp"])]
    if platform == "darwin":
        folders = [*homebrew_folder(), *words("LIBOMP_FOLDERS"), environment.get("CONDA_PREFIX", ""), prefix]
        for folder in dict.fromkeys(folders):
            if folder and Path(folder, "include", "omp.h").is_file():
                options = ["-Xpreprocessor", "-fopenmp", f"-I{folder}/include"]
                choices.append((options, [f"-L{folder}/lib", f"-Wl,-rpath,{folder}/lib", "-lomp"]))
    return choices


class BuildCore(build_ext):
    """Compiles every file with its own flags, several at a time."""

    def has(self, feature: str, options: list[str] | None = None, link: list[str] | None = None) -> bool:
        """Whether the compiler can compile a feature's test program, and link it with the options `link`."""
        flags = [*words(f"PROBE_FLAGS_{feature}"), *(options or [])]
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.c"
            source.write_text(FLAGS[f"PROBE_{feature}"] + "\n")
            try:
                include = self.include_dirs if feature == "python" else []
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, include_dirs=include, extra_postargs=flags
                )
                if link is not None:
                    self.compiler.link_executable(objects, str(Path(folder) / "probe"), extra_postargs=link)
            except Exception:  # each compiler class has exceptions of its own
                return False
        return True

    def has_quietly(self, feature: str, options: list[str] | None = None, link: list[str] | None = None) -> bool:
        """The same without the compiler's own messages."""
        saved = os.dup(2)
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, 2)
            return self.has(feature, options, link)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(null)

    def check_tools(self) -> None:
        """Leave with one sentence if there is no compiler or no Python.h."""
        if not self.has_quietly("c", link=[]):
            sys.exit(NO_COMPILER.format(command=" ".join(self.compiler.compiler_so[:1])))
        if not self.has_quietly("python"):
            sys.exit(NO_HEADERS)

    def openmp_flags(self) -> tuple[list[str], list[str]]:
        """Options of the compiler and of the linker for OpenMP; none without it."""
        if enabled("MOM_OPENMP", default=True):
            for options, link in openmp_choices(sys.platform, os.environ, sys.prefix):
                if self.has_quietly("openmp", options, link):
                    return options, link
            print(NO_OPENMP, file=sys.stderr, flush=True)
        return [], []

    def common_flags(self) -> list[str]:
        flags = [*words("STANDARD"), f"-I{ROOT}", *words("DEBUG" if enabled("MOM_DEBUG") else "OPTIMISE")]
        if enabled("MOM_DEBUG") or enabled("MOM_WERROR"):
            flags += words("WARNINGS")
        return flags

    def rebuild_if_changed(self, settings: str) -> None:
        """If the flags differ from those of the last build in this folder, build everything again."""
        stamp = Path(self.build_temp) / "settings.txt"
        if not stamp.is_file() or stamp.read_text() != settings:
            self.force = True
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(settings)

    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type == "msvc":
            raise RuntimeError("mom needs GCC or Clang; build with --compiler=mingw32")
        command = self.compiler.compiler_so = without_own(self.compiler.compiler_so)
        names = sorted({name for option, name in pairwise(command) if option == "-arch"})
        if len(names) > 1:
            sys.exit(TWO_PROCESSORS.format(names=", ".join(names), name=names[0]))
        self.check_tools()
        openmp, openmp_link = self.openmp_flags()
        flags = [*self.common_flags(), *openmp]
        link_flags = ["-lm", *openmp_link]
        if enabled("MOM_SANITIZE"):
            flags += words("SANITIZE")
            link_flags += words("SANITIZE")
        if enabled("MOM_COVERAGE"):
            flags += words("COVERAGE")
            link_flags += words("COVERAGE")
        level_flags = {level: words(f"LEVEL_{level}") for level in words("LEVELS")}
        levels = levels_to_build(self.has_quietly)
        if enabled("MOM_AMX_EMULATED") and "avx512" in levels:
            flags.append("-DMOM_AMX_EMULATED")
            level_flags["amx"] = level_flags["avx512"]
            levels = [level for level in levels if level != "amx"] + ["amx"]
        flags += [f"-DMOM_HAS_{level.upper()}" for level in levels]
        ext.sources = [source for source in ext.sources if level_of(source) in (None, *levels)]
        ext.extra_link_args = link_flags
        self.rebuild_if_changed("\n".join([*flags, "--", *link_flags]))

        compile_serially = self.compiler.compile

        def compile_all(sources, **options):  # type: ignore[no-untyped-def]
            options.pop("extra_postargs", None)

            def compile_one(source: str) -> list[str]:
                own = level_flags[level_of(source) or "baseline"]
                return compile_serially([source], extra_postargs=[*flags, *own], **options)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [name for names in pool.map(compile_one, sources) for name in names]

        self.compiler.compile = compile_all
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_serially


setup(
    ext_modules=[
        Extension(
            "mom._core",
            sources=files("*/*.c"),
            depends=["setup.py", "mom_c/flags.mk", *files("*/*.h"), *files("*/*.inc")],
            include_dirs=[np.get_include()],
        )
    ],
    cmdclass={"build_ext": BuildCore},
)
