/* 12 x 32 or 24 x 32 micro-kernel on tiles of bfloat16: 2 or 4 tiles of 12 x 16 sums. Contract: mom_gemm_tile_kernels in
 * product_kernels.h. a and b are packed and 64-byte aligned; c may be unaligned.
 *
 * DESIGN  A product of tiles takes a cycle per row of a. The next product with the same sums has to wait for its end, some
 *         50 cycles. So two panels of a are taken at a time: 4 products of 12 cycles each run before the same sums occur
 *         again, and the tiles of b, which are larger, serve two products. The processor renames tiles like other
 *         registers, so loads for the next chunk run ahead although they name the same tiles.
 * ORDER   Within a chunk the instruction sums even steps and odd steps, each in a chain of fused multiply-adds that begins
 *         with zero. It adds these two sums, and adds the result to the sum so far.
 * SOURCE  Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS; Intel 64 and IA-32 Architectures
 *         Optimization Reference Manual, chapter on AMX.
 */
#include "kernels/levels.h"

#define ROWS 12
#define COLUMNS 32 /* of two tiles */
#define PAIRS 16   /* of steps in a chunk */

#ifndef MOM_AMX_EMULATED
#include <immintrin.h>

/* Tiles of sums, of a and of b: */
#define C00 0
#define C01 1
#define C10 2
#define C11 3
#define A0 4
#define A1 5
#define B0 6
#define B1 7

void mom_tiles_begin_amx(void) {
    static const mom_tile_shapes shapes __attribute__((aligned(64))) = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
        .rows = {ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, PAIRS, PAIRS},
    };
    _tile_loadconfig(&shapes);
}

void mom_tiles_end_amx(void) { _tile_release(); }

#define A_TILE (2 * ROWS * PAIRS) /* bfloat16 numbers */
#define B_TILES (2 * PAIRS * COLUMNS)

/* Every chunk fetches two rows of c, while `left` is not 0, and 4 lines of `next` per panel. These lines go into the
 * second cache, since the first one holds the panel of b in use. */
#define FETCH(panels)                                       \
    for (int l = 0; l < 4 * (panels); l++, line += 64)      \
        _mm_prefetch(line, _MM_HINT_T1);                    \
    if (left) {                                             \
        _mm_prefetch((const char *)row, _MM_HINT_T0);       \
        _mm_prefetch((const char *)(row + 16), _MM_HINT_T0); \
        row += ldc;                                         \
        _mm_prefetch((const char *)row, _MM_HINT_T0);       \
        _mm_prefetch((const char *)(row + 16), _MM_HINT_T0); \
        row += ldc;                                         \
        left -= 2;                                          \
    }

static void one_panel(size_t chunks, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc, int accumulate,
                      const char *line) {
    const size_t c_stride = ldc * sizeof(float);
    const float *row = c;
    size_t left = accumulate ? 0 : ROWS;
    if (accumulate) {
        _tile_loadd(C00, c, c_stride);
        _tile_loadd(C01, c + 16, c_stride);
    } else {
        _tile_zero(C00);
        _tile_zero(C01);
    }
    for (; chunks; chunks--, a += A_TILE, b += B_TILES) {
        _tile_loadd(B0, b, 4 * COLUMNS);
        _tile_loadd(A0, a, 4 * PAIRS);
        _tile_dpbf16ps(C00, A0, B0);
        _tile_loadd(B1, b + COLUMNS, 4 * COLUMNS);
        _tile_dpbf16ps(C01, A0, B1);
        FETCH(1)
    }
    _tile_stored(C00, c, c_stride);
    _tile_stored(C01, c + 16, c_stride);
}

static void two_panels(size_t chunks, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc, int accumulate,
                       const char *line) {
    const size_t c_stride = ldc * sizeof(float);
    const mom_bf16 *second = a + chunks * A_TILE;
    float *lower = c + ROWS * ldc;
    const float *row = c;
    size_t left = accumulate ? 0 : 2 * ROWS;
    if (accumulate) {
        _tile_loadd(C00, c, c_stride);
        _tile_loadd(C01, c + 16, c_stride);
        _tile_loadd(C10, lower, c_stride);
        _tile_loadd(C11, lower + 16, c_stride);
    } else {
        _tile_zero(C00);
        _tile_zero(C01);
        _tile_zero(C10);
        _tile_zero(C11);
    }
    for (; chunks; chunks--, a += A_TILE, second += A_TILE, b += B_TILES) {
        _tile_loadd(B0, b, 4 * COLUMNS);
        _tile_loadd(A0, a, 4 * PAIRS);
        _tile_dpbf16ps(C00, A0, B0);
        _tile_loadd(B1, b + COLUMNS, 4 * COLUMNS);
        _tile_dpbf16ps(C01, A0, B1);
        _tile_loadd(A1, second, 4 * PAIRS);
        _tile_dpbf16ps(C10, A1, B0);
        _tile_dpbf16ps(C11, A1, B1);
        FETCH(2)
    }
    _tile_stored(C00, c, c_stride);
    _tile_stored(C01, c + 16, c_stride);
    _tile_stored(C10, lower, c_stride);
    _tile_stored(C11, lower + 16, c_stride);
}

void mom_tiles_bf16f32_24x32_amx(size_t chunks, size_t panels, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                                 int accumulate, const void *next) {
    (panels == 2 ? two_panels : one_panel)(chunks, a, b, c, ldc, accumulate, next);
}

#else /* the same sums in the same order, for tests on processors without tiles */

void mom_tiles_begin_amx(void) {}
void mom_tiles_end_amx(void) {}

/* sums (COLUMNS) += a (PAIRS, 2) * b (PAIRS, COLUMNS, 2) */
static void multiply_row(float *restrict sums, const mom_bf16 *restrict a, const mom_bf16 *restrict b) {
    float even[COLUMNS] = {0}, odd[COLUMNS] = {0};
    for (size_t p = 0; p < PAIRS; p++, a += 2, b += 2 * COLUMNS) {
        const float first = mom_bf16_to_f32(a[0]), second = mom_bf16_to_f32(a[1]);
        for (size_t j = 0; j < COLUMNS; j++) {
            even[j] += first * mom_bf16_to_f32(b[2 * j]);
            odd[j] += second * mom_bf16_to_f32(b[2 * j + 1]);
        }
    }
    for (size_t j = 0; j < COLUMNS; j++)
        sums[j] += even[j] + odd[j];
}

void mom_tiles_bf16f32_24x32_amx(size_t chunks, size_t panels, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                                 int accumulate, const void *next) {
    (void)next;
    for (size_t i = 0; i < panels * ROWS; i++, c += ldc) {
        const mom_bf16 *ai = a + 2 * PAIRS * (i / ROWS * ROWS * chunks + i % ROWS);
        if (!accumulate)
            memset(c, 0, COLUMNS * sizeof *c);
        for (size_t q = 0; q < chunks; q++)
            multiply_row(c, ai + q * 2 * PAIRS * ROWS, b + q * 2 * PAIRS * COLUMNS);
    }
}
#endif
