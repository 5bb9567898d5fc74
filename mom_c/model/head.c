#include "model/head.h"

#include "model/sites.h"
#include "ops/elementwise.h"
#include "ops/layernorm.h"
#include "ops/linear.h"
#include "ops/lm_head.h"

static const float *value(const mom_params *p, size_t i) { return mom_param_value(p, i); }

static mom_status final_layernorm(mom_activations *a, const mom_params *p) {
    const mom_pass *pass = &a->pass;
    const size_t N = pass->N, C = pass->config->C;
    a->head_start = mom_arena_get_mark(pass->saved);
    MOM_ARENA_NEW(a->mean, pass->saved, N, pass->err);
    MOM_ARENA_NEW(a->rstd, pass->saved, N, pass->err);
    MOM_ARENA_NEW(a->hidden, pass->saved, N * C, pass->err);
    const mom_layernorm norm = {value(p, p->lnf_weight), value(p, p->lnf_bias), pass->config->ln_eps};
    mom_site_visit(pass, (mom_site){.kind = MOM_SITE_FINAL}, a->x, C);
    mom_layernorm_forward(pass->exec, a->hidden, a->mean, a->rstd, a->x, &norm, N, C);
    mom_site_visit(pass, (mom_site){.kind = MOM_SITE_HIDDEN}, a->hidden, C);
    return MOM_OK;
}

static mom_status lm_loss(mom_activations *a, const mom_params *p, int embeddings) {
    const mom_pass *pass = &a->pass;
    const mom_rows *r = &a->rows;
    const size_t N = pass->N, C = pass->config->C, V = pass->config->V, n = r->scored_count;
    double sum = 0.0;
    if (a->keep) {
        MOM_ARENA_ZEROS(a->dhidden, pass->exec, pass->saved, N * C, pass->err);
        if (embeddings)
            MOM_ARENA_NEW(a->dwte, pass->exec->workspace, V * C, pass->err);
    }
    a->head_end = mom_arena_get_mark(pass->exec->workspace);
    const mom_interventions *in = pass->interventions;
    const mom_lm_head head = {.hidden = a->hidden, .wte = value(p, p->wte), .rows = r->scored, .labels = r->labels, .n = n,
                              .V = V, .C = C, .losses = in ? in->token_losses : NULL};
    MOM_TRY(mom_lm_head_gradient(pass->exec, &sum, a->dhidden, a->dwte, &head, pass->err));
    a->losses.labelled = n;
    a->losses.has[MOM_TERM_LM] = 1;
    a->losses.value[MOM_TERM_LM] = sum / (double)n; /* NaN if no row has a label: the mean of an empty set */
    return MOM_OK;
}

/* Copies (B, width) for backward; NULL stays NULL. */
static mom_status keep_labels(const mom_activations *a, void **out, const void *labels, size_t count, size_t size) {
    *out = NULL;
    if (!labels)
        return MOM_OK;
    *out = mom_arena_alloc(a->pass.saved, count, size, a->pass.err);
    if (!*out)
        return MOM_ERR_MEMORY;
    mom_copy(a->pass.exec, *out, labels, count * size);
    return MOM_OK;
}

static mom_status classify(mom_activations *a, const mom_params *p, const mom_batch *batch) {
    const mom_pass *pass = &a->pass;
    const mom_exec *x = pass->exec;
    const size_t B = pass->B, C = pass->config->C, L = pass->config->num_labels;
    void *classes, *values;
    MOM_ARENA_NEW(a->pooled_hidden, pass->saved, B * C, pass->err);
    MOM_ARENA_NEW(a->pooled_logits, pass->saved, B * L, pass->err);
    for (size_t b = 0; b < B && !x->dry_run; b++)
        mom_copy(x, a->pooled_hidden + b * C, a->hidden + (size_t)a->rows.pooled[b] * C, C * sizeof(float));
    const mom_linear_shape shape = {MOM_WEIGHT_OUT_IN, B, C, L};
    MOM_TRY(mom_linear_forward(x, a->pooled_logits, a->pooled_hidden, value(p, p->score), NULL, 0, &shape, pass->err));
    MOM_TRY(keep_labels(a, &classes, batch->classes, B, sizeof *a->classes));
    MOM_TRY(keep_labels(a, &values, classes ? NULL : batch->values, B * L, sizeof *a->values));
    a->classes = classes;
    a->values = values;
    a->label_loss = batch->label_loss;
    if (!classes && !values)
        return MOM_OK;
    for (size_t b = 0; b < B && !x->dry_run; b++)
        a->losses.labelled += !a->classes || a->classes[b] != MOM_IGNORED_LABEL;
    a->losses.has[MOM_TERM_LM] = 1;
    a->losses.value[MOM_TERM_LM] =
        mom_label_loss_compute(x, NULL, a->pooled_logits, a->classes, a->values, a->label_loss, 1.0f, B, L);
    return MOM_OK;
}

mom_status mom_head_forward(mom_activations *a, const mom_params *p, const mom_batch *batch, int embeddings) {
    mom_count_part(a->pass.exec, MOM_PART_HEAD);
    MOM_TRY(final_layernorm(a, p));
    if (a->pass.config->num_labels)
        return classify(a, p, batch);
    return batch->labels ? lm_loss(a, p, embeddings) : MOM_OK;
}

/* Adds factor * dwte to the gradient of wte and marks all its rows as touched. */
static void add_wte(const mom_activations *a, const mom_params *p, mom_gradients *g, float factor) {
    const size_t n = a->pass.config->V * a->pass.config->C;
    mom_scaled_add(a->pass.exec, mom_param_grad(g, p, p->wte), factor, a->dwte, n);
    if (!a->pass.exec->dry_run)
        mom_gradient_touch(g, p, p->wte, NULL, 0);
}

static mom_status lm_backward(mom_activations *a, const mom_params *p, mom_gradients *g, float *dhidden, float scale) {
    const mom_exec *x = a->pass.exec;
    if (!a->losses.labelled)
        return MOM_OK;
    const float factor = scale / (float)a->losses.labelled;
    if (a->dwte)
        add_wte(a, p, g, factor);
    if (!x->dry_run)
        x->k->vec.scale(dhidden, factor, dhidden, a->pass.N * a->pass.config->C);
    return MOM_OK;
}

static mom_status classifier_backward(mom_activations *a, const mom_params *p, mom_gradients *g, float *dhidden, float scale) {
    const mom_pass *pass = &a->pass;
    const mom_exec *x = pass->exec;
    const size_t B = pass->B, C = pass->config->C, L = pass->config->num_labels;
    float *dlogits, *dpooled;
    MOM_ARENA_NEW(dlogits, x->workspace, B * L, pass->err);
    mom_label_loss_compute(x, dlogits, a->pooled_logits, a->classes, a->values, a->label_loss, scale, B, L);
    const mom_linear_shape shape = {MOM_WEIGHT_OUT_IN, B, C, L};
    MOM_TRY(mom_linear_backward_weight(x, mom_param_grad(g, p, p->score), NULL, a->pooled_hidden, dlogits, &shape, pass->err));
    if (!dhidden)
        return MOM_OK;
    MOM_ARENA_NEW(dpooled, x->workspace, B * C, pass->err);
    MOM_TRY(mom_linear_backward_input(x, dpooled, dlogits, value(p, p->score), 0, &shape, pass->err));
    for (size_t b = 0; b < B && !x->dry_run; b++)
        mom_copy(x, dhidden + (size_t)a->rows.pooled[b] * C, dpooled + b * C, C * sizeof(float));
    return MOM_OK;
}

mom_status mom_head_backward(mom_activations *a, const mom_params *p, mom_gradients *g, float *dhidden, float scale) {
    mom_count_part(a->pass.exec, MOM_PART_HEAD);
    return a->pass.config->num_labels ? classifier_backward(a, p, g, dhidden, scale) : lm_backward(a, p, g, dhidden, scale);
}

mom_status mom_head_logits(const mom_activations *a, const mom_exec *x, const mom_params *p, float *out, const int32_t *rows,
                           size_t count, mom_error *err) {
    if (!a->has_routes || !a->hidden)
        return mom_error_set(err, MOM_ERR_STATE, "logits: there is no forward pass to take them from");
    for (size_t i = 0; i < count && a->rows.unneeded; i++)
        if (a->rows.unneeded[rows ? (size_t)rows[i] : i])
            return mom_error_set(err, MOM_ERR_STATE, "logits: row %zu was not asked for in the forward pass",
                                 rows ? (size_t)rows[i] : i);
    mom_count_part(x, MOM_PART_HEAD);
    const size_t C = a->pass.config->C, V = a->pass.config->V;
    mom_gemm g = {.m = count, .n = V, .k = C, .c = out, .ldc = V};
    g.a = mom_matrix_rows(a->hidden, C);
    g.a.row_index = rows;
    g.b = mom_matrix_transposed(value(p, p->wte), C);
    g.precision = x->precision;
    for (size_t i = 0; x->counts && a->rows.mask && i < count; i++)
        g.uncounted += a->rows.mask[rows ? (size_t)rows[i] : i] ? 0 : V * C;
    return mom_gemm_run(x, &g, 1, err);
}
