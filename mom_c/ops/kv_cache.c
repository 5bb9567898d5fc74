/* DESIGN  A task is one head of one query: scores panel by panel, softmax, sum of the values. Short contexts stay on the
 *         calling thread, because waking other threads would cost more.
 * COST    2 keys D multiplications per head. Reads 2 keys C floats.
 */
#include "ops/kv_cache.h"

#include <math.h>
#include <string.h>

#include "base/sizes.h"

#define ALONE ((size_t)1 << 15) /* work of fewer multiplications runs on one thread */

/* First float of panel `panel` of head h's keys. */
static float *key_panel(const mom_kv *kv, size_t h, size_t panel, size_t D) {
    return kv->keys + h * kv->capacity * D + panel * MOM_PANEL * D;
}

static float element(const void *row, mom_dtype dtype, size_t d) {
    return dtype == MOM_BF16 ? mom_bf16_to_f32(((const mom_bf16 *)row)[d]) : ((const float *)row)[d];
}

void mom_kv_write(const mom_kv *kv, size_t slot, const void *key, const void *value, mom_dtype dtype, size_t h, size_t D) {
    float *keys = key_panel(kv, h, slot / MOM_PANEL, D) + slot % MOM_PANEL;
    float *values = kv->values + (h * kv->capacity + slot) * D;
    for (size_t d = 0; d < D; d++) {
        keys[d * MOM_PANEL] = element(key, dtype, d);
        values[d] = element(value, dtype, d);
    }
}

void mom_kv_copy(const mom_kv *to, const mom_kv *from, size_t count, size_t H, size_t D) {
    for (size_t h = 0; h < H; h++) {
        memcpy(key_panel(to, h, 0, D), key_panel(from, h, 0, D), mom_round_up(count, MOM_PANEL) * D * sizeof(float));
        memcpy(to->values + h * to->capacity * D, from->values + h * from->capacity * D, count * D * sizeof(float));
    }
}

typedef struct {
    const mom_kernels *k;
    const mom_kv_query *queries;
    float *scores; /* (threads, longest) */
    size_t longest, H, D;
    float scale;
} attention_job;

static void head_task(void *context, size_t task, int thread) {
    const attention_job *job = context;
    const mom_kernels *k = job->k;
    const size_t D = job->D, h = task % job->H;
    const mom_kv_query *query = &job->queries[task / job->H];
    const mom_kv *kv = &query->kv;
    const size_t n = query->keys;
    float *scores = job->scores + (size_t)thread * job->longest, *out = query->out + h * D;
    memset(out, 0, D * sizeof *out);
    if (!n)
        return;
    for (size_t j = 0; j < n; j += MOM_PANEL)
        k->gemv.panel_f32(scores + j, 0, query->q + h * D, 0, key_panel(kv, h, j / MOM_PANEL, D), 1, D,
                          mom_min(n - j, MOM_PANEL));
    float largest = k->vec.max(scores, n) * job->scale;
    if (query->skipped && !(largest > 0.0f))
        largest = 0.0f;
    float sum = k->vec.exp_sum(scores, scores, job->scale, largest, n);
    if (query->skipped)
        sum += (float)query->skipped * expf(-largest);
    k->vec.scale(scores, 1.0f / sum, scores, n);
    k->gemv.axpys(out, D, scores, n, kv->values + h * kv->capacity * D, D, 1, n, D);
}

mom_status mom_kv_attention(const mom_exec *x, const mom_kv_query *queries, size_t count, float scale, size_t H,
                            size_t D, mom_error *err) {
    attention_job job = {.k = x->k, .queries = queries, .H = H, .D = D, .scale = scale};
    size_t work = 0;
    for (size_t i = 0; i < count; i++) {
        work += 2 * queries[i].keys * H * D;
        job.longest = mom_max(job.longest, queries[i].keys);
    }
    if (x->counts)
        mom_counts_add(x->counts, x->counts->part, work);
    job.longest = mom_round_up(job.longest, MOM_PANEL);
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    MOM_ARENA_NEW(job.scores, x->workspace, (size_t)x->threads * job.longest, err);
    mom_exec attending = *x;
    attending.threads = work < ALONE ? 1 : x->threads;
    mom_parallel_for(&attending, count * H, head_task, &job);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
