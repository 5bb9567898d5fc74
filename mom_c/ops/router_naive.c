/* Routers of two linear layers: logits = relu(inp * in_weight^T + in_bias) * out_weight^T + out_bias. */
#include "ops/router_functions.h"

typedef struct {
    float *values;       /* (N, R) */
    const float *hidden; /* (N, R): values become 0 where it is not positive; NULL: values themselves decide */
    size_t R;
} relu_job;

static void relu_task(const void *context, size_t begin, size_t end) {
    const relu_job *job = context;
    float *values = job->values;
    if (job->hidden) {
        for (size_t i = begin * job->R; i < end * job->R; i++)
            values[i] = job->hidden[i] > 0.0f ? values[i] : 0.0f;
    } else {
        for (size_t i = begin * job->R; i < end * job->R; i++)
            values[i] = values[i] < 0.0f ? 0.0f : values[i]; /* keeps NaN */
    }
}

mom_status mom_naive_forward(const mom_exec *x, mom_router_saved *saved, const mom_router_inputs *in,
                             const mom_router_spec *spec, mom_error *err) {
    const mom_router_map to_hidden = {in->weights->in_weight, in->weights->in_bias, spec->C, spec->R};
    MOM_TRY(mom_router_apply(x, saved->hidden, in->inp, &to_hidden, spec->few_rows, in->N, err));
    relu_job job = {saved->hidden, NULL, spec->R};
    mom_parallel_rows(x, in->N, MOM_ROUTER_ROWS, relu_task, &job);
    return MOM_OK;
}

mom_status mom_naive_backward(const mom_exec *x, const mom_router_gradients *out, float *dhidden, const float *dstate_out,
                              const mom_router_inputs *in, const mom_router_saved *saved, const mom_router_spec *spec,
                              mom_error *err) {
    const mom_linear_shape shape = {MOM_WEIGHT_OUT_IN, in->N, spec->C, spec->R};
    mom_router_tensors *d = out->dweights;
    (void)dstate_out; /* no state */
    relu_job job = {dhidden, saved->hidden, spec->R};
    mom_parallel_rows(x, in->N, MOM_ROUTER_ROWS, relu_task, &job);
    MOM_TRY(mom_linear_backward_weight(x, d->in_weight, d->in_bias, in->inp, dhidden, &shape, err));
    return mom_linear_backward_input(x, out->dinp, dhidden, in->weights->in_weight, 1, &shape, err);
}
