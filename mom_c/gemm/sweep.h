/* A sweep: one block of c from one block of a and one of b, on the calling thread. For the files of gemm/ only. */
#ifndef MOM_GEMM_SWEEP_H
#define MOM_GEMM_SWEEP_H

#include "gemm/blocking.h"

/* A block of a. Rows before first_packed are read where they lie, by rows or by columns; the others are packed. */
typedef struct {
    const mom_item *packed;   /* from row first_packed on */
    size_t first_packed;
    const float *const *rows; /* NULL, or each row's place at the block's first step */
    const float *columns;     /* NULL, or row 0 at the block's first step; the next step lies lda further */
    size_t lda;
} mom_gemm_block;

/* c (m, n) = or += a (m, depth) * b (depth, n) */
typedef struct {
    const mom_kernels *k;
    mom_dtype precision;
    size_t m, n, depth; /* depth in items */
    mom_gemm_block a;
    float *c;
    size_t ldc;
    int accumulate;
} mom_gemm_sweep;

/* With packed b. `after` is what the caller reads next; parts of it are fetched. */
void mom_sweep(const mom_gemm_sweep *s, const mom_item *b, const mom_item *after);
/* One panel of c, at c instead of s->c, with a panel of a float32 b (depth, nr) where it lies, row stride ldb. a is packed. */
void mom_sweep_b_rows(const mom_gemm_sweep *s, const float *b, size_t ldb, float *c);

#endif
