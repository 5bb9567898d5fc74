/* Outputs of halves and of their modules: read, changed, and their gradients.
 *
 * The last layer of a half adds its output to the residual stream at once, so a half's output exists nowhere. If somebody
 * wants it, the layer also leaves the outputs of the modules, by slot. The output of a token is then computed once more
 * from them, in the layer's own order. Only rows that a patch really changes are replaced in the stream: all others keep
 * the bits that the layer gave them.
 *
 * A patch multiplies the output by a factor and adds a constant. Backward sees it as another weight of the choice.
 */
#include <string.h>

#include "base/sizes.h"
#include "model/sites.h"

#define TASK_ROWS ((size_t)32)

static mom_site module_site(const mom_half_round *at, size_t m) {
    mom_site site = mom_half_round_site(at, MOM_SITE_MODULE);
    site.module = m;
    return site;
}

/* Whether a site is the half's output or that of one of its modules. */
static int is_output(const mom_half_round *at, mom_site site) {
    return site.place == at->index && site.round == at->round && site.half == at->half &&
           (site.kind == MOM_SITE_MODULE || site.kind == MOM_SITE_OUTPUT);
}

static int has_patch(const mom_interventions *in, const mom_half_round *at) {
    for (size_t i = 0; in && i < in->patch_count; i++)
        if (is_output(at, in->patches[i].site))
            return 1;
    return in && in->all_outputs;
}

static int has_capture(const mom_interventions *in, const mom_half_round *at) {
    for (size_t i = 0; in && i < in->capture_count; i++)
        if (is_output(at, in->captures[i].site))
            return 1;
    return 0;
}

mom_status mom_output_visit_begin(const mom_pass *pass, const mom_half_round *at, const mom_output_parts *parts,
                                  const float *x_in, const float *x_out, mom_output_visit *visit) {
    const size_t C = pass->config->C;
    const int patched = has_patch(pass->interventions, at);
    float *copy;
    *visit = (mom_output_visit){NULL, x_in};
    if (!patched && (pass->again || !has_capture(pass->interventions, at)))
        return MOM_OK;
    MOM_ARENA_NEW(visit->slots, pass->exec->workspace, parts->plan->slots * C, pass->err);
    if (!patched || x_out != x_in)
        return MOM_OK;
    MOM_ARENA_NEW(copy, pass->exec->workspace, pass->N * C, pass->err);
    mom_copy(pass->exec, copy, x_in, pass->N * C * sizeof *copy);
    visit->x = copy;
    return MOM_OK;
}

typedef struct {
    const mom_pass *pass;
    const mom_half_round *at;
    const mom_output_parts *parts;
    const mom_output_visit *visit;
    float *x_out;
    float *rows; /* (threads, 3 C): a module's output, the same before its patches, and the sum */
} end_job;

/* Applies the patches of a site to a row. Returns whether one of them applies to the token. */
static int patch_row(const mom_pass *pass, mom_site site, size_t t, float *row) {
    const mom_interventions *in = pass->interventions;
    int any = 0;
    for (size_t i = 0; i < in->patch_count; i++) {
        const mom_patch *patch = &in->patches[i];
        if (!mom_same_site(patch->site, site) || patch->value_row[pass->first_row + t] < 0)
            continue;
        mom_patch_row(pass->exec->k, patch, patch->value_row[pass->first_row + t], row, pass->config->C);
        any = 1;
    }
    return any;
}

static void capture_row(const mom_pass *pass, mom_site site, size_t t, const float *row) {
    const mom_interventions *in = pass->interventions;
    const size_t C = pass->config->C;
    for (size_t i = 0; !pass->again && i < in->capture_count; i++) {
        if (!mom_same_site(in->captures[i].site, site))
            continue;
        float *out = in->captures[i].values + (pass->first_row + t) * C;
        if (row)
            memcpy(out, row, C * sizeof *out);
        else
            memset(out, 0, C * sizeof *out);
    }
}

/* row = weight * (a module's output), with dropout */
static void module_row(const end_job *job, size_t t, size_t k, float *row) {
    const mom_output_parts *parts = job->parts;
    const size_t C = job->pass->config->C, i = t * parts->plan->K + k;
    const mom_kernels *kernels = job->pass->exec->k;
    const float *y = job->visit->slots + (size_t)parts->plan->slot[i] * C;
    kernels->vec.scale(row, parts->weight ? parts->weight[i] : 1.0f, y, C);
    if (parts->dropout.p > 0.0f)
        kernels->vec.dropout(row, row, parts->dropout, (uint64_t)t * C, C);
}

/* The half's output as its last layer computes it. */
static void whole_row(const end_job *job, size_t t, float *row) {
    const mom_output_parts *parts = job->parts;
    const mom_routing_plan *plan = parts->plan;
    const size_t C = job->pass->config->C;
    const mom_kernels *kernels = job->pass->exec->k;
    memset(row, 0, C * sizeof *row);
    for (size_t i = t * plan->K; i < (t + 1) * plan->K; i++)
        if (plan->slot[i] >= 0)
            kernels->vec.axpy(row, parts->weight ? parts->weight[i] : 1.0f, job->visit->slots + (size_t)plan->slot[i] * C, C);
    if (parts->dropout.p > 0.0f)
        kernels->vec.dropout(row, row, parts->dropout, (uint64_t)t * C, C);
}

static size_t module_of(const mom_routing_plan *plan, int32_t slot) {
    size_t m = 0;
    while (plan->offsets[m + 1] <= slot)
        m++;
    return m;
}

/* Patches and captures the outputs of a token's modules. Returns whether a patch changed one; *sum is then their sum. */
static int visit_modules(const end_job *job, size_t t, float *row, float *before, float *sum) {
    const mom_routing_plan *plan = job->parts->plan;
    const size_t C = job->pass->config->C;
    int changed = 0;
    memset(sum, 0, C * sizeof *sum);
    for (size_t m = 0; m < plan->M; m++)
        capture_row(job->pass, module_site(job->at, m), t, NULL);
    for (size_t k = 0; k < plan->K; k++) {
        const int32_t slot = plan->slot[t * plan->K + k];
        if (slot < 0)
            continue;
        const mom_site site = module_site(job->at, module_of(plan, slot));
        module_row(job, t, k, row);
        memcpy(before, row, C * sizeof *row);
        changed |= patch_row(job->pass, site, t, row) && memcmp(before, row, C * sizeof *row) != 0;
        capture_row(job->pass, site, t, row);
        job->pass->exec->k->vec.add(sum, row, C);
    }
    return changed;
}

static void end_task(void *context, size_t task, int thread) {
    const end_job *job = context;
    const mom_pass *pass = job->pass;
    const size_t C = pass->config->C, row_bytes = C * sizeof(float);
    const mom_site site = mom_half_round_site(job->at, MOM_SITE_OUTPUT);
    float *row = job->rows + (size_t)thread * 3 * C, *before = row + C, *sum = before + C;
    size_t begin, end;
    mom_range(pass->N, mom_div_up(pass->N, TASK_ROWS), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        int changed = visit_modules(job, t, row, before, sum);
        if (!changed)
            whole_row(job, t, sum);
        memcpy(before, sum, row_bytes);
        changed |= patch_row(pass, site, t, sum) && memcmp(before, sum, row_bytes) != 0;
        capture_row(pass, site, t, sum);
        if (!changed)
            continue;
        float *out = job->x_out + t * C;
        memcpy(out, job->visit->x + t * C, row_bytes);
        pass->exec->k->vec.add(out, sum, C);
    }
}

/* Counts the rows that a module's patches apply to. */
static void count_touched(const mom_pass *pass, const mom_half_round *at, const mom_routing_plan *plan) {
    const mom_interventions *in = pass->interventions;
    for (size_t i = 0; !pass->exec->dry_run && !pass->again && i < in->patch_count; i++) {
        const mom_patch *patch = &in->patches[i];
        if (patch->site.kind != MOM_SITE_MODULE || !is_output(at, patch->site))
            continue;
        for (int32_t s = plan->offsets[patch->site.module]; s < plan->offsets[patch->site.module + 1]; s++)
            *patch->touched += patch->value_row[pass->first_row + (size_t)plan->token[s]] >= 0;
    }
}

mom_status mom_output_visit_end(const mom_pass *pass, const mom_half_round *at, const mom_output_parts *parts,
                                const mom_output_visit *visit, float *x_out) {
    const mom_exec *x = pass->exec;
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    end_job job = {.pass = pass, .at = at, .parts = parts, .visit = visit, .x_out = x_out};
    if (!visit->slots)
        return MOM_OK;
    MOM_ARENA_NEW(job.rows, x->workspace, (size_t)x->threads * 3 * pass->config->C, pass->err);
    mom_parallel_for(x, mom_div_up(pass->N, TASK_ROWS), end_task, &job);
    count_touched(pass, at, parts->plan);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

/* ------------------------------------------------------------------ backward */

/* What the patches of a site multiply a token's row by. */
static float factor_of(const mom_pass *pass, mom_site site, size_t t) {
    const mom_interventions *in = pass->interventions;
    float factor = 1.0f;
    for (size_t i = 0; i < in->patch_count; i++)
        if (mom_same_site(in->patches[i].site, site) && in->patches[i].value_row[t] >= 0)
            factor *= in->patches[i].factor;
    return factor;
}

static void capture_output_gradients(const mom_pass *pass, const mom_half_round *at, const float *dx) {
    const mom_interventions *in = pass->interventions;
    const size_t C = pass->config->C;
    for (size_t i = 0; i < in->capture_count; i++)
        if (in->captures[i].gradients && mom_same_site(in->captures[i].site, mom_half_round_site(at, MOM_SITE_OUTPUT)))
            mom_copy(pass->exec, in->captures[i].gradients, dx, pass->N * C * sizeof *dx);
}

/* The gradient of a module's output is that of the half's output, for the tokens that chose the module. */
static void capture_module_gradients(const mom_pass *pass, const mom_half_round *at, const mom_routing_plan *plan,
                                     const float *dx) {
    const mom_interventions *in = pass->interventions;
    const size_t C = pass->config->C;
    const mom_site output = mom_half_round_site(at, MOM_SITE_OUTPUT);
    for (size_t i = 0; i < in->capture_count; i++) {
        const mom_capture *capture = &in->captures[i];
        if (!capture->gradients || capture->site.kind != MOM_SITE_MODULE || !is_output(at, capture->site))
            continue;
        memset(capture->gradients, 0, pass->N * C * sizeof(float));
        for (int32_t s = plan->offsets[capture->site.module]; s < plan->offsets[capture->site.module + 1]; s++) {
            const size_t t = (size_t)plan->token[s];
            pass->exec->k->vec.scale(capture->gradients + t * C, factor_of(pass, output, t), dx + t * C, C);
        }
    }
}

mom_status mom_output_visit_backward(const mom_pass *pass, const mom_half_round *at, mom_output_parts *parts, const float *dx,
                                     const float **factor) {
    const mom_exec *x = pass->exec;
    const mom_routing_plan *plan = parts->plan;
    const size_t n = pass->N * plan->K;
    float *factors, *weight;
    *factor = NULL;
    if (has_capture(pass->interventions, at) && !x->dry_run) {
        capture_output_gradients(pass, at, dx);
        capture_module_gradients(pass, at, plan, dx);
    }
    if (!has_patch(pass->interventions, at))
        return MOM_OK;
    MOM_ARENA_NEW(factors, x->workspace, n, pass->err);
    MOM_ARENA_NEW(weight, x->workspace, n, pass->err);
    for (size_t i = 0; i < n && !x->dry_run; i++) {
        const size_t t = i / plan->K;
        factors[i] = factor_of(pass, mom_half_round_site(at, MOM_SITE_OUTPUT), t);
        if (plan->slot[i] >= 0)
            factors[i] *= factor_of(pass, module_site(at, module_of(plan, plan->slot[i])), t);
        weight[i] = factors[i] * (parts->weight ? parts->weight[i] : 1.0f);
    }
    parts->weight = weight;
    *factor = factors;
    return MOM_OK;
}
