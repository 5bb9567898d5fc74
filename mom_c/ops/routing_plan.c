/* Routing plan: a stable counting sort of the choices by module. Contracts: routing_plan.h.
 *
 * Two passes over index (N, K) and one over M. They are serial, because a few operations per choice are little beside the
 * products of a whole row of a module.
 */
#include "ops/routing_plan.h"

#include <string.h>

static mom_status check_size(size_t N, size_t K, mom_error *err) {
    if (K && N > INT32_MAX / K)
        return mom_error_set(err, MOM_ERR_VALUE,
                             "index: %zu tokens with %zu choices each, expected at most %ld choices in all", N, K,
                             (long)INT32_MAX);
    return MOM_OK;
}

static mom_status allocate(mom_routing_plan *plan, mom_arena *arena, mom_error *err) {
    MOM_ARENA_NEW(plan->token, arena, plan->slots, err);
    MOM_ARENA_NEW(plan->choice, arena, plan->slots, err);
    MOM_ARENA_NEW(plan->slot, arena, plan->N * plan->K, err);
    return MOM_OK;
}

/* Slots are given out in order of (token, choice), so they rise by token within each module. Meanwhile offsets[m] is the next
 * free slot of module m. */
static mom_status sort_choices(mom_routing_plan *plan, mom_arena *arena, const int16_t *index, mom_error *err) {
    const size_t choices = plan->N * plan->K, M = plan->M;
    MOM_ARENA_NEW(plan->offsets, arena, M + 1, err);
    int32_t *offsets = plan->offsets;

    /* pass 1: count */
    memset(offsets, 0, (M + 1) * sizeof *offsets);
    for (size_t i = 0; i < choices; i++)
        if ((size_t)index[i] < M)
            offsets[(size_t)index[i] + 1]++;
    for (size_t m = 0; m < M; m++)
        offsets[m + 1] += offsets[m];
    plan->slots = (size_t)offsets[M];
    MOM_TRY(allocate(plan, arena, err));

    /* pass 2: give out slots */
    for (size_t t = 0; t < plan->N; t++) {
        for (size_t k = 0; k < plan->K; k++) {
            const size_t choice = t * plan->K + k, m = (size_t)index[choice];
            if (m >= M) {
                plan->slot[choice] = -1;
                continue;
            }
            const int32_t slot = offsets[m]++;
            plan->slot[choice] = slot;
            plan->token[slot] = (int32_t)t;
            plan->choice[slot] = (int32_t)k;
        }
    }

    /* Each offset has moved on to its module's end, which is the next module's beginning. */
    memmove(offsets + 1, offsets, M * sizeof *offsets);
    offsets[0] = 0;
    return MOM_OK;
}

static mom_status spread_evenly(mom_routing_plan *plan, mom_arena *arena, mom_error *err) {
    plan->slots = plan->N * (plan->K < plan->M ? plan->K : plan->M);
    MOM_ARENA_NEW(plan->offsets, arena, plan->M + 1, err);
    for (size_t m = 0; m <= plan->M; m++)
        plan->offsets[m] = (int32_t)(plan->slots * m / plan->M);
    return allocate(plan, arena, err);
}

mom_status mom_routing_plan_init(const mom_exec *x, mom_routing_plan *plan, mom_arena *arena, const int16_t *index, size_t N,
                                 size_t K, size_t M, mom_error *err) {
    MOM_TRY(check_size(N, K, err));
    *plan = (mom_routing_plan){.N = N, .K = K, .M = M};
    return x->dry_run ? spread_evenly(plan, arena, err) : sort_choices(plan, arena, index, err);
}

/* All slots of one module. */
static void fill_dense_task(void *context, size_t m, int thread) {
    const mom_routing_plan *plan = context;
    const size_t N = plan->N, M = plan->M;
    (void)thread;
    for (size_t t = 0; t < N; t++) {
        const size_t slot = m * N + t;
        plan->token[slot] = (int32_t)t;
        plan->choice[slot] = (int32_t)m;
        plan->slot[t * M + m] = (int32_t)slot;
    }
}

mom_status mom_routing_plan_init_dense(const mom_exec *x, mom_routing_plan *plan, mom_arena *arena, size_t N, size_t M,
                                       mom_error *err) {
    MOM_TRY(check_size(N, M, err));
    *plan = (mom_routing_plan){.N = N, .K = M, .M = M, .slots = N * M};
    MOM_ARENA_NEW(plan->offsets, arena, M + 1, err);
    MOM_TRY(allocate(plan, arena, err));
    for (size_t m = 0; m <= M; m++)
        plan->offsets[m] = (int32_t)(m * N);
    mom_parallel_for(x, M, fill_dense_task, plan);
    return MOM_OK;
}
