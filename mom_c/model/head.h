/* The end of the network: final LayerNorm, tied head or classifier, and their losses. */
#ifndef MOM_MODEL_HEAD_H
#define MOM_MODEL_HEAD_H

#include "model/activations.h"

/* hidden from x; then, for labels in the batch, the loss. With `keep` the gradients of a language model's head are
 * computed along with the loss, so that no logit is computed twice. Those of wte stay at the bottom of the workspace
 * until backward adds them, unless `embeddings` is 0: nobody wants them. */
mom_status mom_head_forward(mom_activations *a, const mom_params *params, const mom_batch *batch, int embeddings);

/* Adds the head's gradients, times `scale`, to those of the parameters. dhidden (N, C) gets that of hidden; NULL if only a
 * classifier's own parameters are trained. A language model's is the one that forward computed. */
mom_status mom_head_backward(mom_activations *a, const mom_params *params, mom_gradients *gradients, float *dhidden,
                             float scale);

/* Logits at the given rows of the N, or with rows NULL at all: out (count, V). An error for rows that nobody wanted. */
mom_status mom_head_logits(const mom_activations *a, const mom_exec *x, const mom_params *params, float *out,
                           const int32_t *rows, size_t count, mom_error *err);

#endif
