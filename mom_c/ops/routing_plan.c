/* Routing plan: a stable counting sort of the choices by module. Contracts: routing_plan.h. */
#include "ops/routing_plan.h"

#include <string.h>

#include "base/sizes.h"

#define PART_TOKENS ((size_t)512) /* tokens of a task */

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

/* Choices are sorted in parts of consecutive tokens. next (parts, M): first how many choices of a part are of each module,
 * then the slot that the part's next choice of the module gets. */
typedef struct {
    mom_routing_plan *plan;
    const int16_t *index;
    int32_t *next;
} sort_job;

static void count_part(const void *context, size_t begin, size_t end) {
    const sort_job *job = context;
    const size_t K = job->plan->K, M = job->plan->M;
    int32_t *count = job->next + begin / PART_TOKENS * M;
    memset(count, 0, M * sizeof *count);
    for (size_t choice = begin * K; choice < end * K; choice++)
        if ((size_t)job->index[choice] < M)
            count[job->index[choice]]++;
}

static void fill_part(const void *context, size_t begin, size_t end) {
    const sort_job *job = context;
    const mom_routing_plan *plan = job->plan;
    int32_t *next = job->next + begin / PART_TOKENS * plan->M;
    for (size_t t = begin; t < end; t++) {
        for (size_t k = 0; k < plan->K; k++) {
            const size_t choice = t * plan->K + k, m = (size_t)job->index[choice];
            if (m >= plan->M) {
                plan->slot[choice] = -1;
                continue;
            }
            const int32_t slot = next[m]++;
            plan->slot[choice] = slot;
            plan->token[slot] = (int32_t)t;
            plan->choice[slot] = (int32_t)k;
        }
    }
}

/* Slots are given out in order of (token, choice), so they rise by token within each module. */
static mom_status sort_choices(const mom_exec *x, mom_routing_plan *plan, mom_arena *arena, sort_job *job, mom_error *err) {
    const size_t M = plan->M, parts = mom_div_up(plan->N, PART_TOKENS);
    mom_parallel_rows(x, plan->N, PART_TOKENS, count_part, job);
    int32_t slots = 0;
    for (size_t m = 0; m < M; m++) {
        plan->offsets[m] = slots;
        for (size_t part = 0; part < parts; part++) {
            const int32_t count = job->next[part * M + m];
            job->next[part * M + m] = slots;
            slots += count;
        }
    }
    plan->offsets[M] = slots;
    plan->slots = (size_t)slots;
    MOM_TRY(allocate(plan, arena, err));
    mom_parallel_rows(x, plan->N, PART_TOKENS, fill_part, job);
    return MOM_OK;
}

static mom_status spread_evenly(mom_routing_plan *plan, mom_arena *arena, mom_error *err) {
    plan->slots = plan->N * (plan->K < plan->M ? plan->K : plan->M);
    for (size_t m = 0; m <= plan->M; m++)
        plan->offsets[m] = (int32_t)(plan->slots * m / plan->M);
    return allocate(plan, arena, err);
}

mom_status mom_routing_plan_init(const mom_exec *x, mom_routing_plan *plan, mom_arena *arena, const int16_t *index, size_t N,
                                 size_t K, size_t M, mom_error *err) {
    MOM_TRY(check_size(N, K, err));
    *plan = (mom_routing_plan){.N = N, .K = K, .M = M};
    sort_job job = {.plan = plan, .index = index};
    MOM_ARENA_NEW(plan->offsets, arena, M + 1, err);
    MOM_ARENA_NEW(job.next, arena, mom_div_up(N, PART_TOKENS) * M, err);
    return x->dry_run ? spread_evenly(plan, arena, err) : sort_choices(x, plan, arena, &job, err);
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
