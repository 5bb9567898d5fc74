/* Routing plans and routed layers on plain arrays. */
#include "bindings/operators.h"

#include <string.h>

#include "bindings/call.h"
#include "bindings/plan_type.h"
#include "ops/routed_linear.h"
#include "ops/routed_rows.h"

/* ------------------------------------------------------------------ routing plans */

static void check_choices(mom_call *call, const int16_t *index, size_t N, size_t K, size_t M) {
    for (size_t t = 0; t < N && !call->failed; t++)
        for (size_t k = 0; k < K; k++)
            for (size_t q = 0; q < k; q++)
                if (index[t * K + k] == index[t * K + q] && (size_t)index[t * K + k] < M)
                    mom_call_fail(call, PyExc_ValueError, "index: token %zu chooses module %d twice", t,
                                  (int)index[t * K + k]);
}

static void routing_plan(mom_call *call) {
    const size_t M = mom_arg_size(call, "num_modules");
    if (M > INT16_MAX)
        mom_call_fail(call, PyExc_ValueError, "num_modules: %zu, expected 0 to %d", M, INT16_MAX);
    const int16_t *index = mom_arg_i16(call, "index", "N K");
    const size_t N = mom_size(call, 'N'), K = mom_size(call, 'K');
    check_choices(call, index, N, K, M);
    mom_plan_object *plan = call->failed ? NULL : mom_plan_new(call->module); /* new reference */
    if (plan)
        MOM_RUN(call, call->status = mom_routing_plan_init(&call->exec, &plan->plan, &plan->arena, index, N, K, M,
                                                           &call->error));
    mom_new_object(call, (PyObject *)plan);
}

static void routing_plan_dense(mom_call *call) {
    const size_t N = mom_arg_size(call, "num_tokens"), M = mom_arg_size(call, "num_modules");
    mom_plan_object *plan = call->failed ? NULL : mom_plan_new(call->module); /* new reference */
    if (plan)
        MOM_RUN(call, call->status = mom_routing_plan_init_dense(&call->exec, &plan->plan, &plan->arena, N, M,
                                                                 &call->error));
    mom_new_object(call, (PyObject *)plan);
}

/* ------------------------------------------------------------------ routed layers */

/* The pointer to each module's part of an array, as operators expect them. */
static const float *const *modules(mom_call *call, const float *data, size_t stride) {
    return (const float *const *)mom_module_pointers(call, data, stride);
}

static void routed_linear_forward(mom_call *call) {
    const int gathered = mom_arg_flag(call, "gathered");
    const mom_routing_plan *plan = mom_arg_plan(call);
    const float *weights = mom_arg_f32(call, "weights", "M I O");
    const float *biases = mom_arg_optional_f32(call, "biases", "M O");
    const float *inp = mom_arg_f32(call, "inp", gathered ? "N I" : "P I");
    float *out = mom_new_f32(call, "P O");
    const size_t In = mom_size(call, 'I'), Out = mom_size(call, 'O');
    const float *const *weight = modules(call, weights, In * Out), *const *bias = modules(call, biases, Out);
    const mom_routed_layer layer = {weight, bias, In, Out};
    const mom_routed_rows rows = {inp, gathered};
    MOM_RUN(call, call->status = mom_routed_linear_forward(&call->exec, out, rows, &layer, plan, &call->error));
}

static void routed_linear_backward(mom_call *call) {
    const int gathered = mom_arg_flag(call, "gathered");
    const int dout_gathered = mom_arg_flag(call, "dout_gathered");
    const mom_routing_plan *plan = mom_arg_plan(call);
    const float *weights = mom_arg_f32(call, "weights", "M I+ O");
    const float *inp = mom_arg_f32(call, "inp", gathered ? "N I" : "P I");
    const float *dout = mom_arg_f32(call, "dout", dout_gathered ? "N O" : "P O");
    const float *scale = mom_arg_optional_f32(call, "slot_scale", "P");
    float *dinp = mom_new_f32(call, "P I");
    float *dweights = mom_new_sum(call, "dweights", 0, 2, "M I O");
    float *dbiases = mom_new_sum(call, "dbiases", 1, 2, "M O");
    const size_t In = mom_size(call, 'I'), Out = mom_size(call, 'O');
    const float *const *weight = modules(call, weights, In * Out);
    float *const *dweight = mom_module_pointers(call, dweights, In * Out);
    float *const *dbias = mom_module_pointers(call, dbiases, Out);
    const mom_routed_layer layer = {weight, NULL, In, Out};
    const mom_routed_gradient gradient = {dweight, dbias, In, Out};
    const mom_routed_rows rows = {inp, gathered}, drows = {dout, dout_gathered};
    MOM_RUN(call, {
        call->status = mom_routed_linear_backward_input(&call->exec, dinp, drows, &layer, plan, &call->error);
        if (call->status == MOM_OK)
            call->status = mom_routed_linear_backward_weight(&call->exec, &gradient, rows, drows, scale, plan, &call->error);
    });
}

static void routed_combine_forward(mom_call *call) {
    const mom_routing_plan *plan = mom_arg_plan(call);
    const float *y = mom_arg_f32(call, "y", "P C");
    const float *weight = mom_arg_optional_f32(call, "weight", "N K");
    const int accumulate = mom_arg_given(call, "add_to");
    float *out = accumulate ? mom_new_sum(call, "out", 0, 1, "N C") : mom_new_f32(call, "N C");
    const size_t C = mom_size(call, 'C');
    MOM_RUN(call, mom_routed_combine_forward(&call->exec, out, y, weight, plan, C, accumulate));
}

static void routed_combine_backward(mom_call *call) {
    const mom_routing_plan *plan = mom_arg_plan(call);
    const float *y = mom_arg_f32(call, "y", "P C");
    const float *dout = mom_arg_f32(call, "dout", "N C");
    const float *weight = mom_arg_optional_f32(call, "weight", "N K");
    float *dweight = mom_new_f32(call, "N K");
    float *dy = mom_new_f32(call, "P C");
    const size_t C = mom_size(call, 'C');
    MOM_RUN(call, mom_routed_combine_backward(&call->exec, dweight, dy, dout, y, weight, plan, C));
}

static void routed_slot_scale(mom_call *call) {
    const mom_routing_plan *plan = mom_arg_plan(call);
    const float *weight = mom_arg_f32(call, "weight", "N K");
    float *scale = mom_new_f32(call, "P");
    MOM_RUN(call, mom_routed_slot_scale(&call->exec, scale, weight, plan));
}

static void routed_score_backward(mom_call *call) {
    const int gathered = mom_arg_flag(call, "gathered");
    const mom_routing_plan *plan = mom_arg_plan(call);
    const float *h = mom_arg_f32(call, "h", gathered ? "N I" : "P I");
    const float *dout = mom_arg_f32(call, "dout", "N O");
    const float *biases = mom_arg_f32(call, "biases", "M O");
    const float *weight = mom_arg_optional_f32(call, "weight", "N K");
    float *dweight = mom_new_sum(call, "dweight", 0, 1, "N K");
    float *dh = mom_new_copy(call, "dh", mom_arg(call, "dh"), "P I");
    const size_t In = mom_size(call, 'I'), Out = mom_size(call, 'O');
    const mom_routed_layer layer = {NULL, modules(call, biases, Out), In, Out};
    const mom_routed_rows rows = {h, gathered};
    MOM_RUN(call, mom_routed_score_backward(&call->exec, dweight, dh, rows, dout, &layer, weight, plan));
}

static void routed_layernorm_forward(mom_call *call) {
    const mom_routing_plan *plan = mom_arg_plan(call);
    const float *inp = mom_arg_f32(call, "inp", "N C+");
    const float *mean = mom_arg_f32(call, "mean", "N"), *rstd = mom_arg_f32(call, "rstd", "N");
    const float *weights = mom_arg_f32(call, "weights", "M C");
    const float *biases = mom_arg_f32(call, "biases", "M C");
    float *out = mom_new_f32(call, "P C");
    const size_t C = mom_size(call, 'C');
    const float *const *weight = modules(call, weights, C), *const *bias = modules(call, biases, C);
    const mom_normed_rows rows = {inp, mean, rstd, mom_size(call, 'N'), C};
    MOM_RUN(call, mom_routed_layernorm_forward(&call->exec, out, &rows, weight, bias, plan));
}

static void routed_layernorm_backward(mom_call *call) {
    const mom_routing_plan *plan = mom_arg_plan(call);
    const float *inp = mom_arg_f32(call, "inp", "N C+"), *dout = mom_arg_f32(call, "dout", "P C");
    const float *mean = mom_arg_f32(call, "mean", "N"), *rstd = mom_arg_f32(call, "rstd", "N");
    const float *weights = mom_arg_f32(call, "weights", "M C");
    float *dinp = mom_new_sum(call, "dinp", 0, 3, "N C");
    float *dweights = mom_new_sum(call, "dweights", 1, 3, "M C");
    float *dbiases = mom_new_sum(call, "dbiases", 2, 3, "M C");
    const size_t C = mom_size(call, 'C'), slots = mom_size(call, 'P');
    const float *const *weight = modules(call, weights, C);
    float *const *dweight = mom_module_pointers(call, dweights, C);
    float *const *dbias = mom_module_pointers(call, dbiases, C);
    float *scratch = mom_call_alloc(call, slots * C, sizeof *scratch);
    if (scratch)
        memcpy(scratch, dout, slots * C * sizeof *scratch);
    const mom_normed_rows rows = {inp, mean, rstd, mom_size(call, 'N'), C};
    MOM_RUN(call, mom_routed_layernorm_backward(&call->exec, dinp, dweight, dbias, scratch, &rows, weight, plan));
}

static mom_operator operators[] = {
    MOM_OPERATOR(routing_plan, "index, num_modules", "RoutingPlan"),
    MOM_OPERATOR(routing_plan_dense, "num_tokens, num_modules", "RoutingPlan"),
    MOM_OPERATOR(routed_linear_forward, "inp, weights, biases, plan, gathered", "out"),
    MOM_OPERATOR(routed_linear_backward, "dout, inp, weights, plan, gathered, dout_gathered, slot_scale, add_to",
                 "dinp, dweights, dbiases"),
    MOM_OPERATOR(routed_combine_forward, "y, weight, plan, add_to", "out"),
    MOM_OPERATOR(routed_combine_backward, "dout, y, weight, plan", "dweight, dy"),
    MOM_OPERATOR(routed_slot_scale, "weight, plan", "slot_scale"),
    MOM_OPERATOR(routed_score_backward, "dh, h, dout, biases, weight, plan, gathered, add_to", "dweight, dh"),
    MOM_OPERATOR(routed_layernorm_forward, "inp, mean, rstd, weights, biases, plan", "out"),
    MOM_OPERATOR(routed_layernorm_backward, "dout, inp, mean, rstd, weights, plan, add_to", "dinp, dweights, dbiases"),
};

int mom_add_routed_functions(PyObject *module) {
    return mom_add_operators(module, operators, sizeof operators / sizeof *operators);
}
