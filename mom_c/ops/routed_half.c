/* Fused products of a half-round. Contracts: routed_half.h; derivation: docs/derivations/routed_linear.md.
 *
 * DESIGN  Every layer is one grouped product (kernels/gemm.h). What happens to its results is a `finish` function that
 *         sees blocks of at most MOM_FINISH_COLUMNS columns while they are in cache. With one slot per token a
 *         result goes straight to its token's row; with several it is kept by slot and a pass over tokens adds them up in
 *         the order of the token's choices.
 * COST    Beside the products: forward one pass over the residual stream, backward two over the slots; no copy of
 *         LayerNorm's or GELU's outputs exists.
 * BITS    Sums over a row (gradients of scores) are gathered in one number per block of columns and added in order.
 */
#include "ops/routed_half.h"

#include <string.h>

#include "ops/layernorm.h"
#include "ops/linear.h"
#include "ops/routed_linear.h"

#define TASK_ROWS 64 /* tokens or slots per task of a pass */

static size_t row_tasks(size_t rows) { return (rows + TASK_ROWS - 1) / TASK_ROWS; }
static size_t column_blocks(size_t width) { return (width + MOM_FINISH_COLUMNS - 1) / MOM_FINISH_COLUMNS; }

static size_t module_slots(const mom_routing_plan *plan, size_t m) {
    return (size_t)(plan->offsets[m + 1] - plan->offsets[m]);
}

/* Slots rise by token within a module, so a module that has all tokens has them in order. */
static int whole(const mom_routing_plan *plan, size_t m) { return module_slots(plan, m) == plan->N; }

/* Where row `row` of an array of `width` columns begins, from column j on. */
static void *at(const void *data, mom_dtype dtype, size_t row, size_t width, size_t j) {
    return (unsigned char *)(uintptr_t)data + (row * width + j) * mom_dtype_size(dtype);
}

/* Rows of module m's tokens, or of its slots. */
static mom_matrix token_rows(const mom_routing_plan *plan, size_t m, const void *data, mom_dtype dtype, size_t width) {
    mom_matrix rows = mom_matrix_of(data, dtype, width);
    if (!whole(plan, m))
        rows.row_index = plan->token + plan->offsets[m];
    return rows;
}

static mom_matrix slot_rows(const mom_routing_plan *plan, size_t m, const void *data, mom_dtype dtype, size_t width) {
    return mom_matrix_of(at(data, dtype, (size_t)plan->offsets[m], width, 0), dtype, width);
}

static mom_matrix rows_of(const mom_routing_plan *plan, size_t m, const void *data, mom_dtype dtype, size_t width,
                          int by_token) {
    return by_token ? token_rows(plan, m, data, dtype, width) : slot_rows(plan, m, data, dtype, width);
}

static mom_gemm_norm module_norm(const mom_half *half, size_t m) {
    return (mom_gemm_norm){half->mean, half->rstd, half->ln_weight[m], half->ln_bias[m]};
}

static const void *packed_of(const mom_half_layer *layer, size_t m) { return layer->packed ? layer->packed[m] : NULL; }

/* What a finish function knows of its product. */
typedef struct {
    const mom_half *half;
    size_t m, first; /* module, its first slot */
    size_t width;    /* of the arrays below */
    void *out;       /* results: see each function */
    mom_dtype out_dtype;
    int by_token;
    const float *weight; /* (N, K) or NULL */
    mom_dropout dropout;
    const void *inner;   /* other factor of the score's gradient */
    float *partial;      /* (slots, blocks): <sums, other factor> per block of columns */
    size_t blocks;
} finish_context;

/* The slot and token of row r of a block, and the score that multiplies it. */
typedef struct {
    size_t slot, token;
    float weight;
} row_place;

static row_place place_of(const finish_context *f, size_t r) {
    const mom_routing_plan *plan = f->half->plan;
    const size_t slot = f->first + r, token = (size_t)plan->token[slot];
    return (row_place){slot, token, f->weight ? f->weight[token * plan->K + (size_t)plan->choice[slot]] : 1.0f};
}

static void store_row(const mom_kernels *k, void *out, mom_dtype dtype, float *row, float factor, size_t n) {
    if (dtype == MOM_BF16) {
        if (factor != 1.0f)
            k->vec.scale(row, factor, row, n);
        k->vec.to_bf16(out, row, n);
    } else {
        k->vec.scale(out, factor, row, n);
    }
}

/* A row as float32: the row itself or its conversion in `buffer`. */
static const float *load_row(const mom_kernels *k, float *buffer, const void *row, mom_dtype dtype, size_t n) {
    if (dtype == MOM_F32)
        return row;
    k->vec.from_bf16(buffer, row, n);
    return buffer;
}

/* out[slot or token] = weight * sums */
static void finish_store(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m, size_t j0,
                         size_t n) {
    const finish_context *f = g->context;
    for (size_t r = 0; r < m; r++) {
        const row_place p = place_of(f, i0 + r);
        void *out = at(f->out, f->out_dtype, f->by_token ? p.token : p.slot, f->width, j0);
        store_row(k, out, f->out_dtype, sums + r * ld, p.weight, n);
    }
}

static void drop(float *row, mom_dropout dropout, uint64_t index, size_t n) {
    for (size_t j = 0; j < n; j++)
        row[j] *= mom_dropout_scale(dropout, index + j);
}

/* x_out[token] = x[token] + dropout(weight * sums) */
static void finish_residual(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m,
                            size_t j0, size_t n) {
    const finish_context *f = g->context;
    for (size_t r = 0; r < m; r++) {
        const row_place p = place_of(f, i0 + r);
        float *row = sums + r * ld, *out = (float *)f->out + p.token * f->width + j0;
        const float *x = f->half->x + p.token * f->width + j0;
        if (f->dropout.p > 0.0f)
            drop(row, f->dropout, (uint64_t)p.token * f->width + j0, n);
        if (out != x)
            memcpy(out, x, n * sizeof *out);
        k->vec.axpy(out, p.weight, row, n);
    }
}

/* inner[slot] becomes weight * sums * gelu'(inner); partial: <sums, gelu(inner)> */
static void finish_gelu_backward(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m,
                                 size_t j0, size_t n) {
    const finish_context *f = g->context;
    float buffer[MOM_FINISH_COLUMNS];
    for (size_t r = 0; r < m; r++) {
        const row_place p = place_of(f, i0 + r);
        float *row = sums + r * ld;
        void *inner = at(f->inner, f->half->dtype, p.slot, f->width, j0);
        const float *v = load_row(k, buffer, inner, f->half->dtype, n);
        const float score = k->vec.gelu_backward_score(row, v, p.weight, n);
        if (f->partial)
            f->partial[p.slot * f->blocks + j0 / MOM_FINISH_COLUMNS] = score;
        store_row(k, inner, f->half->dtype, row, 1.0f, n);
    }
}

/* out[slot or token] = weight * sums; partial: <sums, inner[token]> */
static void finish_scored(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m, size_t j0,
                          size_t n) {
    const finish_context *f = g->context;
    float buffer[MOM_FINISH_COLUMNS];
    for (size_t r = 0; r < m; r++) {
        const row_place p = place_of(f, i0 + r);
        float *row = sums + r * ld;
        if (f->partial) {
            const void *inner = at(f->inner, f->half->dtype, p.token, f->width, j0);
            f->partial[p.slot * f->blocks + j0 / MOM_FINISH_COLUMNS] =
                k->vec.dot(row, load_row(k, buffer, inner, f->half->dtype, n), n);
        }
        void *out = at(f->out, f->out_dtype, f->by_token ? p.token : p.slot, f->width, j0);
        store_row(k, out, f->out_dtype, row, p.weight, n);
    }
}

/* out[token] += sums */
static void finish_add(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m, size_t j0,
                       size_t n) {
    const finish_context *f = g->context;
    for (size_t r = 0; r < m; r++)
        k->vec.add((float *)f->out + place_of(f, i0 + r).token * f->width + j0, sums + r * ld, n);
}

/* out[slot] = weight * sums; partial: <sums, LN_m(x)[token]> */
static void finish_scored_norm(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m,
                               size_t j0, size_t n) {
    const finish_context *f = g->context;
    const mom_half *half = f->half;
    float xn[MOM_FINISH_COLUMNS];
    for (size_t r = 0; r < m; r++) {
        const row_place p = place_of(f, i0 + r);
        k->norm.apply(xn, half->x + p.token * half->C + j0, half->mean[p.token], half->rstd[p.token],
                           half->ln_weight[f->m] + j0, half->ln_bias[f->m] + j0, n);
        f->partial[p.slot * f->blocks + j0 / MOM_FINISH_COLUMNS] = k->vec.dot(sums + r * ld, xn, n);
        k->vec.scale((float *)f->out + p.slot * f->width + j0, p.weight, sums + r * ld, n);
    }
}

/* ---- passes over tokens and slots */

typedef struct {
    const mom_half *half;
    void *out;
    mom_dtype out_dtype;
    const float *x; /* residual stream, or NULL for none */
    const float *y, *weight;
    mom_dropout dropout;
    size_t width;
    float *rows; /* (threads, width) */
} mix_job;

static void mix_task(void *context, size_t task, int thread) {
    const mix_job *job = context;
    const mom_kernels *k = job->half->exec->k;
    const mom_routing_plan *plan = job->half->plan;
    const size_t width = job->width;
    float *row = job->rows + (size_t)thread * width;
    size_t begin, end;
    mom_range(plan->N, row_tasks(plan->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        memset(row, 0, width * sizeof *row);
        for (size_t i = t * plan->K; i < (t + 1) * plan->K; i++)
            if (plan->slot[i] >= 0)
                k->vec.axpy(row, job->weight ? job->weight[i] : 1.0f, job->y + (size_t)plan->slot[i] * width, width);
        if (job->dropout.p > 0.0f)
            drop(row, job->dropout, (uint64_t)t * width, width);
        if (job->x)
            k->vec.add(row, job->x + t * width, width);
        store_row(k, at(job->out, job->out_dtype, t, width, 0), job->out_dtype, row, 1.0f, width);
    }
}

static mom_status mix(mix_job *job) {
    const mom_exec *x = job->half->exec;
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    MOM_ARENA_NEW(job->rows, x->workspace, (size_t)x->threads * job->width, job->half->err);
    mom_parallel_for(x, row_tasks(job->half->plan->N), mix_task, job);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

mom_status mom_half_mix(const mom_half *half, void *out, mom_dtype out_dtype, const float *y, const float *weight,
                        size_t width) {
    mix_job job = {.half = half, .out = out, .out_dtype = out_dtype, .y = y, .weight = weight, .width = width};
    return mix(&job);
}

typedef struct {
    const mom_half *half;
    float *x_out;
} copy_job;

/* Tokens without a slot keep their row of the residual stream. */
static void copy_skipped_task(void *context, size_t task, int thread) {
    const copy_job *job = context;
    const mom_routing_plan *plan = job->half->plan;
    const size_t C = job->half->C;
    size_t begin, end;
    (void)thread;
    mom_range(plan->N, row_tasks(plan->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++)
        if (!plan->K || plan->slot[t] < 0)
            memcpy(job->x_out + t * C, job->half->x + t * C, C * sizeof(float));
}

typedef struct {
    const mom_half *half;
    float *dscore;
    const float *partial;
    size_t blocks;
    const void *dout;
    mom_dtype dtype;
    int by_token;
    const float *const *bias;
    size_t Out;
} score_job;

/* dscore += sum of the blocks + <dout, bias>: the gradient of a score without the module's output */
static void score_task(void *context, size_t task, int thread) {
    const score_job *job = context;
    const mom_kernels *k = job->half->exec->k;
    const mom_routing_plan *plan = job->half->plan;
    float buffer[MOM_FINISH_COLUMNS];
    size_t begin, end, m = 0;
    (void)thread;
    mom_range(plan->slots, row_tasks(plan->slots), task, &begin, &end);
    for (size_t s = begin; s < end; s++) {
        while ((size_t)plan->offsets[m + 1] <= s)
            m++;
        const size_t t = (size_t)plan->token[s];
        float sum = 0.0f;
        for (size_t b = 0; b < job->blocks; b++)
            sum += job->partial[s * job->blocks + b];
        for (size_t j = 0; j < job->Out; j += MOM_FINISH_COLUMNS) {
            const size_t n = job->Out - j < MOM_FINISH_COLUMNS ? job->Out - j : MOM_FINISH_COLUMNS;
            const void *row = at(job->dout, job->dtype, job->by_token ? t : s, job->Out, j);
            sum += k->vec.dot(load_row(k, buffer, row, job->dtype, n), job->bias[m] + j, n);
        }
        job->dscore[t * plan->K + (size_t)plan->choice[s]] += sum;
    }
}

/* ---- products */

typedef struct {
    mom_gemm *products;
    finish_context *contexts;
    mom_gemm_norm *norms;
    size_t count;
} product_list;

static mom_status product_list_init(product_list *list, const mom_half *half, size_t most) {
    mom_arena *arena = half->exec->workspace;
    MOM_ARENA_NEW(list->products, arena, most, half->err);
    MOM_ARENA_NEW(list->contexts, arena, most, half->err);
    MOM_ARENA_NEW(list->norms, arena, most, half->err);
    list->count = 0;
    return MOM_OK;
}

static mom_gemm *add_product(product_list *list, size_t m, size_t n, size_t k, mom_dtype precision) {
    mom_gemm *g = &list->products[list->count++];
    *g = (mom_gemm){.m = m, .n = n, .k = k, .precision = precision};
    return g;
}

static void set_finish(product_list *list, mom_gemm *g, mom_gemm_finish finish, size_t m, finish_context context) {
    finish_context *own = &list->contexts[g - list->products];
    context.m = m;
    context.first = (size_t)context.half->plan->offsets[m];
    *own = context;
    g->finish = finish;
    g->whole_blocks = context.partial != NULL;
    g->context = own;
}

/* x of module m's tokens, normalised */
static mom_matrix normed_rows(product_list *list, const mom_gemm *g, const mom_half *half, size_t m) {
    mom_gemm_norm *own = &list->norms[g - list->products];
    *own = module_norm(half, m);
    mom_matrix rows = token_rows(half->plan, m, half->x, MOM_F32, half->C);
    rows.norm = own;
    return rows;
}

static mom_status run_products(const mom_half *half, const product_list *list) {
    return mom_gemm_run(half->exec, list->products, list->count, half->err);
}

/* Columns from `column` on of a weight's gradient (In, width), and the same of its bias'. */
static void set_gradient(mom_gemm *g, const mom_half_gradient *gradient, size_t m, size_t width, size_t column) {
    g->c = gradient->weight[m] + column;
    g->ldc = width;
    g->accumulate = !gradient->unset || !gradient->unset[m];
    g->k_sums = gradient->bias[m] + column;
}

/* After the products: the gradients of modules with slots are what memory holds. */
static void gradients_set(const mom_exec *x, const mom_half_gradient *gradient, const mom_routing_plan *plan) {
    for (size_t m = 0; m < plan->M && gradient->unset && !x->dry_run; m++)
        if (module_slots(plan, m))
            gradient->unset[m] = 0;
}

/* Columns [begin, end) of a layer for the tokens of half.plan. */
typedef struct {
    mom_half half;
    size_t begin, end;
} layer_part;

static void split_layer(layer_part parts[2], const mom_half *half, const mom_routing_plan *some, size_t columns,
                        const mom_half_layer *layer) {
    parts[0] = (layer_part){*half, 0, columns};
    parts[0].half.plan = some;
    parts[1] = (layer_part){*half, columns, layer->Out};
}

/* Of an array like the layer's output, the part's columns. */
static mom_matrix part_rows(const layer_part *part, size_t m, const void *data, size_t width, int by_token) {
    const mom_half *half = &part->half;
    return rows_of(half->plan, m, at(data, half->dtype, 0, width, part->begin), half->dtype, width, by_token);
}

static mom_status enter(const layer_part *parts, size_t count, void *out, mom_dtype out_dtype, int by_token,
                        const float *weight, const mom_half_layer *layer) {
    const size_t width = layer->Out;
    product_list list;
    MOM_TRY(product_list_init(&list, &parts->half, count * parts->half.plan->M));
    for (const layer_part *part = parts; part < parts + count; part++) {
        const mom_half *half = &part->half;
        const mom_routing_plan *plan = half->plan;
        const size_t begin = part->begin;
        for (size_t m = 0; m < plan->M; m++) {
            if (!module_slots(plan, m))
                continue;
            mom_gemm *g = add_product(&list, module_slots(plan, m), part->end - begin, layer->In, half->dtype);
            g->a = normed_rows(&list, g, half, m);
            g->b = mom_matrix_rows(layer->weight[m] + begin, width);
            g->packed_b = count > 1 ? NULL : packed_of(layer, m);
            g->bias = layer->bias[m] + begin;
            if (by_token || out_dtype != MOM_F32 || weight) {
                set_finish(&list, g, finish_store, m, (finish_context){.half = half, .width = width, .out_dtype = out_dtype,
                                                                       .out = at(out, out_dtype, 0, width, begin),
                                                                       .by_token = by_token, .weight = weight});
            } else {
                g->c = at(out, MOM_F32, (size_t)plan->offsets[m], width, begin);
                g->ldc = width;
            }
        }
    }
    return run_products(&parts->half, &list);
}

mom_status mom_half_enter(const mom_half *half, void *out, mom_dtype out_dtype, int by_token, const float *weight,
                          const mom_half_layer *layer) {
    const mom_arena_mark mark = mom_arena_get_mark(half->exec->workspace);
    const layer_part whole_layer = {*half, 0, layer->Out};
    const mom_status status = enter(&whole_layer, 1, out, out_dtype, by_token, weight, layer);
    mom_arena_release(half->exec->workspace, mark);
    return status;
}

mom_status mom_half_enter_split(const mom_half *half, const mom_routing_plan *some, size_t columns, void *out,
                                mom_dtype out_dtype, const mom_half_layer *layer) {
    const mom_arena_mark mark = mom_arena_get_mark(half->exec->workspace);
    layer_part parts[2];
    split_layer(parts, half, some, columns, layer);
    const mom_status status = enter(parts, 2, out, out_dtype, 1, NULL, layer);
    mom_arena_release(half->exec->workspace, mark);
    return status;
}

static mom_status leave(const mom_half *half, float *x_out, const mom_half_output *output, const mom_half_layer *layer) {
    const mom_exec *x = half->exec;
    const mom_routing_plan *plan = half->plan;
    const size_t C = layer->Out;
    product_list list;
    float *y = NULL;
    MOM_TRY(product_list_init(&list, half, plan->M));
    if (plan->K > 1)
        MOM_ARENA_NEW(y, x->workspace, plan->slots * C, half->err);
    for (size_t m = 0; m < plan->M; m++) {
        if (!module_slots(plan, m))
            continue;
        mom_gemm *g = add_product(&list, module_slots(plan, m), C, layer->In, half->dtype);
        g->a = rows_of(plan, m, output->inner, half->dtype, layer->In, output->by_token);
        g->a.gelu = output->gelu;
        g->b = mom_matrix_rows(layer->weight[m], C);
        g->packed_b = packed_of(layer, m);
        g->bias = layer->bias[m];
        if (plan->K > 1) {
            g->c = y + (size_t)plan->offsets[m] * C;
            g->ldc = C;
        } else {
            set_finish(&list, g, finish_residual, m, (finish_context){.half = half, .width = C, .out = x_out,
                                                                      .weight = output->weight,
                                                                      .dropout = output->dropout});
        }
    }
    MOM_TRY(run_products(half, &list));
    if (plan->K > 1) {
        mix_job job = {.half = half, .out = x_out, .x = half->x, .y = y, .weight = output->weight,
                       .dropout = output->dropout, .width = C};
        return mix(&job);
    }
    copy_job job = {half, x_out};
    if (x_out != half->x && plan->slots < plan->N)
        mom_parallel_for(x, row_tasks(plan->N), copy_skipped_task, &job);
    return MOM_OK;
}

mom_status mom_half_leave(const mom_half *half, float *x_out, const mom_half_output *output,
                          const mom_half_layer *layer) {
    const mom_arena_mark mark = mom_arena_get_mark(half->exec->workspace);
    const mom_status status = leave(half, x_out, output, layer);
    mom_arena_release(half->exec->workspace, mark);
    return status;
}

/* Scores by slot, or NULL without scores. */
static mom_status new_slot_scale(float **slot_scale, const mom_half *half, const float *weight) {
    *slot_scale = NULL;
    if (!weight)
        return MOM_OK;
    MOM_ARENA_NEW(*slot_scale, half->exec->workspace, half->plan->slots, half->err);
    mom_routed_slot_scale(half->exec, *slot_scale, weight, half->plan);
    return MOM_OK;
}

static const float *module_scale(const mom_routing_plan *plan, const float *slot_scale, size_t m) {
    return slot_scale ? slot_scale + plan->offsets[m] : NULL;
}

static mom_status leave_backward(const mom_half *half, const mom_half_gradient *gradient, float *dscore, void *inner,
                                 void *dinner, const mom_half_output *output, const float *dout,
                                 const mom_half_layer *layer) {
    const mom_exec *x = half->exec;
    const mom_routing_plan *plan = half->plan;
    const size_t In = layer->In, C = layer->Out, blocks = column_blocks(In);
    const int several = plan->K > 1 && !output->gelu;
    float *slot_scale, *partial = NULL, *dslots = NULL;
    product_list list;
    MOM_TRY(product_list_init(&list, half, 2 * plan->M));
    MOM_TRY(new_slot_scale(&slot_scale, half, output->weight));

    /* pass 1: gradients of the weights; through GELU its inputs are needed, which pass 2 replaces */
    for (size_t m = 0; m < plan->M; m++) {
        const size_t slots = module_slots(plan, m);
        if (!slots || !gradient->weight)
            continue;
        mom_gemm *g = add_product(&list, In, C, slots, half->dtype);
        g->a = mom_matrix_flip(rows_of(plan, m, inner, half->dtype, In, output->by_token));
        g->a.gelu = output->gelu;
        g->b = token_rows(plan, m, dout, MOM_F32, C);
        g->k_scale = module_scale(plan, slot_scale, m);
        set_gradient(g, gradient, m, C, 0);
    }
    if (output->gelu || half->apart) {
        MOM_TRY(run_products(half, &list));
        list.count = 0;
    }

    /* pass 2: gradients of the inputs and of the scores */
    if (dscore)
        MOM_ARENA_NEW(partial, x->workspace, plan->slots * blocks, half->err);
    if (several)
        MOM_ARENA_NEW(dslots, x->workspace, plan->slots * In, half->err);
    const finish_context shared = {.half = half, .width = In, .inner = inner, .weight = output->weight,
                                   .partial = partial, .blocks = blocks, .out = several ? dslots : dinner,
                                   .out_dtype = several ? MOM_F32 : half->dtype, .by_token = !several};
    for (size_t m = 0; m < plan->M; m++) {
        if (!module_slots(plan, m))
            continue;
        mom_gemm *g = add_product(&list, module_slots(plan, m), In, C, half->dtype);
        g->a = token_rows(plan, m, dout, MOM_F32, C);
        g->b = mom_matrix_transposed(layer->weight[m], C);
        g->packed_b = packed_of(layer, m);
        set_finish(&list, g, output->gelu ? finish_gelu_backward : finish_scored, m, shared);
    }
    MOM_TRY(run_products(half, &list));
    gradients_set(half->exec, gradient, plan);
    if (several)
        MOM_TRY(mom_half_mix(half, dinner, half->dtype, dslots, NULL, In));
    if (dscore) {
        score_job job = {half, dscore, partial, blocks, dout, MOM_F32, 1, layer->bias, C};
        mom_parallel_for(x, row_tasks(plan->slots), score_task, &job);
    }
    return MOM_OK;
}

mom_status mom_half_leave_backward(const mom_half *half, const mom_half_gradient *gradient, float *dscore, void *inner,
                                   void *dinner, const mom_half_output *output, const float *dout,
                                   const mom_half_layer *layer) {
    const mom_arena_mark mark = mom_arena_get_mark(half->exec->workspace);
    const mom_status status = leave_backward(half, gradient, dscore, inner, dinner, output, dout, layer);
    mom_arena_release(half->exec->workspace, mark);
    return status;
}

static mom_status enter_backward(const layer_part *parts, size_t count, const mom_half_gradient *gradient,
                                 float *const *dln_weight, float *const *dln_bias, float *dx, float *dscore,
                                 const void *dout, int by_token, const float *weight, const mom_half_layer *layer) {
    const mom_half *half = &parts[count - 1].half;
    const mom_exec *x = half->exec;
    const mom_routing_plan *plan = half->plan;
    const size_t C = layer->In, Out = layer->Out, blocks = column_blocks(C);
    float *slot_scale, *partial = NULL, *dxn;
    product_list list;
    MOM_TRY(product_list_init(&list, half, 2 * count * plan->M));
    MOM_TRY(new_slot_scale(&slot_scale, half, weight));

    /* pass 1: gradients of the weights */
    for (const layer_part *part = parts; part < parts + count; part++) {
        const mom_half *own = &part->half;
        for (size_t m = 0; m < own->plan->M; m++) {
            const size_t slots = module_slots(own->plan, m);
            if (!slots || !gradient->weight)
                continue;
            mom_gemm *g = add_product(&list, C, part->end - part->begin, slots, half->dtype);
            g->a = mom_matrix_flip(normed_rows(&list, g, own, m));
            g->b = part_rows(part, m, dout, Out, by_token);
            g->k_scale = module_scale(own->plan, slot_scale, m);
            set_gradient(g, gradient, m, Out, part->begin);
        }
    }
    if (half->apart) {
        MOM_TRY(run_products(half, &list));
        list.count = 0;
    }

    /* pass 2: gradients of the normalised inputs ... */
    MOM_ARENA_NEW(dxn, x->workspace, plan->slots * C, half->err);
    if (weight)
        MOM_ARENA_NEW(partial, x->workspace, plan->slots * blocks, half->err);
    /* ... of the last part; those of another are added to them */
    for (const layer_part *part = parts + count; part-- > parts;) {
        const mom_half *own = &part->half;
        for (size_t m = 0; m < own->plan->M; m++) {
            if (!module_slots(own->plan, m))
                continue;
            mom_gemm *g = add_product(&list, module_slots(own->plan, m), C, part->end - part->begin, half->dtype);
            g->a = part_rows(part, m, dout, Out, by_token);
            g->b = mom_matrix_transposed(layer->weight[m] + part->begin, Out);
            g->packed_b = count > 1 ? NULL : packed_of(layer, m);
            if (weight) {
                set_finish(&list, g, finish_scored_norm, m, (finish_context){.half = half, .width = C, .out = dxn,
                                                                             .weight = weight, .partial = partial,
                                                                             .blocks = blocks});
            } else if (part + 1 < parts + count) {
                set_finish(&list, g, finish_add, m, (finish_context){.half = own, .width = C, .out = dxn});
            } else {
                g->c = dxn + (size_t)own->plan->offsets[m] * C;
                g->ldc = C;
            }
        }
        MOM_TRY(run_products(half, &list));
        list.count = 0;
    }
    gradients_set(half->exec, gradient, plan);
    if (weight) {
        score_job job = {half, dscore, partial, blocks, dout, half->dtype, by_token, layer->bias, Out};
        mom_parallel_for(x, row_tasks(plan->slots), score_task, &job);
    }

    /* pass 3: through LayerNorm */
    if (plan->M == 1 && whole(plan, 0))
        return mom_layernorm_backward(x, dx, dln_weight[0], dln_bias[0], dxn, half->x, half->ln_weight[0], half->mean,
                                      half->rstd, plan->N, C, half->err);
    return mom_routed_layernorm_backward(x, dx, dln_weight, dln_bias, dxn, half->x, half->mean, half->rstd,
                                         half->ln_weight, plan, C, half->err);
}

mom_status mom_half_enter_backward(const mom_half *half, const mom_half_gradient *gradient, float *const *dln_weight,
                                   float *const *dln_bias, float *dx, float *dscore, const void *dout, int by_token,
                                   const float *weight, const mom_half_layer *layer) {
    const mom_arena_mark mark = mom_arena_get_mark(half->exec->workspace);
    const layer_part whole_layer = {*half, 0, layer->Out};
    const mom_status status = enter_backward(&whole_layer, 1, gradient, dln_weight, dln_bias, dx, dscore, dout, by_token,
                                             weight, layer);
    mom_arena_release(half->exec->workspace, mark);
    return status;
}

mom_status mom_half_enter_split_backward(const mom_half *half, const mom_routing_plan *some, size_t columns,
                                         const mom_half_gradient *gradient, float *const *dln_weight,
                                         float *const *dln_bias, float *dx, const void *dout,
                                         const mom_half_layer *layer) {
    const mom_arena_mark mark = mom_arena_get_mark(half->exec->workspace);
    layer_part parts[2];
    split_layer(parts, half, some, columns, layer);
    const mom_status status = enter_backward(parts, 2, gradient, dln_weight, dln_bias, dx, NULL, dout, 1, NULL, layer);
    mom_arena_release(half->exec->workspace, mark);
    return status;
}
