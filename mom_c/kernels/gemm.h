/* Matrix products over packed micro-kernels: plain, with gathered rows, and grouped.
 *
 * SHAPES      c (m, n) = or += a (m, k) * b (k, n) + bias (n)
 * DEFINITION  for i, j: c[i][j] = (accumulate ? c[i][j] : bias ? bias[j] : 0) + sum_p a[i][p] * b[p][j]
 *             with a[i][p] = a.data[row(i) * a.rs + col(p) * a.cs], row(i) = a.row_index ? a.row_index[i] : i,
 *             and likewise for b; k_scale (k) multiplies b's row p.
 * OCCURS      m, n, k from 1 to some ten thousand; either of a and b transposed (by their strides);
 *             groups of very unequal m (routed layers) or k (gradients of weights).
 * BITS        each element of c is one chain of fused multiply-adds over p within a block of kc, blocks
 *             added in order: independent of threads, of the other rows and of the group.
 */
#ifndef MOM_KERNELS_GEMM_H
#define MOM_KERNELS_GEMM_H

#include "kernels/kernels.h"

typedef struct {
    const float *data;
    size_t rs, cs;            /* strides of rows and columns, in elements */
    const int32_t *row_index; /* NULL or one per row */
    const int32_t *col_index; /* NULL or one per column */
} mom_matrix;

typedef struct {
    size_t m, n, k;
    mom_matrix a, b;
    float *c;
    size_t ldc;
    const float *bias;    /* NULL or (n); ignored when accumulate */
    const float *k_scale; /* NULL or (k) */
    int accumulate;
} mom_gemm;

/* Row-major (rows, columns) matrix with row stride ld, and its transpose. */
static inline mom_matrix mom_matrix_rows(const float *data, size_t ld) { return (mom_matrix){data, ld, 1, NULL, NULL}; }
static inline mom_matrix mom_matrix_transposed(const float *data, size_t ld) { return (mom_matrix){data, 1, ld, NULL, NULL}; }

/* Runs `count` independent products (their c must not overlap) over all threads. */
mom_status mom_gemm_run(const mom_exec *x, const mom_gemm *problems, size_t count, mom_error *err);

/* One product on the calling thread, for use inside tasks. scratch holds mom_gemm_scratch floats,
 * 64-byte aligned. Same bits as mom_gemm_run. */
size_t mom_gemm_scratch(const mom_kernels *k, size_t n, size_t kk);
void mom_gemm_serial(const mom_kernels *k, const mom_gemm *problem, float *scratch);

#endif
