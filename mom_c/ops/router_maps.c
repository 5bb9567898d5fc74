/* What several kinds of routers use: linear maps over all tokens. */
#include "ops/gemv.h"
#include "ops/router_functions.h"

mom_status mom_router_apply(const mom_exec *x, float *out, const float *inp, const mom_router_map *map, int few_rows,
                            size_t N, mom_error *err) {
    const mom_linear_shape shape = {MOM_WEIGHT_OUT_IN, N, map->In, map->Out};
    if (!few_rows)
        return mom_linear_forward(x, out, inp, map->weight, map->bias, 0, &shape, err);
    const mom_gemv_matrix matrix = {MOM_GEMV_F32, MOM_WEIGHT_OUT_IN, map->weight, NULL, map->In, map->Out};
    const mom_gemv gemv = {.out = out, .x = inp, .matrix = &matrix, .bias = map->bias, .rows = N};
    return mom_gemv_run(x, &gemv, 1, err);
}

mom_status mom_router_to_logits(const mom_exec *x, float *logits, const mom_router_saved *saved, const mom_router_inputs *in,
                                const mom_router_spec *spec, mom_error *err) {
    const mom_router_map map = {in->weights->out_weight, in->weights->out_bias, spec->R, spec->S};
    return mom_router_apply(x, logits, saved->hidden, &map, spec->few_rows, in->N, err);
}

mom_status mom_router_to_logits_backward(const mom_exec *x, float **dhidden, mom_router_tensors *dweights, const float *dlogits,
                                         const mom_router_saved *saved, const mom_router_inputs *in,
                                         const mom_router_spec *spec, mom_error *err) {
    const mom_linear_shape shape = {MOM_WEIGHT_OUT_IN, in->N, spec->R, spec->S};
    MOM_ARENA_NEW(*dhidden, x->workspace, in->N * spec->R, err);
    MOM_TRY(mom_linear_backward_input(x, *dhidden, dlogits, in->weights->out_weight, 0, &shape, err));
    return mom_linear_backward_weight(x, dweights->out_weight, dweights->out_bias, saved->hidden, dlogits, &shape, err);
}
