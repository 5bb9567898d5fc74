/* Routers that hash: the choices of a token depend on its id, the round and the half alone, and nothing has a gradient.
 *
 * The outputs of a token are the numbers S to 1 in this order. Those of the M modules, which are the first, are shuffled.
 *
 * SOURCE  Roller et al. 2021, arXiv:2106.04426 (hash layers). Formula: docs/derivations/router.md.
 */
#include "base/rng.h"
#include "ops/router_functions.h"

typedef struct {
    float *out; /* (N, S) */
    const mom_router_inputs *in;
    size_t S, M;
} hash_job;

static void hash_task(void *context, size_t task, int thread) {
    const hash_job *job = context;
    const mom_router_inputs *in = job->in;
    size_t begin, end;
    (void)thread;
    mom_range(in->N, mom_router_tasks(in->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        float *row = job->out + t * job->S;
        const uint64_t key = mom_rng_key((uint64_t)in->tokens[t], in->round, (uint64_t)in->half);
        for (size_t s = 0; s < job->S; s++)
            row[s] = (float)(job->S - s);
        for (size_t i = 0; i + 1 < job->M; i++) {
            const size_t j = i + (size_t)(mom_rng_u64(key, i) % (job->M - i));
            const float moved = row[i];
            row[i] = row[j];
            row[j] = moved;
        }
    }
}

mom_status mom_hash_outputs(const mom_exec *x, float *outputs, const mom_router_saved *saved, const mom_router_inputs *in,
                            const mom_router_spec *spec, mom_error *err) {
    (void)saved;
    if (!in->tokens)
        return mom_error_set(err, MOM_ERR_VALUE, "kind: a hash router reads the ids of tokens, which only a model has");
    hash_job job = {outputs, in, spec->S, spec->M};
    mom_parallel_for(x, mom_router_tasks(in->N), hash_task, &job);
    return MOM_OK;
}
