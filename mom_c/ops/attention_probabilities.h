/* Probabilities of attention as numbers to look at. Operators that compute with them never store them (ops/attention.h). */
#ifndef MOM_OPS_ATTENTION_PROBABILITIES_H
#define MOM_OPS_ATTENTION_PROBABILITIES_H

#include "ops/attention.h"

/* out (count, H, T, T): of the sequences `rows`, for each query the probabilities of all keys, without dropout. Rows of queries
 * that are inactive or lie beyond the end of a sequence are 0. qkv and spec as for mom_attention_forward. */
mom_status mom_attention_probabilities(const mom_exec *x, float *out, const void *qkv, const mom_attention_spec *spec,
                                       const int32_t *rows, size_t count, mom_error *err);

#endif
