/* Load-balancing loss over a set of router outputs: S * sum_m f_m * P_m.
 *
 * f_m is the share of (unmasked) tokens whose largest score is choice m (no gradient); P_m the mean
 * probability of choice m. Pooling over rounds and blocks is the caller's: it accumulates several
 * score arrays into the same counts and sums. Source: Fedus et al., arXiv:2101.03961, eq. 4-6;
 * derivation and the two definitions in docs/derivations/balance_loss.md.
 */
#ifndef MOM_OPS_BALANCE_LOSS_H
#define MOM_OPS_BALANCE_LOSS_H

#include "kernels/kernels.h"

/* counts (S), prob_sums (S): float64, added to; *tokens += unmasked tokens. scores (N, S); mask (N) of 0/1 or NULL.
 * softmax: whether probabilities are the softmax of the scores (1) or the scores themselves (0).
 * The sum over tokens is made in fixed chunks of rows. */
mom_status mom_balance_accumulate(const mom_exec *x, double *counts, double *prob_sums, double *tokens,
                                  const float *scores, const uint8_t *mask, int softmax, size_t N, size_t S,
                                  mom_error *err);

/* S * sum_m (counts[m] / count_tokens) * (prob_sums[m] / tokens); 0 when there is no token. */
double mom_balance_loss(const double *counts, double count_tokens, const double *prob_sums, double tokens, size_t S);

/* dscores (N, S) added to: scale * d(loss)/d(scores). */
void mom_balance_backward(const mom_exec *x, float *dscores, const float *scores, const uint8_t *mask,
                          const double *counts, double count_tokens, double tokens, float scale, int softmax, size_t N,
                          size_t S);

#endif
