/* Causal self-attention over mixed q, k, v; forward and backward.
 *
 * Scores are never stored: forward keeps the logarithm of each softmax's denominator, backward
 * computes the probabilities again from it. Work below the diagonal only, in blocks of queries.
 * Derivation: docs/derivations/attention.md.
 */
#ifndef MOM_OPS_ATTENTION_H
#define MOM_OPS_ATTENTION_H

#include "base/dropout.h"
#include "kernels/gemm.h"

typedef enum {
    MOM_MASKED_QUERY_CAUSAL,   /* a query that sees no real key attends evenly to its own past (itself included) */
    MOM_MASKED_QUERY_REFERENCE /* ... and evenly to the real keys of its future as well, as the reference */
} mom_masked_query;

typedef struct {
    size_t B, T, C, H; /* batch, sequence, channels, heads (H divides C) */
    float scale;       /* multiplies q . k */
    mom_masked_query masked_query;
    mom_dropout dropout; const int32_t *offsets; mom_dtype dtype; /* on the probabilities; index ((b*H + h)*T + i)*T + j */
} mom_attention_spec;

/* out (B*T, C); lse (B, H, T): log of the sum of exp(scores) (of the even weights for fully masked rows: unspecified);
 * qkv (B*T, 3C), q, k, v side by side, heads side by side in each; mask (B, T) of 0/1 or NULL: keys. */
mom_status mom_attention_forward(const mom_exec *x, float *out, float *lse, const float *qkv, const uint8_t *mask,
                                 const mom_attention_spec *spec, mom_error *err);

/* dqkv (B*T, 3C) is overwritten; dout, out (B*T, C). */
mom_status mom_attention_backward(const mom_exec *x, float *dqkv, const float *dout, const float *qkv,
                                  const float *out, const float *lse, const uint8_t *mask,
                                  const mom_attention_spec *spec, mom_error *err);

#endif
