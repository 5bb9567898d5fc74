/* Products of a few rows with a weight matrix, for generating token by token: the matrix is read once.
 *
 * SHAPES      out (rows, n), x (rows, k), matrix (k, n) in one of the formats below, bias (n)
 * DEFINITION  out = act(x W + bias), act the identity or GELU
 * FORMATS     float32 as the model stores it, [in, out] or [out, in], read in place; bfloat16 and int8 as copies in
 *             panels of MOM_PANEL outputs (kernels.h), int8 with one scale per output: w = scale * integer in
 *             [-127, 127], the largest of a column at 127.
 * BITS        a row's result does not depend on the other rows, on the group or on the threads
 */
#ifndef MOM_OPS_GEMV_H
#define MOM_OPS_GEMV_H

#include "ops/linear.h"

typedef enum { MOM_GEMV_F32, MOM_GEMV_BF16, MOM_GEMV_INT8 } mom_gemv_format;

typedef struct {
    mom_gemv_format format;
    mom_weight_layout layout; /* float32 only */
    const void *data;
    const float *scale; /* int8 only: (n) */
    size_t k, n;
} mom_gemv_matrix;

typedef struct {
    float *out;
    const float *x;
    const mom_gemv_matrix *matrix;
    const float *bias; /* or NULL */
    size_t rows;
    int gelu;
} mom_gemv;

/* Runs `count` products (their out must not overlap) over all threads. */
mom_status mom_gemv_run(const mom_exec *x, const mom_gemv *products, size_t count, mom_error *err);

/* Bytes of a copy of a (k, n) matrix in a format other than float32, scales included: a multiple of MOM_ALIGNMENT. */
size_t mom_gemv_packed_bytes(mom_gemv_format format, size_t k, size_t n);

/* Writes the copy to `data` (mom_gemv_packed_bytes, aligned) and describes it in *matrix. */
void mom_gemv_pack(const mom_exec *x, mom_gemv_matrix *matrix, void *data, mom_gemv_format format, const float *weight,
                   mom_weight_layout layout, size_t k, size_t n);

#endif
