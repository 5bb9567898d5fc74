/* The map from hidden to logits, and the choice of the kind. Contract: router.h.
 *
 * SOURCE  Shazeer et al. 2017, arXiv:1701.06538 (top-k routing).
 */
#include "ops/router.h"

#include "ops/router_kinds.h"

mom_status mom_router_forward(const mom_exec *x, float *logits, mom_router_saved *saved, const mom_router_inputs *in,
                              const mom_router_spec *spec, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const mom_status status = spec->kind == MOM_ROUTER_NAIVE ? mom_naive_forward(x, saved, in, spec, err)
                                                             : mom_recurrent_forward(x, saved, in, spec, err);
    mom_arena_release(x->workspace, mark);
    MOM_TRY(status);
    const mom_router_map to_logits = {in->weights->out_weight, in->weights->out_bias, spec->R, spec->S};
    return mom_router_apply(x, logits, saved->hidden, &to_logits, spec->few_rows, in->N, err);
}

static mom_status backward(const mom_exec *x, const mom_router_gradients *out, const float *dlogits,
                           const float *dstate_out, const mom_router_inputs *in, const mom_router_saved *saved,
                           const mom_router_spec *spec, mom_error *err) {
    const mom_linear_shape shape = {MOM_WEIGHT_OUT_IN, in->N, spec->R, spec->S};
    mom_router_tensors *d = out->dweights;
    float *dhidden;
    MOM_ARENA_NEW(dhidden, x->workspace, in->N * spec->R, err);
    MOM_TRY(mom_linear_backward_input(x, dhidden, dlogits, in->weights->out_weight, 0, &shape, err));
    MOM_TRY(mom_linear_backward_weight(x, d->out_weight, d->out_bias, saved->hidden, dlogits, &shape, err));
    if (spec->kind == MOM_ROUTER_NAIVE)
        return mom_naive_backward(x, out, dhidden, in, saved, spec, err);
    return mom_recurrent_backward(x, out, dhidden, dstate_out, in, saved, spec, err);
}

mom_status mom_router_backward(const mom_exec *x, const mom_router_gradients *out, const float *dlogits,
                               const float *dstate_out, const mom_router_inputs *in, const mom_router_saved *saved,
                               const mom_router_spec *spec, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const mom_status status = backward(x, out, dlogits, dstate_out, in, saved, spec, err);
    mom_arena_release(x->workspace, mark);
    return status;
}
