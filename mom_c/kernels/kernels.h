/* The table of kernels: what each computes, and the blocking sizes of the active instruction set.
 *
 * One table per level (baseline, avx2, avx512, avx512bf16). Bodies in *.inc are compiled once per level by
 * level_<name>.c; the matrix micro-kernels are written by hand in gemm_ukr_<name>.c. kernels.c chooses
 * a table once. Kernels are serial, allocate nothing, keep no state and know no model; operators
 * split the work over threads. All arrays are contiguous float32 and, unless said otherwise, may be
 * unaligned and of any length (0 included). No two arguments overlap unless "in place" is said.
 */
#ifndef MOM_KERNELS_KERNELS_H
#define MOM_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/bf16.h"
#include "base/status.h"

#define MOM_PANEL 64 /* outputs of a panel of the gemv kernels */

typedef struct mom_kernels {
    const char *name; /* "baseline", "avx2", "avx512", "avx512bf16" */
    const char *gemm_name, *gemm_bf16_name;

    /* ---- matrix products (see gemm.h for the contract of packed panels) */
    size_t mr, nr; /* micro-tile */
    size_t mc, kc, nc; /* cache blocks: mc is a multiple of mr, nc of nr */
    /* c (mr, nr) row stride ldc = or += a (kc, mr) * b (kc, nr). With accumulate 0 c is not read. */
    void (*gemm_ukr)(size_t kc, const float *a, const float *b, float *c, size_t ldc, int accumulate);
    /* The same with bfloat16 factors, two steps of k at a time: a (pairs, mr, 2), b (pairs, nr, 2). */
    void (*gemm_bf16_ukr)(size_t pairs, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc, int accumulate);
    /* Packs a (m, k) block with element (i, p) at src[i * rs + p * cs] into panels of `width` rows:
     * panel q holds, for p = 0..k-1, elements q*width .. q*width+width-1 of column p; rows past m are
     * zero. row_index (m) or NULL replaces i, col_index (k) or NULL replaces p; col_scale (k) or NULL
     * multiplies column p. */
    void (*pack)(float *dst, size_t width, const float *src, size_t rs, size_t cs, const int32_t *row_index,
                 const int32_t *col_index, const float *col_scale, size_t m, size_t k);

    /* ---- products of a few rows x (rows, k), row stride ldx, with a matrix that is read once; out (rows, n) has
     * row stride ldo. Each row's result has the same bits whatever the other rows are.
     * Panels hold MOM_PANEL outputs for every step of k, the last of a matrix padded with zeros; n <= MOM_PANEL of
     * them are written. float32: (k, MOM_PANEL). bfloat16: (k, 2, 16, 2), output 32 g + 16 h + i at (g, i, h).
     * int8: (k, 16, 4), output 16 b + i at (i, b), to be multiplied by scale (n). */
    void (*gemv_panel_f32)(float *out, size_t ldo, const float *x, size_t ldx, const float *w, size_t rows, size_t k,
                           size_t n);
    void (*gemv_panel_bf16)(float *out, size_t ldo, const float *x, size_t ldx, const mom_bf16 *w, size_t rows,
                            size_t k, size_t n);
    void (*gemv_panel_i8)(float *out, size_t ldo, const float *x, size_t ldx, const int8_t *w, const float *scale,
                          size_t rows, size_t k, size_t n);
    /* out = x * w^T with w (n, k) */
    void (*gemv_dots)(float *out, size_t ldo, const float *x, size_t ldx, const float *w, size_t rows, size_t k,
                      size_t n);
    /* out += x * w with w (k, n), row stride ldw */
    void (*gemv_axpys)(float *out, size_t ldo, const float *x, size_t ldx, const float *w, size_t ldw, size_t rows,
                       size_t k, size_t n);

    /* ---- element-wise */
    void (*add)(float *out, const float *in, size_t n);                     /* out += in */
    void (*axpy)(float *out, float scale, const float *in, size_t n);       /* out += scale * in */
    void (*scale)(float *out, float factor, const float *in, size_t n);     /* out = factor * in; in place allowed */
    void (*gelu_forward)(float *out, const float *in, size_t n);            /* tanh form */
    void (*gelu_backward)(float *din, const float *dout, const float *in, size_t n); /* din = dout * gelu'(in); in place on dout allowed */
    void (*to_bf16)(mom_bf16 *out, const float *in, size_t n);              /* to nearest, ties to even; NaN stays NaN */
    void (*from_bf16)(float *out, const mom_bf16 *in, size_t n);
    void (*exp)(float *out, const float *in, size_t n);                     /* exposed for tests */
    void (*tanh)(float *out, const float *in, size_t n);

    /* ---- reductions; the order of summation depends on n and the level only */
    float (*dot)(const float *a, const float *b, size_t n);
    float (*sum)(const float *in, size_t n);
    double (*sum_squares)(const float *in, size_t n); /* accumulated in float64 */
    float (*max)(const float *in, size_t n);          /* -inf for n = 0 */
    /* out = exp(in * factor - offset), returns the sum of out; in place allowed */
    float (*exp_sum)(float *out, const float *in, float factor, float offset, size_t n);

    /* ---- layer normalisation of one row of n channels */
    void (*layernorm_stats)(float *mean, float *rstd, const float *in, float eps, size_t n);
    /* out = (in - mean) * rstd * weight + bias */
    void (*layernorm_apply)(float *out, const float *in, float mean, float rstd, const float *weight, const float *bias, size_t n);
    /* din += rstd * (g - avg(g) - xhat * avg(g * xhat)) with g = dxhat given (weight already applied) */
    void (*layernorm_backward)(float *din, const float *dxhat, const float *in, float mean, float rstd, size_t n);

    /* ---- recurrent router cell, one token of width n; rows of gates are r, i, n and, if noise, p.
     * x and h hold the pre-activations x2h(x) and h2h(state) with the same row order. Written: gates
     * (activated values), state_out. dev != 0 leaves the reset gate out of n. noise is NULL or (n). */
    void (*gru_forward)(float *gates, float *state_out, const float *x, const float *h, const float *state_in,
                        const float *noise, int dev, size_t n);
    /* dx, dh: gradients of the pre-activations (overwritten); dstate_in overwritten with the direct path
     * only (the path through h2h is added by the caller). h_n is the n part of h as in forward. */
    void (*gru_backward)(float *dx, float *dh, float *dstate_in, const float *dstate_out, const float *gates,
                         const float *h_n, const float *state_in, const float *noise, int dev, size_t n);

    /* ---- optimizer: AdamW on n elements, in place. step_size = lr / (1 - beta1^t), inv_bias2 =
     * 1 / sqrt(1 - beta2^t), decay = 1 - lr * weight_decay, gscale multiplies the gradient. */
    void (*adamw)(float *param, const float *grad, float *exp_avg, float *exp_avg_sq, float gscale, float beta1,
                  float beta2, float eps, float step_size, float inv_bias2, float decay, size_t n);
} mom_kernels;

/* What an operator needs besides its arguments. */
typedef struct mom_exec {
    const mom_kernels *k;
    int threads;
    mom_arena *workspace; /* temporaries; operators release what they take */
} mom_exec;

/* Levels this machine can run, best last; NULL-terminated list of names. */
const char *const *mom_kernels_available(void);
/* The table of a level; NULL if unknown or not supported here. */
const mom_kernels *mom_kernels_get(const char *level);
/* The best table of this machine. */
const mom_kernels *mom_kernels_best(void);

#endif
