/* Routers that ask the modules: each module has a projection of its own, and its output is the length of the projected
 * token. The R units of the projections are dealt out to the M modules, D = R / M to each; units that are left over belong to
 * none. A module without units has length 0. With h_m the D projected values of module m,
 *     output m = |h_m| / sqrt(D) + bias_m,    outputs from M on (SKIP) = bias.
 *
 * SOURCE  Lv et al. 2025, arXiv:2501.13074 (Autonomy-of-Experts), where the projection is a part of the module's own first
 *         layer; here it serves the router alone. Formula: docs/derivations/router.md.
 */
#include <math.h>
#include <stdbool.h>

#include "ops/router_functions.h"

static size_t modules_of(const mom_router_spec *spec) { return spec->M ? spec->M : spec->S; }

mom_status mom_norm_forward(const mom_exec *x, mom_router_saved *saved, const mom_router_inputs *in,
                            const mom_router_spec *spec, mom_error *err) {
    const mom_router_map to_hidden = {in->weights->in_weight, NULL, spec->C, spec->R};
    return mom_router_apply(x, saved->hidden, in->inp, &to_hidden, spec->few_rows, in->N, err);
}

mom_status mom_norm_backward(const mom_exec *x, const mom_router_gradients *out, float *dhidden, const float *dstate_out,
                             const mom_router_inputs *in, const mom_router_saved *saved, const mom_router_spec *spec,
                             mom_error *err) {
    const mom_linear_shape shape = {MOM_WEIGHT_OUT_IN, in->N, spec->C, spec->R};
    (void)dstate_out; /* no state */
    (void)saved;
    MOM_TRY(mom_linear_backward_weight(x, out->dweights->in_weight, NULL, in->inp, dhidden, &shape, err));
    return mom_linear_backward_input(x, out->dinp, dhidden, in->weights->in_weight, 1, &shape, err);
}

typedef struct {
    const mom_kernels *k;
    const float *hidden, *dlogits, *bias;
    float *outputs, *dhidden;
    size_t S, R, M, D;
} norm_job;

static norm_job job_of(const mom_exec *x, const mom_router_saved *saved, const mom_router_spec *spec) {
    const size_t M = modules_of(spec);
    return (norm_job){.k = x->k, .hidden = saved->hidden, .S = spec->S, .R = spec->R, .M = M, .D = M ? spec->R / M : 0};
}

static float length_of(const norm_job *job, const float *h) { return sqrtf(job->k->vec.dot(h, h, job->D)); }

static void outputs_task(const void *context, size_t begin, size_t end) {
    const norm_job *job = context;
    for (size_t t = begin; t < end; t++) {
        const float *hidden = job->hidden + t * job->R;
        for (size_t s = 0; s < job->S; s++) {
            const bool known = s < job->M && job->D;
            const float length = known ? length_of(job, hidden + s * job->D) / sqrtf((float)job->D) : 0.0f;
            job->outputs[t * job->S + s] = length + job->bias[s];
        }
    }
}

mom_status mom_norm_outputs(const mom_exec *x, float *outputs, const mom_router_saved *saved, const mom_router_inputs *in,
                            const mom_router_spec *spec, mom_error *err) {
    norm_job job = job_of(x, saved, spec);
    (void)err;
    job.outputs = outputs;
    job.bias = in->weights->out_bias;
    mom_parallel_rows(x, in->N, MOM_ROUTER_ROWS, outputs_task, &job);
    return MOM_OK;
}

/* dh_m = dlogit_m / sqrt(D) * h_m / |h_m|, and 0 where h_m is 0 */
static void outputs_backward_task(const void *context, size_t begin, size_t end) {
    const norm_job *job = context;
    for (size_t t = begin; t < end; t++) {
        const float *hidden = job->hidden + t * job->R;
        float *dhidden = job->dhidden + t * job->R;
        for (size_t m = 0; m < job->M; m++) {
            const float length = length_of(job, hidden + m * job->D);
            const float factor = length > 0.0f ? job->dlogits[t * job->S + m] / (length * sqrtf((float)job->D)) : 0.0f;
            for (size_t i = m * job->D; i < (m + 1) * job->D; i++)
                dhidden[i] = factor * hidden[i];
        }
        for (size_t i = job->M * job->D; i < job->R; i++)
            dhidden[i] = 0.0f;
    }
}

void mom_norm_outputs_backward(const mom_exec *x, float *dhidden, mom_router_tensors *dweights, const float *dlogits,
                               const mom_router_inputs *in, const mom_router_saved *saved, const mom_router_spec *spec) {
    norm_job job = job_of(x, saved, spec);
    job.dhidden = dhidden;
    job.dlogits = dlogits;
    mom_parallel_rows(x, in->N, MOM_ROUTER_ROWS, outputs_backward_task, &job);
    mom_column_sum(x, dweights->out_bias, dlogits, NULL, NULL, in->N, spec->S);
}
