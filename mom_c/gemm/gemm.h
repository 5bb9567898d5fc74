/* Matrix products on all threads: plain, with gathered rows, and in groups; factors in float32 or bfloat16.
 *
 * SHAPES      c (m, n) = or += a (m, k) * b (k, n) + bias (n)
 * DEFINITION  c[i][j] = (accumulate ? c[i][j] : bias ? bias[j] : 0) + sum_p a[i][p] * b[p][j]
 *             with a[i][p] = a.data[row(i) * a.rs + col(p) * a.cs], row(i) = a.row_index ? a.row_index[i] : i, and
 *             likewise for b. k_scale (k) multiplies row p of b. A factor with a norm is normalised first; a factor with
 *             gelu set goes through GELU. Precision MOM_BF16 rounds both factors to bfloat16; sums are float32.
 * FINISH      A product with `finish` has no c. Its finished sums, bias added, are handed to `finish` block by block
 *             while they are in cache, to be transformed and stored.
 * OCCURS      m, n, k from 1 to some ten thousand; a or b transposed (by their strides); groups of products with very
 *             unequal m (routed layers) or k (gradients of weights).
 * BITS        Within a block of k, each element of c is one chain of multiply-adds over p; the blocks' sums are added in
 *             order. So a result does not depend on the threads, on other rows or on the group. Multiply-adds are fused
 *             wherever the level's processors have the instruction, which is everywhere but at the level baseline on x86.
 *             On tiles (in bfloat16) an element is one chain of sums of 32 steps at the level amx, of 4 steps at the level
 *             neonbf16. kernels/gemm_ukr_<level>.c says in which order these steps are added. The blocks of k do not change
 *             such results.
 */
#ifndef MOM_GEMM_GEMM_H
#define MOM_GEMM_GEMM_H

#include "kernels/kernels.h"

typedef struct mom_gemm mom_gemm;

/* Takes rows [i0, i0 + m), columns [j0, j0 + n) of the product: sums (m, n) with row stride ld, which it may overwrite.
 * A block has at most gemm.column_block columns. Runs on any thread, once for each block. */
typedef void (*mom_gemm_finish)(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m,
                                size_t j0, size_t n);

struct mom_gemm {
    size_t m, n, k;
    mom_matrix a, b;
    float *c;
    size_t ldc;
    const float *bias;    /* NULL or (n); ignored when accumulate */
    const float *k_scale; /* NULL or (k) */
    /* NULL or (n): sums over k of b are added to it, of b times k_scale and rounded to the precision. Needs m > 0, and no
     * packed_b. */
    float *k_sums;
    int accumulate;       /* not together with finish */
    mom_dtype precision;
    const void *packed_b; /* NULL, or b as mom_gemm_pack left it (with k_scale) */
    mom_gemm_finish finish;
    /* All blocks that `finish` gets begin at multiples of the level's gemm.column_block and end there or with the row. So
     * a sum over a row can be kept as one number per block, whatever the number of threads. */
    int whole_blocks;
    const void *context;  /* for finish */
    mom_part part;    /* what the product counts as; MOM_PART_NONE: what mom_count_part has set */
    size_t uncounted; /* multiply-adds that are no useful work (base/counts.h), such as those of padding */
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

/* Runs `count` independent products over all threads. Their outputs must not overlap. */
mom_status mom_gemm_run(const mom_exec *x, const mom_gemm *products, size_t count, mom_error *err);

/* A factor b that serves several products is packed once. */
typedef struct {
    void *dst; /* mom_gemm_packed_size bytes, aligned to 64 */
    mom_matrix b;
    const float *k_scale;
    size_t n, k;
    mom_dtype precision;
} mom_gemm_packing;

/* Smallest number of rows of a for which packing b in advance is faster, if the products are those of a few modules out
 * of many. With fewer rows most modules have no row, and a b that is read once is best read in place. */
size_t mom_gemm_least_prepack(const mom_kernels *k, mom_dtype precision);
size_t mom_gemm_packed_size(const mom_kernels *k, mom_dtype precision, size_t n, size_t kk);
mom_status mom_gemm_pack(const mom_exec *x, const mom_gemm_packing *packings, size_t count, mom_error *err);

#endif
