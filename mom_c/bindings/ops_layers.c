/* Layer normalisation, GELU, dropout, random numbers and embeddings on plain arrays. */
#include "bindings/operators.h"

#include <math.h>

#include "bindings/call.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/gelu.h"
#include "ops/layernorm.h"

/* ------------------------------------------------------------------ layer normalisation */

static void check_eps(mom_call *call, float eps) {
    if (!(eps >= 0.0f && isfinite(eps)))
        mom_call_fail(call, PyExc_ValueError, "eps: expected a non-negative finite number");
}

static void layernorm_forward(mom_call *call) {
    const float eps = mom_arg_float(call, "eps");
    check_eps(call, eps);
    const float *inp = mom_arg_f32(call, "inp", "... C+");
    const float *weight = mom_arg_f32(call, "weight", "C");
    const float *bias = mom_arg_f32(call, "bias", "C");
    float *out = mom_new_f32(call, "... C");
    float *mean = mom_new_f32(call, "...");
    float *rstd = mom_new_f32(call, "...");
    const size_t N = mom_leading(call), C = mom_size(call, 'C');
    const mom_layernorm norm = {weight, bias, eps};
    MOM_RUN(call, mom_layernorm_forward(&call->exec, out, mean, rstd, inp, &norm, N, C));
}

static void layernorm_stats(mom_call *call) {
    const float eps = mom_arg_float(call, "eps");
    check_eps(call, eps);
    const float *inp = mom_arg_f32(call, "inp", "... C+");
    float *mean = mom_new_f32(call, "...");
    float *rstd = mom_new_f32(call, "...");
    const size_t N = mom_leading(call), C = mom_size(call, 'C');
    MOM_RUN(call, mom_layernorm_stats(&call->exec, mean, rstd, inp, eps, N, C));
}

static void layernorm_backward(mom_call *call) {
    const float *inp = mom_arg_f32(call, "inp", "... C+");
    const float *dout = mom_arg_f32(call, "dout", "... C");
    const float *weight = mom_arg_f32(call, "weight", "C");
    const float *mean = mom_arg_f32(call, "mean", "...");
    const float *rstd = mom_arg_f32(call, "rstd", "...");
    float *dinp = mom_new_sum(call, "dinp", 0, 3, "... C");
    float *dweight = mom_new_sum(call, "dweight", 1, 3, "C");
    float *dbias = mom_new_sum(call, "dbias", 2, 3, "C");
    const mom_normed_rows rows = {inp, mean, rstd, mom_leading(call), mom_size(call, 'C')};
    MOM_RUN(call, call->status = mom_layernorm_backward(&call->exec, dinp, dweight, dbias, dout, weight, &rows,
                                                        &call->error));
}

/* ------------------------------------------------------------------ GELU */

static void gelu_forward(mom_call *call) {
    const float *inp = mom_arg_f32(call, "inp", "...");
    float *out = mom_new_f32(call, "...");
    MOM_RUN(call, mom_gelu_forward(&call->exec, out, inp, mom_leading(call)));
}

static void gelu_backward(mom_call *call) {
    const float *inp = mom_arg_f32(call, "inp", "...");
    const float *dout = mom_arg_f32(call, "dout", "...");
    float *dinp = mom_new_f32(call, "...");
    MOM_RUN(call, mom_gelu_backward(&call->exec, dinp, dout, inp, mom_leading(call)));
}

/* ------------------------------------------------------------------ dropout and random numbers */

static void dropout(mom_call *call) {
    const mom_dropout how = mom_arg_dropout(call);
    const float *inp = mom_arg_f32(call, "inp", "...");
    float *out = mom_new_f32(call, "...");
    MOM_RUN(call, mom_dropout_apply(&call->exec, out, inp, how, mom_leading(call)));
}

static void random_uniform(mom_call *call) {
    const size_t n = mom_arg_size(call, "n");
    mom_set_size(call, 'N', n);
    float *out = mom_new_f32(call, "N");
    const uint64_t key = mom_arg_key(call);
    MOM_RUN(call, for (size_t i = 0; i < n; i++) out[i] = mom_rng_uniform(key, i));
}

/* ------------------------------------------------------------------ embedding */

static void embedding_forward(mom_call *call) {
    const mom_dropout how = mom_arg_dropout(call);
    const float *wte = mom_arg_f32(call, "wte", "V C");
    const float *wpe = mom_arg_f32(call, "wpe", "P C");
    const int32_t *tokens = mom_arg_i32(call, "tokens", "...", mom_size(call, 'V'));
    const int32_t *positions = mom_arg_i32(call, "positions", "...", mom_size(call, 'P'));
    float *out = mom_new_f32(call, "... C");
    const size_t N = mom_leading(call), C = mom_size(call, 'C');
    MOM_RUN(call, mom_embedding_forward(&call->exec, out, tokens, positions, wte, wpe, how, N, C));
}

static void embedding_backward(mom_call *call) {
    const size_t V = mom_arg_size(call, "vocab_size"), P = mom_arg_size(call, "n_positions");
    mom_set_size(call, 'V', V);
    mom_set_size(call, 'P', P);
    const mom_dropout how = mom_arg_dropout(call);
    const float *dout = mom_arg_f32(call, "dout", "... C");
    const int32_t *tokens = mom_arg_i32(call, "tokens", "...", V);
    const int32_t *positions = mom_arg_i32(call, "positions", "...", P);
    float *dwte = mom_new_sum(call, "dwte", 0, 2, "V C");
    float *dwpe = mom_new_sum(call, "dwpe", 1, 2, "P C");
    const size_t N = mom_leading(call), C = mom_size(call, 'C');
    MOM_RUN(call, mom_embedding_backward(&call->exec, dwte, dwpe, dout, tokens, positions, how, N, C));
}

static mom_operator operators[] = {
    MOM_OPERATOR(layernorm_forward, "inp, weight, bias, eps", "out, mean, rstd"),
    MOM_OPERATOR(layernorm_stats, "inp, eps", "mean, rstd"),
    MOM_OPERATOR(layernorm_backward, "dout, inp, weight, mean, rstd, add_to", "dinp, dweight, dbias"),
    MOM_OPERATOR(gelu_forward, "inp", "out"),
    MOM_OPERATOR(gelu_backward, "dout, inp", "dinp"),
    MOM_OPERATOR(dropout, "inp, p, seed, counter, site", "out"),
    MOM_OPERATOR(random_uniform, "seed, counter, site, n", "float32 draws in [0, 1)"),
    MOM_OPERATOR(embedding_forward, "tokens, positions, wte, wpe, p, seed, counter, site", "out"),
    MOM_OPERATOR(embedding_backward, "dout, tokens, positions, vocab_size, n_positions, p, seed, counter, site, add_to",
                 "dwte, dwpe"),
};

int mom_add_layer_functions(PyObject *module) {
    return mom_add_operators(module, operators, sizeof operators / sizeof *operators);
}
