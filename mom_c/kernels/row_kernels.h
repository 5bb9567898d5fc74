/* Contracts of the kernels that work on rows and tiles of numbers: element-wise functions, sums, normalisation,
 * attention. */
#ifndef MOM_KERNELS_ROW_KERNELS_H
#define MOM_KERNELS_ROW_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/bf16.h"
#include "base/dropout.h"

/* Element-wise functions, and reductions. The order of a sum depends on n and the level only. */
typedef struct {
    void (*add)(float *out, const float *in, size_t n);                         /* out += in */
    void (*axpy)(float *out, float scale, const float *in, size_t n);           /* out += scale * in */
    void (*scale)(float *out, float factor, const float *in, size_t n);         /* out = factor * in; in place allowed */
    void (*multiply)(float *out, const float *a, const float *b, size_t n);     /* out = a * b; in place allowed */
    void (*multiply_add)(float *out, const float *a, const float *b, size_t n); /* out += a * b */
    /* GELU in its tanh form; in place allowed */
    void (*gelu_forward)(float *out, const float *in, size_t n);
    /* din = dout * gelu'(in); din may be dout */
    void (*gelu_backward)(float *din, const float *dout, const float *in, size_t n);
    /* d = factor * d * gelu'(in); returns the sum of the incoming d times gelu(in) */
    float (*gelu_backward_score)(float *d, const float *in, float factor, size_t n);
    /* out[i] = in[i] times the dropout factor of index first + i; in place allowed */
    void (*dropout)(float *out, const float *in, mom_dropout dropout, uint64_t first, size_t n);
    void (*to_bf16)(mom_bf16 *out, const float *in, size_t n); /* as mom_bf16_from_f32 */
    void (*from_bf16)(float *out, const mom_bf16 *in, size_t n);
    void (*exp)(float *out, const float *in, size_t n); /* tests use it; other kernels contain it */
    void (*tanh)(float *out, const float *in, size_t n);

    float (*dot)(const float *a, const float *b, size_t n);
    float (*sum)(const float *in, size_t n);
    double (*sum_squares)(const float *in, size_t n); /* accumulated in float64 */
    float (*max)(const float *in, size_t n);          /* -inf for n = 0 */
    /* out = exp(in * factor - offset), returns the sum of out; in place allowed. Exponents must not exceed 88, and do not
     * when the offset is the maximum. Results below the smallest normal number are 0. */
    float (*exp_sum)(float *out, const float *in, float factor, float offset, size_t n);
} mom_vec_kernels;

/* Layer normalisation of one row of n channels, with xhat = (in - mean) * rstd. */
typedef struct {
    void (*stats)(float *mean, float *rstd, const float *in, float eps, size_t n);
    /* out = xhat * weight + bias */
    void (*apply)(float *out, const float *in, float mean, float rstd, const float *weight, const float *bias, size_t n);
    /* dweight += dout * xhat, dbias += dout */
    void (*parameters)(float *dweight, float *dbias, const float *dout, const float *in, float mean, float rstd, size_t n);
    /* din += rstd * (g - avg(g) - xhat * avg(g * xhat)), where g = dxhat already contains the weight */
    void (*backward)(float *din, const float *dxhat, const float *in, float mean, float rstd, size_t n);
} mom_norm_kernels;

/* What the backward pass of the recurrent cell reads of one token. */
typedef struct {
    const float *gates;    /* as forward left them */
    const float *h_n;      /* (n) the part of h2h(state) that belongs to gate n */
    const float *state_in; /* (n) */
    const float *noise;    /* (n) or NULL */
} mom_gru_saved;

/* The cell of the recurrent router for one token of width n. Gates are rows of n numbers: r, i, n and, with noise, p.
 * With dev not 0 the reset gate r is left out of n. */
typedef struct {
    /* x and h hold the pre-activations x2h(x) and h2h(state), row by row of gates. Written: gates (activated values) and
     * state_out. noise is NULL or (n). */
    void (*forward)(float *gates, float *state_out, const float *x, const float *h, const float *state_in,
                    const float *noise, int dev, size_t n);
    /* dx, dh: gradients of the pre-activations, overwritten. dstate_in is overwritten with the direct path only; the
     * caller adds the path through h2h. */
    void (*backward)(float *dx, float *dh, float *dstate_in, const float *dstate_out, const mom_gru_saved *saved, int dev,
                     size_t n);
} mom_gru_kernels;

/* Positions of the queries in the columns of a tile, and of the keys in its rows; dropout indices of a head begin at
 * `first`, and a query has `keys_apart` of them. */
typedef struct {
    const int32_t *query, *key;
    size_t queries, keys; /* queries <= nr */
    uint64_t first, keys_apart;
} mom_tile_places;

/* Attention on a tile (rows, nr). Rows are keys. Columns are queries, each of which has a softmax of its own over the
 * keys of all tiles. Scores are `scale` times the tile; a score of -inf hides a key from a query. */
typedef struct {
    /* The next tile of an online softmax. max (nr) rises to the largest score so far, which is finite by then. The tile
     * becomes exp(score - max), and sum (nr) the sum of all these so far. factor (nr) is what the products with earlier
     * tiles must still be multiplied by; returns 0 if that is 1 in every column. Rows are summed in order. */
    int (*softmax)(float *tile, float *max, float *sum, float *factor, float scale, size_t rows);
    /* With p = exp(score - lse): dscores becomes p * (keep * dscores - delta), weights (the tile) becomes p * keep.
     * lse, delta (nr); keep (rows, nr), or NULL for 1. */
    void (*softmax_backward)(float *weights, float *dscores, const float *lse, const float *delta, const float *keep,
                             float scale, size_t rows);
    void (*scale)(float *tile, const float *factor, size_t rows); /* every row times factor (nr) */
    /* keep (keys, nr) = dropout factors of a tile's weights; 0 in columns without a query */
    void (*dropout)(float *keep, mom_dropout dropout, const mom_tile_places *places);
    /* out (rows / 2 rounded up, nr, 2): rows in pairs, as a packed factor b in bfloat16; a missing last row is 0 */
    void (*to_bf16)(mom_bf16 *out, const float *tile, size_t rows);
} mom_attention_kernels;

/* One step of AdamW, the same for all elements: step_size = lr / (1 - beta1^t), inv_bias2 = 1 / sqrt(1 - beta2^t),
 * decay = 1 - lr * weight_decay. */
typedef struct {
    float grad_scale; /* multiplies the gradient */
    float beta1, beta2, eps, step_size, inv_bias2, decay;
    int zero_grad; /* the gradient is 0 afterwards; otherwise it is only read */
} mom_adamw_factors;

typedef struct {
    void (*adamw)(float *param, float *grad, float *exp_avg, float *exp_avg_sq, const mom_adamw_factors *factors, size_t n);
} mom_optimizer_kernels;

/* What a core can do at most; used by benchmarks. The peaks run multiply-adds on registers only, of float32 and of
 * bfloat16 pairs (as float32 where the level has no instruction for pairs). *flop is the number of operations executed, 2
 * per product. The returned sums keep the compiler from leaving the work out. */
typedef struct {
    float (*peak_f32)(size_t rounds, double *flop);
    float (*peak_bf16)(size_t rounds, double *flop);
    /* out = a + factor * b, with plain stores, or past the caches if possible; all 64-byte aligned, n a multiple of 16 */
    void (*triad)(float *out, const float *a, const float *b, float factor, size_t n);
    void (*triad_stream)(float *out, const float *a, const float *b, float factor, size_t n);
    /* Sum of n 64-byte aligned floats, without the last n % 64, as fast as they can be read */
    float (*read_sum)(const float *in, size_t n);
} mom_yardsticks;

#endif
