/* The tied head never holds all logits. It computes tiles of ROWS x COLUMNS logits and uses each tile while the tile is
 * in cache. Forward keeps a running maximum and sum per row. Backward knows the log-sum-exp and computes the logits
 * again. */
#include "ops/cross_entropy.h"

#include <math.h>
#include <string.h>

#include "base/sizes.h"

#define ROWS ((size_t)512)     /* of a tile of logits */
#define COLUMNS ((size_t)2048) /* of a tile of logits */
#define TASK_ROWS ((size_t)8)  /* rows of a row-wise task */

/* ---- cross entropy of given logits */

typedef struct {
    const mom_kernels *k;
    float *out; /* loss or dlogits */
    float *lse;
    const float *logits, *saved_lse;
    const int32_t *labels;
    float scale;
    size_t V;
} rows_job;

/* Sum of exp(in - max); the exponentials themselves are not kept. */
static double exp_total(const mom_kernels *k, const float *in, float max, size_t n) {
    float thrown_away[1024];
    double total = 0.0;
    for (size_t i = 0; i < n; i += 1024)
        total += (double)k->vec.exp_sum(thrown_away, in + i, 1.0f, max, mom_min(n - i, 1024));
    return total;
}

static void forward_task(const void *context, size_t begin, size_t end) {
    const rows_job *job = context;
    for (size_t i = begin; i < end; i++) {
        const float *logits = job->logits + i * job->V;
        const float max = job->k->vec.max(logits, job->V);
        const double log_total = log(exp_total(job->k, logits, max, job->V));
        job->lse[i] = (float)((double)max + log_total);
        job->out[i] = 0.0f;
        if (job->labels[i] != MOM_IGNORED_LABEL)
            job->out[i] = (float)(log_total - ((double)logits[job->labels[i]] - (double)max));
    }
}

void mom_cross_entropy_forward(const mom_exec *x, float *loss, float *lse, const float *logits, const int32_t *labels,
                               size_t N, size_t V) {
    rows_job job = {x->k, loss, lse, logits, NULL, labels, 1.0f, V};
    mom_parallel_rows(x, N, TASK_ROWS, forward_task, &job);
}

static void backward_task(const void *context, size_t begin, size_t end) {
    const rows_job *job = context;
    const size_t V = job->V;
    for (size_t i = begin; i < end; i++) {
        float *dlogits = job->out + i * V;
        if (job->labels[i] == MOM_IGNORED_LABEL) {
            memset(dlogits, 0, V * sizeof *dlogits);
            continue;
        }
        job->k->vec.exp_sum(dlogits, job->logits + i * V, 1.0f, job->saved_lse[i], V);
        job->k->vec.scale(dlogits, job->scale, dlogits, V);
        dlogits[job->labels[i]] -= job->scale;
    }
}

void mom_cross_entropy_backward(const mom_exec *x, float *dlogits, const float *logits, const float *lse,
                                const int32_t *labels, float scale, size_t N, size_t V) {
    rows_job job = {x->k, dlogits, NULL, logits, lse, labels, scale, V};
    mom_parallel_rows(x, N, TASK_ROWS, backward_task, &job);
}

/* ---- tied head and loss */

typedef struct {
    const mom_kernels *k;
    mom_dtype precision;
    float *logits; /* (rows, columns): the current tile, dense */
    size_t rows, columns, first_column;
    const int32_t *labels; /* (rows) */
    float *max;            /* (rows): forward, running */
    double *total, *label; /* (rows): forward, running sum of exp(logit - max); logit of the label */
    const float *lse;      /* (rows): backward */
    float scale;
    float *dhidden;         /* (N, C) */
    const float *dselected; /* (rows, C) */
    const int32_t *index;   /* (rows) rows of dhidden */
    size_t C;
} head_job;

/* Column of the label inside the current tile; `columns` or more when it lies elsewhere. */
static size_t label_column(const head_job *job, size_t row) { return (size_t)job->labels[row] - job->first_column; }

static mom_gemm logits_product(const head_job *job, const float *hidden, const float *wte) {
    mom_gemm g = {.m = job->rows, .n = job->columns, .k = job->C, .c = job->logits, .ldc = job->columns,
                  .precision = job->precision};
    g.a = mom_matrix_rows(hidden, job->C);
    g.a.row_index = job->index;
    g.b = mom_matrix_transposed(wte + job->first_column * job->C, job->C);
    return g;
}

static void head_forward_task(const void *context, size_t begin, size_t end) {
    const head_job *job = context;
    for (size_t i = begin; i < end; i++) {
        float *logits = job->logits + i * job->columns;
        if (label_column(job, i) < job->columns)
            job->label[i] = (double)logits[label_column(job, i)];
        const float max = fmaxf(job->max[i], job->k->vec.max(logits, job->columns));
        const double before = job->first_column ? job->total[i] * exp((double)job->max[i] - (double)max) : 0.0;
        job->total[i] = before + (double)job->k->vec.exp_sum(logits, logits, 1.0f, max, job->columns);
        job->max[i] = max;
    }
}

/* Columns [first_column, ...) of the logits of the job's rows. */
static mom_status compute_logits(const mom_exec *x, head_job *job, const mom_lm_head *head, mom_error *err) {
    job->columns = mom_min(head->V - job->first_column, COLUMNS);
    const mom_gemm product = logits_product(job, head->hidden, head->wte);
    return mom_gemm_run(x, &product, 1, err);
}

/* The rows [r, r + ROWS) at most. */
static void take_rows(head_job *job, const mom_lm_head *head, size_t r) {
    job->rows = mom_min(head->n - r, ROWS);
    job->index = head->rows + r;
    job->labels = head->labels + r;
}

mom_status mom_lm_head_forward(const mom_exec *x, double *loss_sum, float *lse, const mom_lm_head *head, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t most_rows = mom_min(head->n, ROWS);
    head_job job = {.k = x->k, .precision = x->precision, .C = head->C};
    double sum = 0.0;
    MOM_ARENA_NEW(job.logits, x->workspace, most_rows * mom_min(head->V, COLUMNS), err);
    MOM_ARENA_NEW(job.max, x->workspace, most_rows, err);
    MOM_ARENA_NEW(job.total, x->workspace, most_rows, err);
    MOM_ARENA_NEW(job.label, x->workspace, most_rows, err);
    for (size_t r = 0; r < head->n; r += ROWS) {
        take_rows(&job, head, r);
        for (size_t i = 0; i < job.rows; i++)
            job.max[i] = -INFINITY;
        for (job.first_column = 0; job.first_column < head->V; job.first_column += COLUMNS) {
            MOM_TRY(compute_logits(x, &job, head, err));
            mom_parallel_rows(x, job.rows, TASK_ROWS, head_forward_task, &job);
        }
        for (size_t i = 0; i < job.rows && !x->dry_run; i++) {
            const double log_total = log(job.total[i]);
            lse[r + i] = (float)((double)job.max[i] + log_total);
            sum += log_total - (job.label[i] - (double)job.max[i]);
        }
    }
    *loss_sum = sum;
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

static void head_backward_task(const void *context, size_t begin, size_t end) {
    const head_job *job = context;
    for (size_t i = begin; i < end; i++) {
        float *logits = job->logits + i * job->columns;
        job->k->vec.exp_sum(logits, logits, 1.0f, job->lse[i], job->columns);
        if (label_column(job, i) < job->columns)
            logits[label_column(job, i)] -= 1.0f;
    }
}

static void add_to_rows_task(const void *context, size_t begin, size_t end) {
    const head_job *job = context;
    for (size_t i = begin; i < end; i++)
        job->k->vec.axpy(job->dhidden + (size_t)job->index[i] * job->C, job->scale, job->dselected + i * job->C, job->C);
}

/* dselected = or += dlogits * wte and dwte += dlogits^T * (scale * hidden), for the columns of the tile. One call runs
 * both, since their outputs are separate. The logits' gradient itself is not scaled: that would be one more pass over the
 * tile, and small probabilities times a small scale are slow, denormal numbers. */
static mom_status add_gradients(const mom_exec *x, const head_job *job, float *dselected, float *dwte, const float *scales,
                                const mom_lm_head *head, mom_error *err) {
    const size_t C = job->C, columns = job->columns, wte_begin = job->first_column * C;
    mom_matrix inputs = mom_matrix_rows(head->hidden, C);
    inputs.row_index = job->index;
    const mom_gemm gradients[2] = {
        {.m = job->rows, .n = C, .k = columns, .a = mom_matrix_rows(job->logits, columns),
         .b = mom_matrix_rows(head->wte + wte_begin, C), .c = dselected, .ldc = C, .accumulate = job->first_column > 0,
         .precision = x->precision},
        {.m = columns, .n = C, .k = job->rows, .a = mom_matrix_transposed(job->logits, columns), .b = inputs,
         .c = dwte + wte_begin, .ldc = C, .k_scale = scales, .accumulate = 1, .precision = x->precision}};
    return mom_gemm_run(x, gradients, 2, err);
}

mom_status mom_lm_head_backward(const mom_exec *x, float *dhidden, float *dwte, const mom_lm_head *head, const float *lse,
                                float scale, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t most_rows = mom_min(head->n, ROWS), C = head->C;
    head_job job = {.k = x->k, .precision = x->precision, .scale = scale, .dhidden = dhidden, .C = C};
    float *dselected; /* (rows, C): gradient of the chunk's rows of hidden, without `scale` */
    float *scales;    /* (rows): all `scale` */
    MOM_ARENA_NEW(job.logits, x->workspace, most_rows * mom_min(head->V, COLUMNS), err);
    MOM_ARENA_NEW(dselected, x->workspace, most_rows * C, err);
    MOM_ARENA_NEW(scales, x->workspace, most_rows, err);
    for (size_t i = 0; i < most_rows; i++)
        scales[i] = scale;
    job.dselected = dselected;
    for (size_t r = 0; r < head->n; r += ROWS) {
        take_rows(&job, head, r);
        job.lse = lse + r;
        for (job.first_column = 0; job.first_column < head->V; job.first_column += COLUMNS) {
            MOM_TRY(compute_logits(x, &job, head, err));
            mom_parallel_rows(x, job.rows, TASK_ROWS, head_backward_task, &job);
            MOM_TRY(add_gradients(x, &job, dselected, dwte, scales, head, err));
        }
        mom_parallel_rows(x, job.rows, TASK_ROWS, add_to_rows_task, &job);
    }
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
