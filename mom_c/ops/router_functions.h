/* The functions of the kinds of routers, for the table in router.c, and what they share. */
#ifndef MOM_OPS_ROUTER_FUNCTIONS_H
#define MOM_OPS_ROUTER_FUNCTIONS_H

#include "base/sizes.h"
#include "ops/linear.h"
#include "ops/router.h"

#define MOM_ROUTER_ROWS 32 /* tokens of a task */

static inline size_t mom_router_tasks(size_t N) { return mom_div_up(N, MOM_ROUTER_ROWS); }

/* out (N, Out) = inp (N, In) * weight^T + bias, with weight (Out, In) */
typedef struct {
    const float *weight, *bias;
    size_t In, Out;
} mom_router_map;

/* few_rows: see mom_router_spec (ops/router_maps.c) */
mom_status mom_router_apply(const mom_exec *x, float *out, const float *inp, const mom_router_map *map, int few_rows,
                            size_t N, mom_error *err);

/* The entries of mom_router_type; the caller releases the workspace. */
mom_status mom_naive_forward(const mom_exec *x, mom_router_saved *saved, const mom_router_inputs *in,
                             const mom_router_spec *spec, mom_error *err);
mom_status mom_naive_backward(const mom_exec *x, const mom_router_gradients *out, float *dhidden, const float *dstate_out,
                              const mom_router_inputs *in, const mom_router_saved *saved, const mom_router_spec *spec,
                              mom_error *err);
mom_status mom_recurrent_forward(const mom_exec *x, mom_router_saved *saved, const mom_router_inputs *in,
                                 const mom_router_spec *spec, mom_error *err);
mom_status mom_recurrent_backward(const mom_exec *x, const mom_router_gradients *out, float *dhidden,
                                  const float *dstate_out, const mom_router_inputs *in, const mom_router_saved *saved,
                                  const mom_router_spec *spec, mom_error *err);
mom_status mom_hash_outputs(const mom_exec *x, float *outputs, const mom_router_saved *saved, const mom_router_inputs *in,
                            const mom_router_spec *spec, mom_error *err);
mom_status mom_linear_router_backward(const mom_exec *x, const mom_router_gradients *out, float *dhidden,
                                      const float *dstate_out, const mom_router_inputs *in, const mom_router_saved *saved,
                                      const mom_router_spec *spec, mom_error *err);
mom_status mom_norm_forward(const mom_exec *x, mom_router_saved *saved, const mom_router_inputs *in,
                            const mom_router_spec *spec, mom_error *err);
mom_status mom_norm_backward(const mom_exec *x, const mom_router_gradients *out, float *dhidden, const float *dstate_out,
                             const mom_router_inputs *in, const mom_router_saved *saved, const mom_router_spec *spec,
                             mom_error *err);
mom_status mom_norm_outputs(const mom_exec *x, float *outputs, const mom_router_saved *saved, const mom_router_inputs *in,
                            const mom_router_spec *spec, mom_error *err);
void mom_norm_outputs_backward(const mom_exec *x, float *dhidden, mom_router_tensors *dweights, const float *dlogits,
                               const mom_router_inputs *in, const mom_router_saved *saved, const mom_router_spec *spec);

#endif
