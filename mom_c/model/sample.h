/* Choosing the next token from logits: greedy, temperature, top-k, top-p. */
#ifndef MOM_MODEL_SAMPLE_H
#define MOM_MODEL_SAMPLE_H

#include "kernels/kernels.h"

typedef struct {
    float temperature; /* 0: greedy (lowest id among equals) */
    size_t top_k;      /* 0: all */
    float top_p;       /* 1: all */
    size_t choices;    /* only ids below it can be chosen, as if there were no others; 0: all */
    const int32_t *banned; /* (num_banned) ids that cannot be chosen; ids from `choices` on are ignored */
    size_t num_banned;
    uint64_t seed, step; /* row b draws from the stream (seed, step, b) */
} mom_sampling;

/* tokens (B) from logits (B, V); rows with skip[b] are not written (skip NULL: none). Fails on NaN or +inf logits and
 * on rows without any token left; -inf rules a token out. */
mom_status mom_sample(const mom_exec *x, int32_t *tokens, const float *logits, const mom_sampling *s, const uint8_t *skip,
                      size_t B, size_t V, mom_error *err);

#endif
