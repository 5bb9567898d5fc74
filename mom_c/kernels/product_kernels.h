/* Contracts of the kernels for matrix products: micro-kernels on packed panels, packing, products of a few rows.
 *
 * A micro-kernel computes one micro-tile c (mr, nr) of a product a * b. Its factors are packed into panels. A panel of a
 * holds mr rows, a panel of b holds nr columns, side by side and step after step of k:
 *     float32    a (k, mr)          b (k, nr)
 *     bfloat16   a (pairs, mr, 2)   b (pairs, nr, 2), a pair being two consecutive steps of k
 * Whole factors are aligned to 64 bytes, and so are panels of b if nr is 16 or 32. c may be unaligned and has row stride
 * ldc.
 */
#ifndef MOM_KERNELS_PRODUCT_KERNELS_H
#define MOM_KERNELS_PRODUCT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/bf16.h"

/* ---- factors as they lie in memory */

/* Layer normalisation of a factor while it is packed. Element c of token t becomes
 * (value - mean[t]) * rstd[t] * weight[c] + bias[c]. */
typedef struct {
    const float *mean, *rstd;    /* by token */
    const float *weight, *bias;  /* by channel */
} mom_gemm_norm;

/* A factor of a product as it is stored. Element (i, p) is data[row(i) * rs + col(p) * cs]. row(i) is row_index[i], or
 * i without an index; col(p) likewise. A factor with a norm has its tokens along the rows, or along the columns if it
 * is flipped; the stride of the other axis, the channels, is 1. */
typedef struct {
    const void *data;         /* of type dtype */
    size_t rs, cs;            /* strides of rows and columns, in elements */
    const int32_t *row_index; /* NULL or one per row */
    const int32_t *col_index; /* NULL or one per column */
    mom_dtype dtype;
    const mom_gemm_norm *norm; /* or NULL */
    int gelu;                  /* each element is replaced by gelu(element); one stride must be 1 */
    int flipped;               /* transposed: tokens are the columns (with a single channel both strides are 1) */
} mom_matrix;

/* ---- micro-kernels */

#define MOM_FEW_ROWS 8 /* most rows for the kernels named `few` */

/* Limits that every level keeps; level.inc asserts them. */
#define MOM_MOST_MR 12      /* largest mr */
#define MOM_MOST_TILE 512   /* largest mr * nr */
#define MOM_MOST_MC 256     /* largest mc */
#define MOM_MOST_COLUMNS ((size_t)512) /* largest column_block */

/* All entries give the same bits. With accumulate 1 the product is added to c, with 0 c is overwritten and not read.
 * `next` is any address; the first kc / 4 cache lines there may be fetched, since the caller will read them soon. */
typedef struct {
    /* a and b are packed. */
    void (*packed)(size_t kc, const float *a, const float *b, float *c, size_t ldc, int accumulate, const void *next);
    /* As `packed`, for the first `rows` <= MOM_FEW_ROWS rows of a. Memory for MOM_FEW_ROWS rows of c must exist. NULL
     * if `packed` is as fast. */
    void (*packed_few)(size_t kc, size_t rows, const float *a, const float *b, float *c, size_t ldc, int accumulate);
    /* a is read where it lies: row i is rows[i] (kc). NULL if packing is faster. */
    void (*a_rows)(size_t kc, const float *const *rows, const float *b, float *c, size_t ldc, int accumulate,
                   const void *next);
    /* a is read where it lies: step p is the mr floats at a + p * lda. There together with a_rows. */
    void (*a_columns)(size_t kc, const float *a, size_t lda, const float *b, float *c, size_t ldc, int accumulate,
                      const void *next);
    /* a is packed, b (kc, nr) is read where it lies, with row stride ldb. NULL if packing is faster. */
    void (*b_rows)(size_t kc, const float *a, const float *b, size_t ldb, float *c, size_t ldc, int accumulate);
    /* As b_rows, for the first `rows` <= MOM_FEW_ROWS rows of a. NULL if b_rows is as fast. */
    void (*b_rows_few)(size_t kc, size_t rows, const float *a, const float *b, size_t ldb, float *c, size_t ldc,
                       int accumulate);
} mom_gemm_f32_kernels;

/* The same for factors in bfloat16; sums are float32. */
typedef struct {
    void (*packed)(size_t pairs, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc, int accumulate,
                   const void *next);
    void (*packed_few)(size_t pairs, size_t rows, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                       int accumulate);
    /* Row i of a is the pairs at rows[i]. */
    void (*a_rows)(size_t pairs, const mom_bf16 *const *rows, const mom_bf16 *b, float *c, size_t ldc, int accumulate,
                   const void *next);
    /* Step p of a is the mr pairs that begin at pair lda * p of a. */
    void (*a_columns)(size_t pairs, const mom_bf16 *a, size_t lda, const mom_bf16 *b, float *c, size_t ldc, int accumulate,
                      const void *next);
} mom_gemm_bf16_kernels;

/* Products of bfloat16 by instructions that multiply small matrices. A level has all of these entries, or `items` is 0 and
 * they are NULL. An instruction takes `items` pairs of steps at a time: a chunk. Both factors are padded with zeros to whole
 * chunks. */
typedef struct {
    size_t items;
    /* c (panels * mr, nr) = or += a * b for 1 or 2 consecutive panels of a, packed by `pack`; b is packed as for the
     * other kernels if `joined` is 0. The sum begins with c or zero and proceeds chunk by chunk, so its bits do not
     * depend on the number of panels. The first panels * chunks * items / 4 cache lines at `next` may be fetched. */
    void (*multiply)(size_t chunks, size_t panels, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                     int accumulate, const void *next);
    /* 1: panels of b hold whole chunks, too: (chunks, nr, items, 2). */
    int joined;
    /* A thread calls `begin` before `multiply` and `end` after it, to set up and release tile registers. */
    void (*begin)(void);
    void (*end)(void);
    /* Packs rows [i0, i0 + m), steps [p0, p0 + k) of src into panels (chunks, mr, items, 2), rounded to nearest. Rows
     * past m and steps past k are zero. */
    void (*pack)(mom_bf16 *dst, const mom_matrix *src, size_t i0, size_t m, size_t p0, size_t k);
} mom_gemm_tile_kernels;

typedef struct {
    const char *name, *bf16_name;
    size_t mr, nr;     /* micro-tile */
    size_t mc, kc, nc; /* blocks that stay in caches: rows of a, steps of k, columns of b */
    size_t column_unit;  /* columns of a task of little work, such as packing; whole panels */
    size_t column_block; /* most columns of a task; a multiple of column_unit, and nc is a multiple of it */
    size_t kc_bf16;    /* kc for factors in bfloat16, in steps of k */
    mom_gemm_f32_kernels f32;
    mom_gemm_bf16_kernels bf16;
    mom_gemm_tile_kernels tiles;
} mom_gemm_kernels;

/* ---- packing */

typedef struct {
    /* Packs rows [i0, i0 + m), steps [p0, p0 + k) of src into panels of `width` rows. Panel q holds, step after step, one
     * item of 32 bits for each of its rows. In MOM_F32 an item is the element of step p. In MOM_BF16 it is the pair of
     * steps 2p and 2p + 1, rounded to nearest; k is padded with zeros to whole pairs, at a level with tiles to whole
     * chunks, and with `tiles.joined` the items of a chunk lie side by side for each row. Rows past m are zero. k_scale
     * (all steps of src) or NULL multiplies step p. */
    void (*factor)(void *dst, mom_dtype precision, size_t width, const mom_matrix *src, const float *k_scale, size_t i0,
                   size_t m, size_t p0, size_t k);
    /* out (n) += the sums over k of a panel (items, nr) of packed b; n <= nr */
    void (*panel_sums)(float *out, mom_dtype precision, const void *panel, size_t items, size_t n);
} mom_pack_kernels;

/* ---- products of a few rows with a matrix that is read once */

#define MOM_PANEL 64 /* outputs of a panel of the gemv kernels */

/* x (rows, k) has row stride ldx, out (rows, n) has row stride ldo. The bits of a row's result do not depend on the
 * other rows. Panels hold MOM_PANEL outputs for every step of k; the last panel of a matrix is padded with zeros. n <=
 * MOM_PANEL outputs of a panel are written. */
typedef struct {
    /* w (k, MOM_PANEL) */
    void (*panel_f32)(float *out, size_t ldo, const float *x, size_t ldx, const float *w, size_t rows, size_t k, size_t n);
    /* w (k, 2, 16, 2): output 32 g + 16 h + i lies at (g, i, h) */
    void (*panel_bf16)(float *out, size_t ldo, const float *x, size_t ldx, const mom_bf16 *w, size_t rows, size_t k,
                       size_t n);
    /* w (k, 16, 4): output 16 b + i lies at (i, b) and is multiplied by scale (n) */
    void (*panel_i8)(float *out, size_t ldo, const float *x, size_t ldx, const int8_t *w, const float *scale, size_t rows,
                     size_t k, size_t n);
    /* out = x * w^T with w (n, k) */
    void (*dots)(float *out, size_t ldo, const float *x, size_t ldx, const float *w, size_t rows, size_t k, size_t n);
    /* out += x * w with w (k, n), row stride ldw */
    void (*axpys)(float *out, size_t ldo, const float *x, size_t ldx, const float *w, size_t ldw, size_t rows, size_t k,
                  size_t n);
} mom_gemv_kernels;

#endif
