#include "model/coupling.h"

#include "model/pool.h"
#include "ops/coupling_loss.h"

/* The half's router and modules. Each half has random numbers of its own. */
static mom_coupling coupling_of(const mom_pass *pass, const mom_params *params, size_t i, int half) {
    const mom_pool *pool = mom_place_pool(&params->places[i], half);
    const mom_pool_tensors *w = &pool->weight;
    const mom_packed_pool unpacked = {0};
    return (mom_coupling){.map = pool->router_weight.out_weight, .maps = pool->spec.own_maps ? pool->spec.rounds : 1,
                          .S = pool->S, .M = pool->M, .C = pool->spec.C,
                          .ln_weight = (const float *const *)w->ln_weight, .ln_bias = (const float *const *)w->ln_bias,
                          .ln_eps = pass->config->ln_eps, .layer = mom_half_in_layer(pool, &unpacked),
                          .training = pass->training,
                          .key = mom_rng_key(mom_pass_key(pass, MOM_STREAM_COUPLING), i, (uint64_t)half)};
}

static size_t count_halves(const mom_params *params) {
    size_t count = 0;
    for (size_t i = 0; i < params->num_places; i++)
        for (int half = 0; half < 2; half++)
            count += (size_t)mom_is_coupled(&params->places[i], half);
    return count;
}

mom_status mom_coupling_total(const mom_pass *pass, const mom_params *params, double *mean, int *any) {
    const size_t count = count_halves(params);
    double sum = 0.0;
    for (size_t i = 0; i < params->num_places; i++)
        for (int half = 0; half < 2; half++) {
            const mom_coupling coupling = coupling_of(pass, params, i, half);
            if (mom_is_coupled(&params->places[i], half))
                MOM_TRY(mom_coupling_loss_add(pass->exec, &sum, &coupling, pass->err));
        }
    *any = count > 0;
    if (count)
        *mean = sum / (double)count;
    return MOM_OK;
}

mom_status mom_coupling_total_backward(const mom_pass *pass, const mom_params *params, const mom_gradients *g, float scale) {
    const float each = scale / (float)count_halves(params);
    for (size_t i = params->num_places; i-- > g->lowest_place;)
        for (int half = 1; half >= 0; half--) {
            const mom_coupling coupling = coupling_of(pass, params, i, half);
            const mom_half_gradient gradient = mom_half_in_gradient(&g->pools[i][half]);
            if (mom_is_coupled(&params->places[i], half))
                MOM_TRY(mom_coupling_loss_backward(pass->exec, g->pools[i][half].router.out_weight, &gradient, &coupling, each,
                                                   pass->err));
        }
    return MOM_OK;
}
