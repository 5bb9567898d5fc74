#include "model/sites.h"

#include <string.h>

const mom_route_change *mom_route_change_of(const mom_pass *pass, const mom_half_round *at) {
    const mom_interventions *in = pass->interventions;
    if (!in || !in->routes)
        return NULL;
    const mom_route_change *change = &in->routes[at->index][2 * at->round + (size_t)at->half];
    return change->forced || change->bias ? change : NULL;
}

int mom_route_is_biased(const mom_pass *pass, const mom_half_round *at) {
    const mom_route_change *change = mom_route_change_of(pass, at);
    return change && change->bias && !pass->exec->dry_run;
}

int mom_same_site(mom_site a, mom_site b) {
    return a.kind == b.kind && a.place == b.place && a.round == b.round && a.half == b.half && a.module == b.module;
}

int mom_site_used(const mom_pass *pass, mom_site site) {
    const mom_interventions *in = pass->interventions;
    for (size_t i = 0; in && i < in->patch_count; i++)
        if (mom_same_site(in->patches[i].site, site))
            return 1;
    for (size_t i = 0; in && i < in->capture_count; i++)
        if (mom_same_site(in->captures[i].site, site))
            return 1;
    return 0;
}

void mom_patch_row(const mom_kernels *k, const mom_patch *patch, int32_t value_row, float *row, size_t width) {
    const float *value = patch->values ? patch->values + (size_t)value_row * width : NULL;
    if (patch->factor == 0.0f && value)
        memcpy(row, value, width * sizeof *row);
    else if (patch->factor == 0.0f)
        memset(row, 0, width * sizeof *row);
    else
        k->vec.scale(row, patch->factor, row, width);
    if (patch->factor != 0.0f && value)
        k->vec.add(row, value, width);
}

typedef struct {
    const mom_kernels *k;
    const mom_patch *patch;
    const int32_t *value_row; /* of the pass */
    float *data;
    size_t width;
    int backward;
} patch_job;

static void patch_task(const void *context, size_t begin, size_t end) {
    const patch_job *job = context;
    for (size_t t = begin; t < end; t++) {
        float *row = job->data + t * job->width;
        if (job->value_row[t] < 0)
            continue;
        if (!job->backward)
            mom_patch_row(job->k, job->patch, job->value_row[t], row, job->width);
        else if (job->patch->factor == 0.0f)
            memset(row, 0, job->width * sizeof *row);
        else
            job->k->vec.scale(row, job->patch->factor, row, job->width);
    }
}

static void apply_patch(const mom_pass *pass, const mom_patch *patch, float *data, size_t width, int backward) {
    const patch_job job = {pass->exec->k, patch, patch->value_row + pass->first_row, data, width, backward};
    mom_parallel_rows(pass->exec, pass->N, 32, patch_task, &job);
}

void mom_site_visit(const mom_pass *pass, mom_site site, float *data, size_t width) {
    const mom_interventions *in = pass->interventions;
    for (size_t i = 0; in && i < in->patch_count; i++)
        if (mom_same_site(in->patches[i].site, site))
            apply_patch(pass, &in->patches[i], data, width, 0);
    for (size_t i = 0; in && !pass->again && i < in->capture_count; i++)
        if (mom_same_site(in->captures[i].site, site))
            mom_copy(pass->exec, in->captures[i].values + pass->first_row * width, data, pass->N * width * sizeof *data);
}

void mom_site_visit_backward(const mom_pass *pass, mom_site site, float *gradient, size_t width) {
    const mom_interventions *in = pass->interventions;
    for (size_t i = 0; in && i < in->capture_count; i++)
        if (in->captures[i].gradients && mom_same_site(in->captures[i].site, site))
            mom_copy(pass->exec, in->captures[i].gradients, gradient, pass->N * width * sizeof *gradient);
    for (size_t i = in ? in->patch_count : 0; i-- > 0;)
        if (mom_same_site(in->patches[i].site, site))
            apply_patch(pass, &in->patches[i], gradient, width, 1);
}
