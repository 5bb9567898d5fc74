/* Matrix products over packed micro-kernels: plain, with gathered rows, and grouped; in float32 or bfloat16.
 *
 * SHAPES      c (m, n) = or += a (m, k) * b (k, n) + bias (n)
 * DEFINITION  for i, j: c[i][j] = (accumulate ? c[i][j] : bias ? bias[j] : 0) + sum_p a[i][p] * b[p][j]
 *             with a[i][p] = a.data[row(i) * a.rs + col(p) * a.cs], row(i) = a.row_index ? a.row_index[i] : i,
 *             and likewise for b; k_scale (k) multiplies b's row p; a factor with a norm is normalised
 *             first, one with gelu set goes through it.
 *             precision MOM_BF16 rounds both factors to bfloat16; sums are float32 all the same.
 * FINISH      A product with `finish` has no c: blocks of finished sums (bias added) are handed to it while they are
 *             in cache, to be transformed and stored.
 * OCCURS      m, n, k from 1 to some ten thousand; either of a and b transposed (by their strides);
 *             groups of very unequal m (routed layers) or k (gradients of weights).
 * BITS        each element of c is one chain of fused multiply-adds over p within a block of k, blocks
 *             added in order: independent of threads, of the other rows and of the group. On tiles (level amx, in
 *             bfloat16) c is one chain of sums of 32 steps each, which a tile adds in an order of its own
 *             (gemm_ukr_amx.c): as independent, and of the blocks as well.
 */
#ifndef MOM_KERNELS_GEMM_H
#define MOM_KERNELS_GEMM_H

#include "kernels/kernels.h"

typedef struct mom_gemm mom_gemm;

/* Columns of the blocks that `finish` gets at most. With whole_blocks j0 is a multiple of this, so that a sum over a row may
 * be gathered in one number per block whatever the number of threads. */
#define MOM_FINISH_COLUMNS ((size_t)512)

/* Rows [i0, i0 + m), columns [j0, j0 + n) of the product; sums (m, n) with row stride ld, which it may overwrite. Runs on
 * any thread, once for each block. */
typedef void (*mom_gemm_finish)(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m,
                                size_t j0, size_t n);

struct mom_gemm {
    size_t m, n, k;
    mom_matrix a, b;
    float *c;
    size_t ldc;
    const float *bias;    /* NULL or (n); ignored when accumulate */
    const float *k_scale; /* NULL or (k) */
    float *k_sums;        /* NULL or (n): sums over k of b (k_scale included, rounded to the precision) are added; no packed_b, m > 0 */
    int accumulate;       /* not together with finish */
    mom_dtype precision;
    const void *packed_b; /* NULL, or b as mom_gemm_pack left it (k_scale included) */
    mom_gemm_finish finish;
    int whole_blocks;     /* all that finish gets begin at multiples of MOM_FINISH_COLUMNS and end there or with the row */
    const void *context;  /* for finish */
};

/* Row-major (rows, columns) matrix with row stride ld, and its transpose. */
static inline mom_matrix mom_matrix_rows(const float *data, size_t ld) { return (mom_matrix){.data = data, .rs = ld, .cs = 1}; }
static inline mom_matrix mom_matrix_transposed(const float *data, size_t ld) { return (mom_matrix){.data = data, .rs = 1, .cs = ld}; }
static inline mom_matrix mom_matrix_of(const void *data, mom_dtype dtype, size_t ld) {
    return (mom_matrix){.data = data, .rs = ld, .cs = 1, .dtype = dtype};
}
static inline mom_matrix mom_matrix_flip(mom_matrix m) {
    return (mom_matrix){m.data, m.cs, m.rs, m.col_index, m.row_index, m.dtype, m.norm, m.gelu, !m.flipped};
}

/* Runs `count` independent products (their c must not overlap) over all threads. */
mom_status mom_gemm_run(const mom_exec *x, const mom_gemm *problems, size_t count, mom_error *err);

/* A factor b that serves several products is packed once. */
typedef struct {
    void *dst; /* mom_gemm_packed_size bytes, aligned to 64 */
    mom_matrix b;
    const float *k_scale;
    size_t n, k;
    mom_dtype precision;
} mom_gemm_packing;

/* Rows of a from which that pays when the products are those of a few modules out of many: with fewer, most modules
 * have none, and a b that is read once is best read where it lies. */
size_t mom_gemm_least_prepack(const mom_kernels *k, mom_dtype precision);
size_t mom_gemm_packed_size(const mom_kernels *k, mom_dtype precision, size_t n, size_t kk);
mom_status mom_gemm_pack(const mom_exec *x, const mom_gemm_packing *packings, size_t count, mom_error *err);

#endif
