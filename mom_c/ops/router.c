/* The table of the kinds of routers, and the calls through it. Contract: router.h.
 *
 * SOURCE  Shazeer et al. 2017, arXiv:1701.06538 (top-k routing).
 */
#include "ops/router.h"

#include "ops/router_functions.h"

#define PARAM(name, d0, d1, field) {name, {MOM_DIM_##d0, MOM_DIM_##d1}, offsetof(mom_router_tensors, field), 0.0f}

static const mom_router_param naive_params[] = {
    PARAM("router.0.weight", R, C, in_weight),
    PARAM("router.0.bias", R, NONE, in_bias),
    PARAM("router.2.weight", OUT, R, out_weight),
    PARAM("router.2.bias", OUT, NONE, out_bias),
};

static const mom_router_param recurrent_params[] = {
    PARAM("router.weight", OUT, R, out_weight),  PARAM("router.bias", OUT, NONE, out_bias),
    PARAM("h2h.weight", GATES, R, state_weight), PARAM("h2h.bias", GATES, NONE, state_bias),
    PARAM("x2h.weight", GATES, C, in_weight),    PARAM("x2h.bias", GATES, NONE, in_bias),
};

static const mom_router_param linear_params[] = {
    PARAM("router.weight", OUT, C, out_weight),
    PARAM("router.bias", OUT, NONE, out_bias),
};

static const mom_router_param norm_params[] = {
    PARAM("router.0.weight", R, C, in_weight),
    PARAM("router.bias", OUT, NONE, out_bias),
};

/* What a router may have beside its kind. */
static const mom_router_param norm_option[] = {
    {"layernorm.weight", {MOM_DIM_C, MOM_DIM_NONE}, offsetof(mom_router_tensors, norm_weight), 1.0f},
    PARAM("layernorm.bias", C, NONE, norm_bias),
};
static const mom_router_param embedding_option[] = {PARAM("round_embedding.weight", ROUNDS, C, round_embedding)};
static const mom_router_param bias_option[] = {PARAM("balance_bias", S, NONE, balance_bias)};

#define PARAMS(list) .params = list, .param_count = sizeof list / sizeof *list

const mom_router_type mom_router_types[MOM_ROUTER_KINDS] = {
    [MOM_ROUTER_NAIVE] = {.name = "naive", .scored = 1, PARAMS(naive_params), .hidden = 1, .hidden_forward = mom_naive_forward,
                          .hidden_backward = mom_naive_backward},
    [MOM_ROUTER_GRU_DEV] = {.name = "gru-dev", .recurrent = 1, .scored = 1, .gates = 3, PARAMS(recurrent_params), .hidden = 1,
                            .hidden_forward = mom_recurrent_forward, .hidden_backward = mom_recurrent_backward},
    [MOM_ROUTER_GRU] = {.name = "gru", .recurrent = 1, .scored = 1, .gates = 3, PARAMS(recurrent_params), .hidden = 1,
                        .hidden_forward = mom_recurrent_forward, .hidden_backward = mom_recurrent_backward},
    [MOM_ROUTER_HASH] = {.name = "hash", .outputs = mom_hash_outputs},
    [MOM_ROUTER_LINEAR] = {.name = "linear", .scored = 1, PARAMS(linear_params), .hidden_backward = mom_linear_router_backward},
    [MOM_ROUTER_NORM] = {.name = "norm", .scored = 1, PARAMS(norm_params), .hidden = 1, .hidden_forward = mom_norm_forward,
                         .hidden_backward = mom_norm_backward, .outputs = mom_norm_outputs,
                         .outputs_backward = mom_norm_outputs_backward},
};

size_t mom_router_dim_size(const mom_router_spec *spec, mom_router_dim dim) {
    const size_t sizes[MOM_DIMS] = {[MOM_DIM_C] = spec->C, [MOM_DIM_R] = spec->R, [MOM_DIM_S] = spec->S,
                                    [MOM_DIM_OUT] = spec->own_maps ? spec->rounds * spec->S : spec->S,
                                    [MOM_DIM_GATES] = mom_router_gates(spec) * spec->R, [MOM_DIM_ROUNDS] = spec->rounds};
    return sizes[dim];
}

typedef struct {
    const mom_router_param *params;
    size_t count;
} param_list;

/* List i of the parameters; count 0 if the router does not have them. */
static param_list params_of(const mom_router_spec *spec, int i) {
    const mom_router_type *type = mom_router_type_of(spec);
    const param_list lists[] = {{type->params, type->param_count}, {norm_option, spec->normed ? 2 : 0},
                                {embedding_option, spec->embedded != 0}, {bias_option, spec->biased != 0}, {NULL, 0}};
    return lists[i];
}

size_t mom_router_param_count(const mom_router_spec *spec) {
    size_t count = 0;
    for (int i = 0; params_of(spec, i).params || !i; i++)
        count += params_of(spec, i).count;
    return count;
}

const mom_router_param *mom_router_param_at(const mom_router_spec *spec, size_t i) {
    int list = 0;
    while (i >= params_of(spec, list).count)
        i -= params_of(spec, list++).count;
    return &params_of(spec, list).params[i];
}

mom_router_tensors mom_router_of_round(const mom_router_tensors *tensors, const mom_router_spec *spec, size_t round) {
    mom_router_tensors own = *tensors;
    if (!spec->own_maps)
        return own;
    const size_t width = mom_router_type_of(spec)->hidden ? spec->R : spec->C;
    if (own.out_weight)
        own.out_weight += round * spec->S * width;
    if (own.out_bias)
        own.out_bias += round * spec->S;
    return own;
}

float **mom_router_tensor(mom_router_tensors *tensors, const mom_router_param *param) {
    return (float **)(void *)((unsigned char *)tensors + param->offset);
}

mom_status mom_router_hidden_forward(const mom_exec *x, mom_router_saved *saved, const mom_router_inputs *in,
                                     const mom_router_spec *spec, mom_error *err) {
    const mom_router_type *type = mom_router_type_of(spec);
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    if (!type->hidden_forward)
        return MOM_OK;
    MOM_TRY(type->hidden_forward(x, saved, in, spec, err));
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

/* What the last map reads. */
static const float *map_input(const mom_router_saved *saved, const mom_router_inputs *in, const mom_router_spec *spec) {
    return mom_router_type_of(spec)->hidden ? saved->hidden : in->inp;
}

static size_t map_width(const mom_router_spec *spec) { return mom_router_type_of(spec)->hidden ? spec->R : spec->C; }

/* outputs = hidden values or inputs * out_weight^T + out_bias, or the kind's own */
mom_status mom_router_outputs_forward(const mom_exec *x, float *outputs, const mom_router_saved *saved,
                                      const mom_router_inputs *in, const mom_router_spec *spec, mom_error *err) {
    const mom_router_type *type = mom_router_type_of(spec);
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    if (type->outputs) {
        MOM_TRY(type->outputs(x, outputs, saved, in, spec, err));
    } else {
        const mom_router_map map = {in->weights->out_weight, in->weights->out_bias, map_width(spec), spec->S};
        MOM_TRY(mom_router_apply(x, outputs, map_input(saved, in, spec), &map, spec->few_rows, in->N, err));
    }
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

mom_status mom_router_forward(const mom_exec *x, float *logits, mom_router_saved *saved, const mom_router_inputs *in,
                              const mom_router_spec *spec, mom_error *err) {
    MOM_TRY(mom_router_hidden_forward(x, saved, in, spec, err));
    return mom_router_outputs_forward(x, logits, saved, in, spec, err);
}

mom_status mom_router_outputs_backward(const mom_exec *x, float **dhidden, mom_router_tensors *dweights, const float *dlogits,
                                       const mom_router_inputs *in, const mom_router_saved *saved,
                                       const mom_router_spec *spec, mom_error *err) {
    const mom_router_type *type = mom_router_type_of(spec);
    const mom_linear_shape shape = {MOM_WEIGHT_OUT_IN, in->N, map_width(spec), spec->S};
    *dhidden = NULL;
    if (!type->hidden_backward)
        return MOM_OK;
    MOM_ARENA_NEW(*dhidden, x->workspace, in->N * shape.In, err);
    if (type->outputs_backward) {
        type->outputs_backward(x, *dhidden, dweights, dlogits, in, saved, spec);
        return MOM_OK;
    }
    MOM_TRY(mom_linear_backward_input(x, *dhidden, dlogits, in->weights->out_weight, 0, &shape, err));
    return mom_linear_backward_weight(x, dweights->out_weight, dweights->out_bias, map_input(saved, in, spec), dlogits,
                                      &shape, err);
}

mom_status mom_router_hidden_backward(const mom_exec *x, const mom_router_gradients *out, float *dhidden,
                                      const float *dstate_out, const mom_router_inputs *in, const mom_router_saved *saved,
                                      const mom_router_spec *spec, mom_error *err) {
    const mom_router_type *type = mom_router_type_of(spec);
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    if (!type->hidden_backward)
        return MOM_OK;
    MOM_TRY(type->hidden_backward(x, out, dhidden, dstate_out, in, saved, spec, err));
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

mom_status mom_router_backward(const mom_exec *x, const mom_router_gradients *out, const float *dlogits,
                               const float *dstate_out, const mom_router_inputs *in, const mom_router_saved *saved,
                               const mom_router_spec *spec, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    float *dhidden;
    MOM_TRY(mom_router_outputs_backward(x, &dhidden, out->dweights, dlogits, in, saved, spec, err));
    MOM_TRY(mom_router_hidden_backward(x, out, dhidden, dstate_out, in, saved, spec, err));
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
