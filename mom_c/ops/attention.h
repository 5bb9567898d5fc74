/* Causal self-attention over mixed q, k, v; forward and backward.
 *
 * Shapes  N rows are the tokens of B sequences one after the other, without padding when their lengths differ
 *         qkv, dqkv (N, 3C): q, k, v side by side, heads side by side in each; out, dout (N, C); lse (N, H)
 * Maths   out_i = sum over keys j <= i of p_ij v_j, p_i = softmax of scale * q_i . k_j over them
 * Saved   lse_i = log of the sum of exp(scores), for backward; scores and probabilities are never stored
 *
 * An inactive token has q = k = v = 0 by definition, and its row of qkv is not read. As a key it has its share exp(0) of every
 * softmax, which is counted and not computed. As a query it is left out: its rows of out and dqkv become zero.
 * A token that is not among `queries` is also left out as a query. Its q and its rows of out, lse and dout are neither read
 * nor written, and the part of dqkv for its q is undefined.
 * Derivation: docs/derivations/attention.md.
 */
#ifndef MOM_OPS_ATTENTION_H
#define MOM_OPS_ATTENTION_H

#include <math.h>

#include "base/bf16.h"
#include "base/dropout.h"
#include "gemm/gemm.h"

typedef enum {
    MOM_MASKED_QUERY_CAUSAL,   /* a query that sees no real key attends evenly to its own past (itself included) */
    MOM_MASKED_QUERY_REFERENCE /* ... and evenly to the real keys of its future as well, as the reference */
} mom_masked_query;

typedef struct {
    size_t B, T, C, H; /* sequences, length of the longest, channels, heads (H divides C) */
    float scale;       /* multiplies q . k */
    mom_masked_query masked_query;
    mom_dropout dropout;    /* on the probabilities; index ((b*H + h)*T + i)*T + j, i and j within the sequence */
    const int32_t *offsets; /* (B + 1) sequence b is rows offsets[b] .. offsets[b+1]-1; NULL: rows b*T .. (b+1)*T-1 */
    mom_dtype dtype;        /* of qkv, out, dout and dqkv; softmax and sums are float32 */
    const uint8_t *mask;    /* (N) or NULL: all; 0 where a token is no key */
    const uint8_t *active;  /* (N) or NULL: all; 0 where a token has no module */
    const uint8_t *queries; /* (N) or NULL: all; 0 where a token is a key, but its own output is of no use */
} mom_attention_spec;

/* The usual scale of scores. */
static inline float mom_attention_scale(size_t head_channels) { return 1.0f / sqrtf((float)head_channels); }

/* lse of rows that see no real key, and of inactive ones, is 0. */
mom_status mom_attention_forward(const mom_exec *x, void *out, float *lse, const void *qkv, const mom_attention_spec *spec,
                                 mom_error *err);

/* dqkv is overwritten. Rows of dout of inactive tokens are not read. */
mom_status mom_attention_backward(const mom_exec *x, void *dqkv, const void *dout, const void *qkv, const void *out,
                                  const float *lse, const mom_attention_spec *spec, mom_error *err);

#endif
