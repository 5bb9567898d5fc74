/* The table of kernels: what each computes, and the blocking sizes of the active instruction set.
 *
 * One table per level (baseline, avx2, avx512, avx512bf16, amx). Bodies in *.inc are compiled once per level by
 * level_<name>.c; the matrix micro-kernels are written by hand in gemm_ukr_<name>.c. kernels.c chooses
 * a table once. Kernels are serial, allocate nothing, keep no state and know no model; operators
 * split the work over threads. All arrays are contiguous float32 and, unless said otherwise, may be
 * unaligned and of any length (0 included). No two arguments overlap unless "in place" is said.
 */
#ifndef MOM_KERNELS_KERNELS_H
#define MOM_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/exec.h"

/* Layer normalisation of a factor while it is packed: element c of token t is
 * (value - mean[t]) * rstd[t] * weight[c] + bias[c]. */
typedef struct {
    const float *mean, *rstd;    /* by token */
    const float *weight, *bias;  /* by channel */
} mom_gemm_norm;

/* A factor of a product as it lies in memory: element (i, p) is data[row(i) * rs + col(p) * cs], where an index
 * replaces i or p. With a norm one of the strides is 1, the channels', and the other axis is the tokens': the rows
 * unless the matrix is flipped. */
typedef struct {
    const void *data;         /* of type dtype */
    size_t rs, cs;            /* strides of rows and columns, in elements */
    const int32_t *row_index; /* NULL or one per row */
    const int32_t *col_index; /* NULL or one per column */
    mom_dtype dtype;
    const mom_gemm_norm *norm; /* or NULL */
    int gelu;                  /* elements are gelu(element); one stride must be 1 */
    int flipped;               /* transposed: tokens are the columns (with a single channel both strides are 1) */
} mom_matrix;
#define MOM_FEW_ROWS 8
#define MOM_MOST_MR 12 /* largest mr of any level */
#define MOM_PANEL 64 /* outputs of a panel of the gemv kernels */

struct mom_kernels {
    const char *name; /* "baseline", "avx2", "avx512", "avx512bf16", "amx" */
    const char *gemm_name, *gemm_bf16_name;

    /* ---- matrix products (see gemm.h for the contract of packed panels) */
    size_t mr, nr; /* micro-tile */
    size_t mc, kc, nc; /* cache blocks: mc is a multiple of mr, nc of nr */
    size_t kc_bf16;    /* kc for factors in bfloat16, in steps of k */
    /* c (mr, nr) row stride ldc = or += a (kc, mr) * b (kc, nr). With accumulate 0 c is not read. `next` is memory that
     * will be read soon (the first kc / 4 lines of it may be fetched into the cache): any address. */
    void (*gemm_ukr)(size_t kc, const float *a, const float *b, float *c, size_t ldc, int accumulate, const void *next);
    /* The same bits from rows of a where they lie: row i is rows[i] (kc); or from columns, step p being the mr floats at
     * a + p * lda. NULL where packing is the better way. */
    void (*gemm_rows_ukr)(size_t kc, const float *const *rows, const float *b, float *c, size_t ldc, int accumulate,
                          const void *next);
    void (*gemm_columns_ukr)(size_t kc, const float *a, size_t lda, const float *b, float *c, size_t ldc, int accumulate,
                             const void *next);
    /* The same bits for the first `rows` rows, at most MOM_FEW_ROWS, of packed panels of mr; c has room for MOM_FEW_ROWS.
     * NULL where it would not pay. */
    void (*gemm_few_ukr)(size_t kc, size_t rows, const float *a, const float *b, float *c, size_t ldc, int accumulate);
    /* The same bits from a b (kc, nr) whose rows lie ldb apart; for all rows of a's panel and for few. */
    void (*gemm_b_rows_ukr)(size_t kc, const float *a, const float *b, size_t ldb, float *c, size_t ldc, int accumulate);
    void (*gemm_b_rows_few_ukr)(size_t kc, size_t rows, const float *a, const float *b, size_t ldb, float *c, size_t ldc,
                                int accumulate);
    void (*gemm_bf16_few_ukr)(size_t pairs, size_t rows, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                              int accumulate);
    /* As gemm_ukr with bfloat16 factors, two steps of k at a time: a (pairs, mr, 2), b (pairs, nr, 2). */
    void (*gemm_bf16_ukr)(size_t pairs, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc, int accumulate,
                          const void *next);
    /* The same bits from rows of a where they lie, row i being the pairs rows[i]; or from columns, step p being the mr
     * pairs lda * p pairs behind a. NULL where the level has none. */
    void (*gemm_bf16_rows_ukr)(size_t pairs, const mom_bf16 *const *rows, const mom_bf16 *b, float *c, size_t ldc,
                               int accumulate, const void *next);
    void (*gemm_bf16_columns_ukr)(size_t pairs, const mom_bf16 *a, size_t lda, const mom_bf16 *b, float *c, size_t ldc,
                                  int accumulate, const void *next);
    /* Products of bfloat16 on tile registers; the five entries are there together, or tile_items is 0 and they are NULL.
     * A tile takes tile_items pairs of steps at a time, a chunk: k is padded with zeros to whole ones in both factors.
     * c (panels * mr, nr) = or += a * b for 1 or 2 panels of a, one behind the other, as tiles_pack leaves them; b as
     * gemm_bf16_ukr's. The sum begins with c or zero and goes on chunk by chunk, whatever the number of panels. The first
     * 4 * panels lines per chunk of `next` may be fetched. */
    size_t tile_items;
    void (*tiles_ukr)(size_t chunks, size_t panels, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                      int accumulate, const void *next);
    /* A thread calls tiles_ukr between these; they set up its tile registers and give them back. */
    void (*tiles_begin)(void);
    void (*tiles_end)(void);
    /* Packs rows [i0, i0 + m), steps [p0, p0 + k) of src into panels (chunks, mr, tile_items, 2), rounded to nearest. Rows
     * past m and steps past k are zero. */
    void (*tiles_pack)(mom_bf16 *dst, const mom_matrix *src, size_t i0, size_t m, size_t p0, size_t k);
    /* Packs rows [i0, i0 + m), steps [p0, p0 + k) of src into panels of `width` rows. Panel q holds, step after step, one
     * item of 32 bits for each of its rows: in MOM_F32 the element of step p, in MOM_BF16 the pair of steps 2p and
     * 2p + 1 (rounded to nearest; k is padded with zeros to whole pairs, or to whole chunks of tiles). Rows past m are
     * zero. k_scale (all steps of src) or NULL multiplies step p. */
    void (*pack_factor)(void *dst, mom_dtype precision, size_t width, const mom_matrix *src, const float *k_scale,
                        size_t i0, size_t m, size_t p0, size_t k);
    /* out (n) += the sums over k of a panel (items, nr) of packed b; n <= nr */
    void (*panel_sums)(float *out, mom_dtype precision, const void *panel, size_t items, size_t n);
    /* Packs a (m, k) float32 block with element (i, p) at src[i * rs + p * cs] into panels of `width` rows:
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
    void (*gelu_forward)(float *out, const float *in, size_t n);            /* tanh form; in place allowed */
    void (*gelu_backward)(float *din, const float *dout, const float *in, size_t n); /* din = dout * gelu'(in); in place on dout allowed */
    /* d = factor * d * gelu'(in); returns the sum of the incoming d times gelu(in) */
    float (*gelu_backward_score)(float *d, const float *in, float factor, size_t n);
    void (*multiply)(float *out, const float *a, const float *b, size_t n);     /* out = a * b; in place allowed */
    void (*multiply_add)(float *out, const float *a, const float *b, size_t n); /* out += a * b */
    void (*to_bf16)(mom_bf16 *out, const float *in, size_t n);              /* to nearest, ties to even; NaN stays NaN */
    void (*from_bf16)(float *out, const mom_bf16 *in, size_t n);
    void (*exp)(float *out, const float *in, size_t n);                     /* exposed for tests */
    void (*tanh)(float *out, const float *in, size_t n);

    /* ---- reductions; the order of summation depends on n and the level only */
    float (*dot)(const float *a, const float *b, size_t n);
    float (*sum)(const float *in, size_t n);
    double (*sum_squares)(const float *in, size_t n); /* accumulated in float64 */
    float (*max)(const float *in, size_t n);          /* -inf for n = 0 */
    /* out = exp(in * factor - offset), returns the sum of out; in place allowed. For exponents up to 88, as they are
     * when the offset is the maximum; results below the smallest normal number are 0. */
    float (*exp_sum)(float *out, const float *in, float factor, float offset, size_t n);

    /* ---- attention, on a tile (rows, nr): rows are keys, columns are queries, each with a softmax of its own over
     * the keys of all tiles. Scores are scale times the tile; where that is -inf a key is hidden from a query. */
    /* The next tile of an online softmax: max (nr) rises to that of all scores so far (finite by then), tile becomes
     * exp(score - max), sum (nr) the sum of all those. factor (nr) is what products with the tiles before are still
     * to be multiplied by; returns 0 when that is 1 in every column. Rows are summed in order. */
    int (*softmax_tile)(float *tile, float *max, float *sum, float *factor, float scale, size_t rows);
    /* With p = exp(score - lse), dscores becomes p * (keep * dscores - delta) and weights, the tile, p * keep;
     * lse, delta (nr); keep (rows, nr) or NULL for 1. */
    void (*softmax_tile_backward)(float *weights, float *dscores, const float *lse, const float *delta,
                                  const float *keep, float scale, size_t rows);
    void (*scale_tile)(float *tile, const float *factor, size_t rows); /* every row times factor (nr) */
    /* out (rows / 2 rounded up, nr, 2): rows in pairs, as gemm_bf16_ukr takes its b; a missing last row is 0 */
    void (*tile_to_bf16)(mom_bf16 *out, const float *tile, size_t rows);

    /* ---- layer normalisation of one row of n channels */
    void (*layernorm_stats)(float *mean, float *rstd, const float *in, float eps, size_t n);
    /* out = (in - mean) * rstd * weight + bias */
    void (*layernorm_apply)(float *out, const float *in, float mean, float rstd, const float *weight, const float *bias, size_t n);
    /* dweight += dout * xhat, dbias += dout, with xhat = (in - mean) * rstd */
    void (*layernorm_parameters)(float *dweight, float *dbias, const float *dout, const float *in, float mean, float rstd,
                                 size_t n);
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
     * 1 / sqrt(1 - beta2^t), decay = 1 - lr * weight_decay, gscale multiplies the gradient. With zero_grad the
     * gradient is 0 afterwards, else it is only read. */
    void (*adamw)(float *param, float *grad, float *exp_avg, float *exp_avg_sq, float gscale, float beta1,
                  float beta2, float eps, float step_size, float inv_bias2, float decay, int zero_grad, size_t n);

    /* ---- yardsticks. Multiply-adds on registers only, of float32 and of bfloat16 pairs (as float32 where the level
     * has no instruction); *flop is what was executed, 2 per product. The sum is there to be used. */
    float (*peak_f32)(size_t rounds, double *flop);
    float (*peak_bf16)(size_t rounds, double *flop);
    /* out = a + factor * b, with plain stores or past the caches if possible; all 64-byte aligned, n a multiple of 16 */
    void (*triad)(float *out, const float *a, const float *b, float factor, size_t n);
    void (*triad_stream)(float *out, const float *a, const float *b, float factor, size_t n);
    /* Sum of n 64-byte aligned floats but for the last n % 64, as fast as they can be read */
    float (*read_sum)(const float *in, size_t n);
};

/* Levels this machine can run, best last; NULL-terminated list of names. */
const char *const *mom_kernels_available(void);
/* The table of a level; NULL if unknown or not supported here. */
const mom_kernels *mom_kernels_get(const char *level);
/* The best table of this machine. */
const mom_kernels *mom_kernels_best(void);

#endif
