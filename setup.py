"""Builds the extension mom._core; everything else about the package is in pyproject.toml.

The C files of mom_c/ become one extension. Files of one instruction-set level get that level's flags and no other
file does, so that the check of the processor runs on any machine. Environment variables change the build:

MOM_OPENMP=0        no OpenMP, even where the compiler has it
MOM_DEBUG=1         assertions, debug information, all warnings as errors
MOM_WERROR=1        optimised as usual, all warnings as errors
MOM_SANITIZE=1      AddressSanitizer and UndefinedBehaviorSanitizer
MOM_AMX_EMULATED=1  level amx on any processor with AVX-512, its instructions in plain C: slow, to test all the rest
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path("mom_c")
LEVEL_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
        "-mprefer-vector-width=512",
    ],
}
LEVEL_FLAGS["avx512bf16"] = [*LEVEL_FLAGS["avx512"], "-mavx512bf16"]
LEVEL_FLAGS["amx"] = [*LEVEL_FLAGS["avx512bf16"], "-mamx-tile", "-mamx-bf16"]
# What a compiler must translate for the levels that not every one knows; its assembler may be older than itself.
LEVEL_PROBES = {
    "avx512bf16": "int x;\n",
    "amx": "#include <immintrin.h>\nvoid f(void);\nvoid f(void) { _tile_zero(0); _tile_dpbf16ps(0, 1, 2); }\n",
}
OPTIMISE = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Werror"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]


def enabled(name: str, default: bool = False) -> bool:
    return os.environ.get(name, "1" if default else "0") not in ("", "0")


def files(pattern: str) -> list[str]:
    return sorted(path.as_posix() for path in ROOT.glob(pattern))


def level_of(source: str) -> str | None:
    """The instruction-set level a file belongs to, by its name (level_avx2.c, gemm_ukr_avx2.c)."""
    stem = Path(source).stem
    return stem.rsplit("_", 1)[1] if stem.startswith(("level_", "gemm_ukr_")) else None


class BuildCore(build_ext):
    """Compiles every file with its own flags, several at a time."""

    def compiles(self, code: str, flags: list[str], link: bool = False) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.c"
            source.write_text(code)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
                if link:
                    self.compiler.link_executable(objects, str(Path(folder) / "probe"), extra_postargs=flags)
            except Exception:  # each compiler class has exceptions of its own
                return False
        return True

    def common_flags(self) -> list[str]:
        flags = ["-std=c11", "-fvisibility=hidden", "-fopenmp-simd", f"-I{ROOT}"]
        if enabled("MOM_DEBUG"):
            flags += ["-O1", "-g", "-UNDEBUG", "-DMOM_DEBUG", "-ffp-contract=fast"]
        else:
            flags += OPTIMISE
        if enabled("MOM_DEBUG") or enabled("MOM_WERROR"):
            flags += WARNINGS
        return flags

    def rebuild_if_changed(self, settings: str) -> None:
        """Other flags than last time in this build folder: what is there does not count as up to date."""
        stamp = Path(self.build_temp) / "settings.txt"
        if not stamp.is_file() or stamp.read_text() != settings:
            self.force = True
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(settings)

    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type == "msvc":
            raise RuntimeError("mom needs GCC or Clang; build with --compiler=mingw32")
        flags = self.common_flags()
        link_flags = ["-lm"]
        if enabled("MOM_SANITIZE"):
            flags += SANITIZE
            link_flags += SANITIZE
        if enabled("MOM_OPENMP", default=True):
            probe = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
            if self.compiles(probe, ["-fopenmp"], link=True):
                flags.append("-fopenmp")
                link_flags.append("-fopenmp")
        level_flags, probes = dict(LEVEL_FLAGS), dict(LEVEL_PROBES)
        if not self.compiles("#ifndef __x86_64__\n#error other architecture\n#endif\nint x;\n", []):
            flags.append("-DMOM_NO_X86_LEVELS")
            ext.sources = [source for source in ext.sources if level_of(source) in (None, "baseline")]
        else:
            if enabled("MOM_AMX_EMULATED"):
                flags.append("-DMOM_AMX_EMULATED")
                level_flags["amx"] = level_flags["avx512"]
                del probes["amx"]
            # GCC before 10 and Clang before 9 lack the first, GCC and Clang before 11 the second.
            for level, code in probes.items():
                if not self.compiles(code, level_flags[level]):
                    flags.append(f"-DMOM_NO_{level.upper()}")
                    ext.sources = [source for source in ext.sources if level_of(source) != level]
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
            depends=["setup.py", *files("*/*.h"), *files("*/*.inc")],
            include_dirs=[np.get_include()],
        )
    ],
    cmdclass={"build_ext": BuildCore},
)
