/* Routers of one linear map, from the inputs to the outputs: logits = inp * out_weight^T + out_bias. */
#include "ops/router_functions.h"

mom_status mom_linear_router_backward(const mom_exec *x, const mom_router_gradients *out, float *dhidden,
                                      const float *dstate_out, const mom_router_inputs *in, const mom_router_saved *saved,
                                      const mom_router_spec *spec, mom_error *err) {
    (void)dstate_out;
    (void)saved;
    (void)err;
    if (!x->dry_run)
        x->k->vec.add(out->dinp, dhidden, in->N * spec->C);
    return MOM_OK;
}
