/* Contract: lm_head.h.
 *
 * DESIGN  Rows are taken in chunks whose logits fit a bounded tile. While a block of logits is in cache, it is replaced by
 *         exp(logit - maximum of the block), and its maximum and sum are kept. When the row is complete, one factor per
 *         block turns it into probabilities. So every logit is computed once and put through exp once. Backward only scales
 *         what is computed here.
 * COST    6 n V C FLOP. A tile has at most TILE numbers (32 MB), but at least LEAST_ROWS rows. Each chunk packs wte twice and
 *         goes over dwte once. With half the tile the head takes 3 % longer in float32 (preset mini) and 6 to 11 % in
 *         bfloat16 (mini, base), which is 1 to 2 % of a step; with a quarter of it 15 % and 25 to 36 %.
 * BITS    Blocks of columns, slices and chunks of rows depend on V, C and the type only. They are added in order.
 */
#include "ops/lm_head.h"

#include <math.h>
#include <string.h>

#include "base/sizes.h"

#define TILE ((size_t)1 << 23)
#define SLICE ((size_t)1 << 21)    /* numbers of wte packed at a time for the gradient of the inputs */
#define SLICE_UNIT ((size_t)1536) /* whole blocks of the products' sums at every level */
#define LEAST_ROWS ((size_t)48)
#define MOST_ROWS ((size_t)1024)
#define TASK_ROWS ((size_t)8)

typedef struct {
    const mom_kernels *k;
    void *tile; /* (rows, V), row stride ld, of type dtype: exp(logit - block's maximum), then the gradient of the logits;
                   or NULL */
    size_t ld;
    mom_dtype dtype;
    float *max, *sum;      /* (rows, blocks) */
    float *label;          /* (rows) logit of the label */
    double *loss;          /* (rows) */
    const int32_t *labels; /* (rows) */
    size_t rows, V, blocks;
} tile_job;

/* Rows that lie a multiple of 2 KB apart would share few sets of a cache. */
static size_t row_stride(size_t V) { return V % 512 ? V : V + 16; }

static void *tile_at(const tile_job *job, size_t row, size_t column) {
    return (unsigned char *)job->tile + (row * job->ld + column) * mom_dtype_size(job->dtype);
}

static void finish_exp(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m, size_t j0,
                       size_t n) {
    const tile_job *job = g->context;
    for (size_t i = i0; i < i0 + m; i++) {
        float *row = sums + (i - i0) * ld;
        const size_t block = i * job->blocks + j0 / k->gemm.column_block, label = (size_t)job->labels[i];
        if (label >= j0 && label < j0 + n)
            job->label[i] = row[label - j0];
        float *out = job->tile && job->dtype == MOM_F32 ? tile_at(job, i, j0) : row;
        job->max[block] = k->vec.max(row, n);
        job->sum[block] = k->vec.exp_sum(out, row, 1.0f, job->max[block], n);
        if (job->tile && job->dtype == MOM_BF16)
            k->vec.to_bf16(tile_at(job, i, j0), row, n);
    }
}

/* softmax - one_hot of a row, from its blocks */
static void softmax_task(const void *context, size_t begin, size_t end) {
    const tile_job *job = context;
    const mom_kernels *k = job->k;
    float buffer[MOM_MOST_COLUMNS];
    for (size_t i = begin; i < end; i++) {
        const float *max = job->max + i * job->blocks, *sum = job->sum + i * job->blocks;
        const double largest = (double)k->vec.max(max, job->blocks);
        double total = 0.0;
        for (size_t b = 0; b < job->blocks; b++)
            total += (double)sum[b] * exp((double)max[b] - largest);
        const double lse = largest + log(total);
        const size_t label = (size_t)job->labels[i];
        job->loss[i] = lse - (double)job->label[i];
        for (size_t b = 0; job->tile && b < job->blocks; b++) {
            const size_t j0 = b * k->gemm.column_block, n = mom_min(k->gemm.column_block, job->V - j0);
            float *row = job->dtype == MOM_BF16 ? buffer : tile_at(job, i, j0);
            if (job->dtype == MOM_BF16)
                k->vec.from_bf16(row, tile_at(job, i, j0), n);
            k->vec.scale(row, (float)exp((double)max[b] - lse), row, n);
            if (label >= j0 && label < j0 + n)
                row[label - j0] -= 1.0f;
            if (job->dtype == MOM_BF16)
                k->vec.to_bf16(tile_at(job, i, j0), row, n);
        }
    }
}

typedef struct {
    float *dhidden;
    const float *selected;
    const int32_t *index;
    size_t C;
} scatter_job;

static void scatter_task(void *context, size_t task, int thread) {
    const scatter_job *job = context;
    (void)thread;
    memcpy(job->dhidden + (size_t)job->index[task] * job->C, job->selected + task * job->C, job->C * sizeof(float));
}

/* dselected (rows, C) = dlogits * wte and dwte = or += dlogits^T * hidden, slice by slice of the columns, so that wte is
 * never packed as a whole. dwte may be NULL. */
static mom_status multiply_gradients(const mom_exec *x, const tile_job *job, float *selected, float *dwte,
                                     const mom_matrix *inputs, const mom_lm_head *head, int accumulate, mom_error *err) {
    const size_t C = head->C, slice = mom_max(SLICE / C / SLICE_UNIT, 1) * SLICE_UNIT;
    for (size_t v = 0; v < head->V; v += slice) {
        const size_t columns = mom_min(slice, head->V - v);
        const mom_matrix dlogits = mom_matrix_of(tile_at(job, 0, v), x->precision, job->ld);
        const mom_gemm gradients[2] = {
            {.m = job->rows, .n = C, .k = columns, .a = dlogits, .b = mom_matrix_rows(head->wte + v * C, C), .c = selected,
             .ldc = C, .precision = x->precision, .accumulate = v > 0},
            {.m = columns, .n = C, .k = job->rows, .a = mom_matrix_flip(dlogits), .b = *inputs,
             .c = dwte ? dwte + v * C : NULL, .ldc = C, .precision = x->precision, .accumulate = accumulate}};
        MOM_TRY(mom_gemm_run(x, gradients, dwte ? 2 : 1, err));
    }
    return MOM_OK;
}

mom_status mom_lm_head_gradient(const mom_exec *x, double *loss_sum, float *dhidden, float *dwte, const mom_lm_head *head,
                                mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t n = head->n, V = head->V, C = head->C;
    *loss_sum = 0.0;
    if (!n)
        return MOM_OK;
    const size_t blocks = mom_div_up(V, x->k->gemm.column_block);
    const size_t most = mom_min(n, mom_min(MOST_ROWS, mom_max(TILE / V, LEAST_ROWS)));
    tile_job job = {.k = x->k, .ld = row_stride(V), .dtype = x->precision, .V = V, .blocks = blocks};
    float *selected = NULL;
    if (dhidden) {
        MOM_ARENA_NEW_SIZED(job.tile, x->workspace, most * job.ld, mom_dtype_size(x->precision), err);
        MOM_ARENA_NEW(selected, x->workspace, most * C, err);
    }
    MOM_ARENA_NEW(job.max, x->workspace, most * blocks, err);
    MOM_ARENA_NEW(job.sum, x->workspace, most * blocks, err);
    MOM_ARENA_NEW(job.label, x->workspace, most, err);
    MOM_ARENA_NEW(job.loss, x->workspace, most, err);
    for (size_t r = 0; r < n && !(r && x->dry_run); r += most) {
        job.rows = mom_min(most, n - r);
        job.labels = head->labels + r;
        mom_matrix inputs = mom_matrix_rows(head->hidden, C);
        inputs.row_index = head->rows + r;
        const mom_gemm logits = {.m = job.rows, .n = V, .k = C, .a = inputs, .b = mom_matrix_transposed(head->wte, C),
                                 .precision = x->precision, .finish = finish_exp, .whole_blocks = 1, .context = &job};
        MOM_TRY(mom_gemm_run(x, &logits, 1, err));
        mom_parallel_rows(x, job.rows, TASK_ROWS, softmax_task, &job);
        for (size_t i = 0; i < job.rows && !x->dry_run; i++) {
            *loss_sum += job.loss[i];
            if (head->losses)
                head->losses[head->rows[r + i]] = (float)job.loss[i];
        }
        if (!dhidden)
            continue;
        const mom_work work = mom_count_work(x, MOM_WORK_BACKWARD);
        MOM_TRY(multiply_gradients(x, &job, selected, dwte, &inputs, head, r > 0, err));
        mom_count_work(x, work);
        scatter_job scatter = {dhidden, selected, head->rows + r, C};
        mom_parallel_for(x, job.rows, scatter_task, &scatter);
    }
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
