/* Which token goes to which module: tokens sorted by module (dispatch), and the way back (combine).
 *
 * A "slot" is one (token, choice) pair whose choice is a module; slots are ordered by module, then by
 * token. Choices that mean SKIP (index >= M) have no slot, so skipped work is never done.
 */
#ifndef MOM_OPS_ROUTING_PLAN_H
#define MOM_OPS_ROUTING_PLAN_H

#include "base/exec.h"

typedef struct {
    size_t N, K, M;   /* tokens, choices per token, modules */
    size_t slots;     /* number of slots, at most N * K */
    int32_t *offsets; /* (M + 1) slots of module m are offsets[m] .. offsets[m+1]-1 */
    int32_t *token;   /* (slots) token of a slot, rising within a module */
    int32_t *choice;  /* (slots) which of the token's K choices */
    int32_t *slot;    /* (N, K) slot of a choice, -1 for SKIP */
} mom_routing_plan;

static inline size_t mom_module_slots(const mom_routing_plan *plan, size_t m) {
    return (size_t)(plan->offsets[m + 1] - plan->offsets[m]);
}

/* index (N, K), values >= 0; a token must not choose a module twice. Arrays come from `arena`.
 * Fails with MOM_ERR_VALUE when N * K does not fit 31 bits.
 * In a dry run the choices are unknown. The plan then has the most slots that N tokens with K choices can take, spread
 * evenly over the modules, and only its offsets are defined. */
mom_status mom_routing_plan_init(const mom_exec *x, mom_routing_plan *plan, mom_arena *arena, const int16_t *index, size_t N,
                                 size_t K, size_t M, mom_error *err);

/* Every module for every token (K = M), slot of (t, m) = m * N + t. */
mom_status mom_routing_plan_init_dense(const mom_exec *x, mom_routing_plan *plan, mom_arena *arena, size_t N, size_t M,
                                       mom_error *err);

#endif
