/* Reads and changes the activations of a pass where its interventions say so. Without interventions nothing happens.
 *
 * Order at a site: patches in the order of their list, then captures. Backward captures the gradient of what was
 * captured, then multiplies the rows of patches by their factors.
 */
#ifndef MOM_MODEL_SITES_H
#define MOM_MODEL_SITES_H

#include "model/pool.h"

/* The changes to a half-round's routing, or NULL. Entry i of their arrays is row pass->first_row + i of the pass. */
const mom_route_change *mom_route_change_of(const mom_pass *pass, const mom_half_round *at);
int mom_route_is_biased(const mom_pass *pass, const mom_half_round *at);

/* data (N, width): the whole array of a site, of any kind but outputs of halves and modules. */
void mom_site_visit(const mom_pass *pass, mom_site site, float *data, size_t width);
void mom_site_visit_backward(const mom_pass *pass, mom_site site, float *gradient, size_t width);
/* Whether the site has a patch or a capture. */
int mom_site_used(const mom_pass *pass, mom_site site);
int mom_same_site(mom_site a, mom_site b);
/* The patch of one row; value_row is at least 0. */
void mom_patch_row(const mom_kernels *k, const mom_patch *patch, int32_t value_row, float *row, size_t width);

/* ---- outputs of a half and of its modules (model/site_outputs.c) */

/* Around the last layer of a half. All NULL if no output is patched or captured. */
typedef struct {
    float *slots;   /* (slots, C) outputs of the modules, before weights and dropout; the last layer writes them */
    const float *x; /* (N, C) residual stream before the half */
} mom_output_visit;

/* What a half's output is made of. */
typedef struct {
    const mom_routing_plan *plan;
    const float *weight; /* (N, plan->K) or NULL: 1 */
    mom_dropout dropout;
} mom_output_parts;

/* Before the last layer, which writes to `x_out`. If that is the input itself, the visit keeps a copy of it. */
mom_status mom_output_visit_begin(const mom_pass *pass, const mom_half_round *at, const mom_output_parts *parts,
                                  const float *x_in, const float *x_out, mom_output_visit *visit);
/* After it: captures outputs, and replaces the rows of x_out whose output a patch changes. */
mom_status mom_output_visit_end(const mom_pass *pass, const mom_half_round *at, const mom_output_parts *parts,
                                const mom_output_visit *visit, float *x_out);

/* Before backward of the last layer; dx (N, C) is the gradient of the stream after the half. Captures gradients of outputs.
 * If there are patches, *factor (N, plan->K) becomes what they multiply the outputs of choices by, and parts->weight is
 * multiplied by it; otherwise *factor is NULL. Arrays come from the workspace. */
mom_status mom_output_visit_backward(const mom_pass *pass, const mom_half_round *at, mom_output_parts *parts, const float *dx,
                                     const float **factor);

#endif
