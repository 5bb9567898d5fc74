/* DESIGN  Work is cut by the matrix alone. Panels, and rows of [out, in], have outputs of their own; bias and GELU follow in
 *         the same task. An [in, out] matrix is cut along k as well, so that each task reads long runs of memory. Then the
 *         parts' sums are added in order, with bias and GELU.
 * COST    Reads the matrix once; for [in, out] also PARTS * rows * n floats.
 */
#include "ops/gemv.h"

#include <math.h>
#include <string.h>

#include "base/sizes.h"

#define PARTS ((size_t)8)      /* of an [in, out] matrix along k, if it is large enough */
#define COLUMNS ((size_t)8192) /* most columns in a task of [in, out]: long runs of memory, but sums stay in cache */
#define LEAST_STEPS ((size_t)16)
#define TASK_BYTES ((size_t)1 << 17) /* of panels or rows */
#define REDUCE_COLUMNS ((size_t)512)
#define GELU_COLUMNS ((size_t)256)
#define REDUCE_ALONE ((size_t)1 << 16) /* floats that one thread adds up faster than several */

static size_t element_size(mom_gemv_format format) {
    return format == MOM_GEMV_F32 ? sizeof(float) : format == MOM_GEMV_BF16 ? sizeof(mom_bf16) : 1;
}

static int in_out(const mom_gemv_matrix *m) { return m->format == MOM_GEMV_F32 && m->layout == MOM_WEIGHT_IN_OUT; }

/* How one matrix is cut. Depends on its size only. */
typedef struct {
    size_t columns, column_parts; /* outputs per task */
    size_t steps, step_parts;     /* of k per task; 1 part but for [in, out] */
} cut;

static cut cut_matrix(const mom_gemv_matrix *m) {
    cut c = {.steps = m->k, .step_parts = 1};
    if (in_out(m)) {
        c.column_parts = mom_max(mom_div_up(m->n, COLUMNS), 1);
        c.columns = mom_max(mom_round_up(mom_div_up(m->n, c.column_parts), 16), 16);
        c.column_parts = mom_div_up(m->n, c.columns);
        c.steps = mom_max(mom_div_up(m->k, PARTS), LEAST_STEPS);
        c.step_parts = mom_max(mom_div_up(m->k, c.steps), 1);
        return c;
    }
    const size_t unit = m->format == MOM_GEMV_F32 ? 1 : MOM_PANEL;
    const size_t units = mom_max(TASK_BYTES / mom_max(unit * m->k * element_size(m->format), 1), 1);
    c.columns = units * unit;
    c.column_parts = mom_div_up(m->n, c.columns);
    return c;
}

typedef struct {
    const mom_gemv *product;
    cut cut;
    size_t first_task, first_reduction;
    float *sums; /* (step_parts, rows, n) for [in, out] */
} gemv_piece;

typedef struct {
    const mom_kernels *k;
    gemv_piece *pieces;
    size_t count;
} gemv_job;

/* The last piece that begins at or before the task. */
static const gemv_piece *find_piece(const gemv_job *job, size_t task) {
    size_t i = job->count - 1;
    while (job->pieces[i].first_task > task)
        i--;
    return &job->pieces[i];
}

static void finish(const mom_kernels *k, const mom_gemv *p, size_t begin, size_t end) {
    const size_t n = p->matrix->n;
    for (size_t r = 0; r < p->rows; r++) {
        float *out = p->out + r * n + begin;
        if (p->bias)
            k->vec.add(out, p->bias + begin, end - begin);
        for (size_t j = 0; p->gelu && j < end - begin; j += GELU_COLUMNS) {
            float inp[GELU_COLUMNS];
            const size_t width = mom_min(GELU_COLUMNS, end - begin - j);
            memcpy(inp, out + j, width * sizeof *inp);
            k->vec.gelu_forward(out + j, inp, width);
        }
    }
}

static void multiply_in_out(const mom_kernels *k, const gemv_piece *piece, size_t part, size_t begin, size_t end) {
    const mom_gemv *p = piece->product;
    const mom_gemv_matrix *m = p->matrix;
    const size_t first = part * piece->cut.steps, steps = mom_min(piece->cut.steps, m->k - first);
    float *sums = piece->sums + part * p->rows * m->n + begin;
    for (size_t r = 0; r < p->rows; r++)
        memset(sums + r * m->n, 0, (end - begin) * sizeof *sums);
    k->gemv.axpys(sums, m->n, p->x + first, m->k, (const float *)m->data + first * m->n + begin, m->n, p->rows, steps,
                  end - begin);
}

static void product_task(void *context, size_t task, int thread) {
    const gemv_job *job = context;
    (void)thread;
    const mom_kernels *k = job->k;
    const gemv_piece *piece = find_piece(job, task);
    const mom_gemv *p = piece->product;
    const mom_gemv_matrix *m = p->matrix;
    const size_t local = task - piece->first_task, column = local % piece->cut.column_parts;
    const size_t begin = column * piece->cut.columns, end = mom_min(begin + piece->cut.columns, m->n);
    if (in_out(m)) {
        multiply_in_out(k, piece, local / piece->cut.column_parts, begin, end);
        return;
    }
    if (m->format == MOM_GEMV_F32) {
        k->gemv.dots(p->out + begin, m->n, p->x, m->k, (const float *)m->data + begin * m->k, p->rows, m->k, end - begin);
    } else {
        for (size_t j = begin; j < end; j += MOM_PANEL) {
            const size_t width = mom_min(MOM_PANEL, end - j);
            if (m->format == MOM_GEMV_BF16)
                k->gemv.panel_bf16(p->out + j, m->n, p->x, m->k, (const mom_bf16 *)m->data + j * m->k, p->rows, m->k,
                                   width);
            else
                k->gemv.panel_i8(p->out + j, m->n, p->x, m->k, (const int8_t *)m->data + j * m->k, m->scale + j,
                                 p->rows, m->k, width);
        }
    }
    finish(k, p, begin, end);
}

/* Adds up the parts of [in, out] products, columns [begin, end) of all rows. */
static void reduction_task(void *context, size_t task, int thread) {
    const gemv_job *job = context;
    (void)thread;
    size_t i = job->count - 1;
    while (job->pieces[i].first_reduction > task || !in_out(job->pieces[i].product->matrix))
        i--;
    const gemv_piece *piece = &job->pieces[i];
    const mom_gemv *p = piece->product;
    const size_t n = p->matrix->n, begin = (task - piece->first_reduction) * REDUCE_COLUMNS;
    const size_t end = mom_min(begin + REDUCE_COLUMNS, n);
    for (size_t r = 0; r < p->rows; r++) {
        float *out = p->out + r * n + begin;
        const float *sums = piece->sums + r * n + begin;
        memcpy(out, sums, (end - begin) * sizeof *out);
        for (size_t part = 1; part < piece->cut.step_parts; part++)
            job->k->vec.add(out, sums + part * p->rows * n, end - begin);
    }
    finish(job->k, p, begin, end);
}

mom_status mom_gemv_run(const mom_exec *x, const mom_gemv *products, size_t count, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    gemv_job job = {.k = x->k};
    size_t tasks = 0, reductions = 0, floats = 0;
    MOM_ARENA_NEW(job.pieces, x->workspace, count, err);
    for (size_t i = 0; i < count; i++) {
        const mom_gemv *p = &products[i];
        if (!p->rows || !p->matrix->n)
            continue;
        if (x->counts)
            mom_counts_add(x->counts, x->counts->part, p->rows * p->matrix->k * p->matrix->n);
        gemv_piece *piece = &job.pieces[job.count++];
        *piece = (gemv_piece){p, cut_matrix(p->matrix), tasks, reductions, NULL};
        tasks += piece->cut.column_parts * piece->cut.step_parts;
        if (!in_out(p->matrix))
            continue;
        const size_t n = piece->cut.step_parts * p->rows * p->matrix->n;
        MOM_ARENA_NEW(piece->sums, x->workspace, n, err);
        reductions += mom_div_up(p->matrix->n, REDUCE_COLUMNS);
        floats += n;
    }
    mom_parallel_for(x, tasks, product_task, &job);
    mom_exec reducing = *x;
    reducing.threads = floats < REDUCE_ALONE ? 1 : x->threads;
    mom_parallel_for(&reducing, reductions, reduction_task, &job);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

/* ------------------------------------------------------------------ copies in panels */

static size_t panel_bytes(mom_gemv_format format, size_t k) { return MOM_PANEL * k * element_size(format); }

static size_t scale_bytes(mom_gemv_format format, size_t n) {
    return format == MOM_GEMV_INT8 ? mom_round_up(n, MOM_PANEL) * sizeof(float) : 0;
}

size_t mom_gemv_packed_bytes(mom_gemv_format format, size_t k, size_t n) {
    return mom_div_up(n, MOM_PANEL) * panel_bytes(format, k) + scale_bytes(format, n);
}

typedef struct {
    unsigned char *panels;
    float *scale;
    mom_gemv_format format;
    const float *weight;
    size_t output_stride, step_stride; /* of weight, in floats */
    size_t k, n;
} pack_job;

static float column_scale(const pack_job *job, size_t j) {
    float largest = 0.0f;
    for (size_t p = 0; p < job->k; p++) {
        const float v = fabsf(job->weight[j * job->output_stride + p * job->step_stride]);
        largest = v > largest || v != v ? v : largest;
    }
    return largest / 127.0f;
}

/* Rounds to nearest. A column without a finite scale becomes zeros; times that scale they give NaN where they are used. */
static int8_t quantise(float v, float scale) {
    const float q = scale > 0.0f && scale < INFINITY ? rintf(v / scale) : 0.0f;
    return (int8_t)(q < -127.0f ? -127.0f : q > 127.0f ? 127.0f : q);
}

static void pack_task(void *context, size_t task, int thread) {
    const pack_job *job = context;
    (void)thread;
    const size_t begin = task * MOM_PANEL, width = mom_min(MOM_PANEL, job->n - begin);
    unsigned char *panel = job->panels + task * panel_bytes(job->format, job->k);
    memset(panel, 0, panel_bytes(job->format, job->k));
    if (job->scale) {
        memset(job->scale + begin, 0, MOM_PANEL * sizeof *job->scale);
        for (size_t j = 0; j < width; j++)
            job->scale[begin + j] = column_scale(job, begin + j);
    }
    for (size_t p = 0; p < job->k; p++) {
        const float *in = job->weight + begin * job->output_stride + p * job->step_stride;
        for (size_t j = 0; j < width; j++) {
            const float v = in[j * job->output_stride];
            if (job->format == MOM_GEMV_BF16)
                ((mom_bf16 *)panel)[p * MOM_PANEL + j / 32 * 32 + j % 16 * 2 + j / 16 % 2] = mom_bf16_from_f32(v);
            else
                ((int8_t *)panel)[p * MOM_PANEL + j % 16 * 4 + j / 16] = quantise(v, job->scale[begin + j]);
        }
    }
}

void mom_gemv_pack(const mom_exec *x, mom_gemv_matrix *matrix, void *data, mom_gemv_format format, const float *weight,
                   mom_weight_layout layout, size_t k, size_t n) {
    const int out_in = layout == MOM_WEIGHT_OUT_IN;
    pack_job job = {.panels = data, .format = format, .weight = weight, .output_stride = out_in ? k : 1,
                    .step_stride = out_in ? 1 : n, .k = k, .n = n};
    if (format == MOM_GEMV_INT8)
        job.scale = (float *)(void *)(job.panels + mom_div_up(n, MOM_PANEL) * panel_bytes(format, k));
    mom_parallel_for(x, mom_div_up(n, MOM_PANEL), pack_task, &job);
    *matrix = (mom_gemv_matrix){format, layout, data, job.scale, k, n};
}
