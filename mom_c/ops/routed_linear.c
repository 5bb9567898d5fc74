/* DESIGN  The modules of a pool are one group of products, so that threads share small modules. Rows are gathered while a
 *         factor is packed: a token's row is read in place and never copied to the order of slots. Modules without slots
 *         are left out, as are all SKIP choices.
 */
#include "ops/routed_linear.h"

#include "ops/routed_rows.h"

/* Module m's rows. */
static mom_matrix module_rows(mom_routed_rows rows, size_t width, const mom_routing_plan *plan, size_t m) {
    const size_t first = (size_t)plan->offsets[m];
    mom_matrix matrix = mom_matrix_rows(rows.gathered ? rows.data : rows.data + first * width, width);
    if (rows.gathered)
        matrix.row_index = plan->token + first;
    return matrix;
}

/* ---- products; their arrays live in the workspace until the caller's mark is released */

mom_status mom_routed_linear_forward(const mom_exec *x, float *out, mom_routed_rows inp, const mom_routed_layer *layer,
                                     const mom_routing_plan *plan, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t In = layer->In, Out = layer->Out;
    mom_gemm *products;
    size_t count = 0;
    MOM_ARENA_NEW(products, x->workspace, plan->M, err);
    for (size_t m = 0; m < plan->M; m++)
        if (mom_module_slots(plan, m))
            products[count++] = (mom_gemm){
                .m = mom_module_slots(plan, m),
                .n = Out,
                .k = In,
                .a = module_rows(inp, In, plan, m),
                .b = mom_matrix_rows(layer->weight[m], Out),
                .c = out + (size_t)plan->offsets[m] * Out,
                .ldc = Out,
                .bias = layer->bias ? layer->bias[m] : NULL,
            };
    MOM_TRY(mom_gemm_run(x, products, count, err));
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

mom_status mom_routed_linear_backward_input(const mom_exec *x, float *dinp, mom_routed_rows dout,
                                            const mom_routed_layer *layer, const mom_routing_plan *plan, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t In = layer->In, Out = layer->Out;
    mom_gemm *products;
    size_t count = 0;
    MOM_ARENA_NEW(products, x->workspace, plan->M, err);
    for (size_t m = 0; m < plan->M; m++)
        if (mom_module_slots(plan, m))
            products[count++] = (mom_gemm){
                .m = mom_module_slots(plan, m),
                .n = In,
                .k = Out,
                .a = module_rows(dout, Out, plan, m),
                .b = mom_matrix_transposed(layer->weight[m], Out),
                .c = dinp + (size_t)plan->offsets[m] * In,
                .ldc = In,
            };
    MOM_TRY(mom_gemm_run(x, products, count, err));
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

mom_status mom_routed_linear_backward_weight(const mom_exec *x, const mom_routed_gradient *gradient, mom_routed_rows inp,
                                             mom_routed_rows dout, const float *slot_scale, const mom_routing_plan *plan,
                                             mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t In = gradient->In, Out = gradient->Out;
    mom_gemm *products;
    size_t count = 0;
    MOM_ARENA_NEW(products, x->workspace, plan->M, err);
    for (size_t m = 0; m < plan->M; m++)
        if (mom_module_slots(plan, m))
            products[count++] = (mom_gemm){
                .m = In,
                .n = Out,
                .k = mom_module_slots(plan, m),
                .a = mom_matrix_flip(module_rows(inp, In, plan, m)),
                .b = module_rows(dout, Out, plan, m),
                .c = gradient->weight[m],
                .ldc = Out,
                .k_scale = slot_scale ? slot_scale + plan->offsets[m] : NULL,
                .k_sums = gradient->bias ? gradient->bias[m] : NULL,
                .accumulate = 1,
            };
    MOM_TRY(mom_gemm_run(x, products, count, err));
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

/* ---- combine backward */

typedef struct {
    const mom_kernels *k;
    float *dweight, *dy;
    const float *dout, *y, *weight;
    const mom_routing_plan *plan;
    size_t C;
} combine_backward_job;

static void combine_backward_task(const void *context, size_t begin, size_t end) {
    const combine_backward_job *job = context;
    const mom_routing_plan *plan = job->plan;
    const size_t C = job->C;
    for (size_t t = begin; t < end; t++) {
        const float *dout = job->dout + t * C;
        for (size_t i = t * plan->K; i < (t + 1) * plan->K; i++) {
            const int skipped = plan->slot[i] < 0;
            const size_t row = skipped ? 0 : (size_t)plan->slot[i] * C;
            if (job->dweight)
                job->dweight[i] = skipped ? 0.0f : job->k->vec.dot(dout, job->y + row, C);
            if (job->dy && !skipped)
                job->k->vec.scale(job->dy + row, job->weight ? job->weight[i] : 1.0f, dout, C);
        }
    }
}

void mom_routed_combine_backward(const mom_exec *x, float *dweight, float *dy, const float *dout, const float *y,
                                 const float *weight, const mom_routing_plan *plan, size_t C) {
    combine_backward_job job = {x->k, dweight, dy, dout, y, weight, plan, C};
    mom_parallel_rows(x, plan->N, MOM_TASK_ROWS, combine_backward_task, &job);
}

/* ---- scores */

typedef struct {
    const mom_kernels *k;
    float *dweight, *dh;
    mom_routed_rows h;
    const float *dout, *weight;
    const mom_routed_layer *layer;
    const mom_routing_plan *plan;
} score_job;

static void score_backward_task(const void *context, size_t begin, size_t end) {
    const score_job *job = context;
    const mom_vec_kernels *vec = &job->k->vec;
    const mom_routing_plan *plan = job->plan;
    const size_t In = job->layer->In, Out = job->layer->Out;
    for (size_t s = begin; s < end; s++) {
        const size_t t = (size_t)plan->token[s], choice = t * plan->K + (size_t)plan->choice[s];
        float *dh = job->dh + s * In;
        float dweight = vec->dot(dh, job->h.data + (job->h.gathered ? t : s) * In, In);
        if (job->layer->bias)
            dweight += vec->dot(job->dout + t * Out, job->layer->bias[mom_module_of_slot(plan, s)], Out);
        job->dweight[choice] += dweight;
        if (job->weight)
            vec->scale(dh, job->weight[choice], dh, In);
    }
}

void mom_routed_score_backward(const mom_exec *x, float *dweight, float *dh, mom_routed_rows h, const float *dout,
                               const mom_routed_layer *layer, const float *weight, const mom_routing_plan *plan) {
    score_job job = {x->k, dweight, dh, h, dout, weight, layer, plan};
    mom_parallel_rows(x, plan->slots, MOM_TASK_ROWS, score_backward_task, &job);
}
