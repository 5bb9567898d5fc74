/* Balance without a loss: a bias for each choice of a router, which changes what is chosen but not its weight. Backward leaves
 * a count in place of the bias's gradient: how many more tokens made the choice than its equal share. A step lowers the bias
 * of the choices that are above it and raises the others, all by the same rate.
 *
 * SOURCE  Wang et al. 2024, arXiv:2408.15664. Derivation: docs/derivations/balance_loss.md.
 */
#ifndef MOM_MODEL_BALANCE_BIAS_H
#define MOM_MODEL_BALANCE_BIAS_H

#include "model/gradients.h"

/* The step of all biases with a count since gradients were last zeroed, in floats [begin, end) of the parameters' block. */
void mom_balance_biases(const mom_params *params, const mom_gradients *gradients, float rate, size_t begin, size_t end);

#endif
