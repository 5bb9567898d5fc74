# The compiler flags of the C core, for mom_c/Makefile, which includes this file, and for setup.py, which reads it.
# Lines have the form NAME := words; $(NAME) stands for the words of an earlier line.

STANDARD := -std=c11 -fvisibility=hidden -fopenmp-simd
OPTIMISE := -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math
DEBUG := -O1 -g -UNDEBUG -DMOM_DEBUG -ffp-contract=fast
# Clang does not vectorise every loop that is marked for it; that is no error.
WARNINGS := -Wno-pass-failed -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Werror
SANITIZE := -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined
# Counters are exact with threads. No function is inlined, not even one that asks for it, because every inlined copy would
# have counters of its own. Headers of the compiler spell the attribute __always_inline__, so their functions are.
COVERAGE := --coverage -fprofile-update=atomic -O1 -fno-inline -Dalways_inline=noinline -Wno-attributes

# Where Homebrew keeps libomp on macOS, on processors of Apple and of Intel.
LIBOMP_FOLDERS := /opt/homebrew/opt/libomp /usr/local/opt/libomp

# The files of one instruction-set level (kernels/level_<level>.c and kernels/gemm_ukr_<level>.c) get the flags of that
# level. No other file gets them, so that the check of the processor runs on any machine. The level baseline and those of
# the compiler's architecture are built, if the compiler translates their probes. A level that is built has the macro
# MOM_HAS_<LEVEL>, in capitals.
ARCHITECTURES := x86 aarch64
LEVELS_x86 := avx2 avx512 avx512bf16 amx
LEVELS_aarch64 := neon neonbf16
LEVELS := baseline $(LEVELS_x86) $(LEVELS_aarch64)
LEVEL_baseline :=
LEVEL_avx2 := -mavx2 -mfma
LEVEL_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512
LEVEL_avx512bf16 := $(LEVEL_avx512) -mavx512bf16
LEVEL_amx := $(LEVEL_avx512bf16) -mamx-tile -mamx-bf16
# NEON is a part of AArch64. Every processor with bfloat16 has version 8.2 of the architecture.
LEVEL_neon :=
LEVEL_neonbf16 := -march=armv8.2-a+bf16

# A feature is there if the compiler translates its probe with the feature's flags. OpenMP's probe must link, too. Some
# compilers know an instruction set that their assembler does not know, so probes use the instructions.
# GCC before 10 and Clang before 9 lack avx512bf16, GCC and Clang before 11 lack amx, GCC before 10 and Clang before 12 lack
# neonbf16. A level without a probe is known to every compiler for its architecture.
PROBED_LEVELS := avx512bf16 amx neonbf16
PROBE_x86 := int probe = __x86_64__;
PROBE_aarch64 := int probe = __aarch64__;
PROBE_avx512bf16 := int probe;
PROBE_amx := void probe(void); void probe(void) { _tile_zero(0); _tile_dpbf16ps(0, 1, 2); }
PROBE_neonbf16 := float32x4_t probe(float32x4_t c, bfloat16x8_t a) { return vbfmmlaq_f32(vbfdotq_f32(c, a, a), a, a); }
PROBE_c := int main(void) { return 0; }
PROBE_python := int probe = PY_VERSION_HEX;
PROBE_openmp := int main(void) { return omp_get_max_threads() < 1; }
PROBE_FLAGS_python := -include Python.h
PROBE_FLAGS_avx512bf16 := $(LEVEL_avx512bf16)
PROBE_FLAGS_amx := $(LEVEL_amx) -include immintrin.h
PROBE_FLAGS_neonbf16 := $(LEVEL_neonbf16) -include arm_neon.h
PROBE_FLAGS_openmp := -include omp.h
