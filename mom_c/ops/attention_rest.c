/* Rows that the tasks of attention_job.h do not write.
 *
 * Inactive tokens get zeros. Blind tokens see no real key. They attend evenly to the tokens up to their own; in
 * MOM_MASKED_QUERY_REFERENCE also to the real keys of their future. In the reference, the mask adds a huge negative
 * constant to these scores. Rounding removes the score from the value, but the gradient still passes. So scores get
 * gradients in this mode only.
 */
#include "ops/attention_job.h"

#include <string.h>

size_t mom_attention_rest_scratch(const mom_attention_job *job) { return mom_round_up(6 * job->D, 16); }

static int is_reference(const mom_attention_job *job) {
    return job->spec->masked_query == MOM_MASKED_QUERY_REFERENCE;
}

/* How many keys share the weight of blind query i. */
static float blind_keys(const mom_attention_job *job, const mom_head *v, size_t i) {
    return (float)(i + 1 + (is_reference(job) ? v->s->real : 0));
}

/* ---- forward */

/* out of blind query t: the even mean of the values it sees. sum, value (D). */
static void forward_blind(const mom_attention_job *job, const mom_head *v, size_t t, float *sum, float *value) {
    const mom_head_rows values = mom_rows_of_qkv(job, v, job->qkv, 2);
    const size_t D = job->D, future = is_reference(job) ? v->s->keys : 0;
    const float seen = blind_keys(job, v, t);
    memset(sum, 0, D * sizeof *sum);
    for (size_t j = 0; j < t + 1 + future; j++) {
        const size_t position = j <= t ? j : (size_t)v->key[j - t - 1];
        if (!mom_is_active(job, v->s->row + position))
            continue;
        mom_head_load(job, v, value, values, position, 1.0f);
        job->k->vec.axpy(sum, mom_attention_dropout(job, v, t, position) / seen, value, D);
    }
    mom_head_store(job, v, mom_rows_of_heads(job, v, job->out), t, sum, 1.0f, D);
}

void mom_attention_forward_rest_task(void *context, size_t head, int thread) {
    const mom_attention_job *job = context;
    const mom_head v = mom_attention_head(job, head);
    float *scratch = job->scratch + (size_t)thread * job->scratch_size;
    for (size_t t = 0; t < v.s->length && v.s->has_nonqueries; t++) {
        const size_t row = v.s->row + t;
        if (!mom_is_wanted(job, row) || (mom_is_active(job, row) && t >= v.s->first))
            continue;
        job->lse[row * job->spec->H + v.h] = 0.0f;
        if (mom_is_active(job, row))
            forward_blind(job, &v, t, scratch, scratch + job->D);
        else
            mom_head_clear(job, &v, mom_rows_of_heads(job, &v, job->out), t);
    }
}

/* ---- backward */

void mom_attention_add_blind(const mom_attention_job *job, const mom_head *v, float *dvalues, size_t ldd, float *row,
                             size_t begin, size_t end) {
    if (!is_reference(job))
        return;
    for (size_t i = 0; i < v->s->first; i++) {
        if (!mom_has_output(job, v->s->row + i))
            continue;
        mom_head_load(job, v, row, mom_rows_of_heads(job, v, job->dout), i, 1.0f / blind_keys(job, v, i));
        for (size_t j = begin; j < end; j++)
            job->k->vec.axpy(dvalues + j * ldd, mom_attention_dropout(job, v, i, (size_t)v->key[j]), row, job->D);
    }
}

/* Gradient of the score of key j in the row of blind query i, in MOM_MASKED_QUERY_REFERENCE. scratch: 2 D floats. */
static float blind_dscore(const mom_attention_job *job, const mom_head *v, float *scratch, size_t i, size_t j) {
    const size_t D = job->D;
    float *dout = scratch, *other = scratch + D;
    mom_head_load(job, v, dout, mom_rows_of_heads(job, v, job->dout), i, 1.0f);
    mom_head_load(job, v, other, mom_rows_of_heads(job, v, job->saved_out), i, 1.0f);
    const float delta = job->k->vec.dot(dout, other, D);
    float dweight = 0.0f;
    if (mom_is_active(job, v->s->row + j)) {
        mom_head_load(job, v, other, mom_rows_of_qkv(job, v, job->qkv, 2), j, 1.0f);
        dweight = mom_attention_dropout(job, v, i, j) * job->k->vec.dot(dout, other, D);
    }
    return job->spec->scale / blind_keys(job, v, i) * (dweight - delta);
}

/* Gradients of one token, D floats each, and scratch memory. */
typedef struct {
    float *dq, *dkey, *dvalue, *other, *scratch;
} rest_rows;

/* Adds what blind query i and token t, i being the query or t, add to the gradients of t. */
static void add_blind_pair(const mom_attention_job *job, const mom_head *v, const rest_rows *rows, size_t i, size_t t) {
    const mom_vec_kernels *vec = &job->k->vec;
    const size_t D = job->D, row = v->s->row;
    if (i <= t && is_reference(job) && mom_is_active(job, row + i) && mom_is_wanted(job, row + t)) {
        mom_head_load(job, v, rows->other, mom_rows_of_qkv(job, v, job->qkv, 1), i, 1.0f);
        vec->axpy(rows->dq, blind_dscore(job, v, rows->scratch, t, i), rows->other, D);
    }
    if (i < t || !mom_has_output(job, row + i))
        return;
    mom_head_load(job, v, rows->other, mom_rows_of_heads(job, v, job->dout), i, 1.0f);
    vec->axpy(rows->dvalue, mom_attention_dropout(job, v, i, t) / blind_keys(job, v, i), rows->other, D);
    if (is_reference(job)) {
        mom_head_load(job, v, rows->other, mom_rows_of_qkv(job, v, job->qkv, 0), i, 1.0f);
        vec->axpy(rows->dkey, blind_dscore(job, v, rows->scratch, i, t), rows->other, D);
    }
}

void mom_attention_backward_rest_task(void *context, size_t head, int thread) {
    const mom_attention_job *job = context;
    const mom_head v = mom_attention_head(job, head);
    const size_t D = job->D, row = v.s->row, first = v.s->first;
    float *base = job->scratch + (size_t)thread * job->scratch_size;
    const rest_rows rows = {base, base + D, base + 2 * D, base + 3 * D, base + 4 * D};
    for (size_t t = 0; t < v.s->length; t++) {
        if (mom_is_active(job, row + t) && mom_is_real(job, row + t))
            continue;
        memset(base, 0, 3 * D * sizeof *base);
        for (size_t i = 0; i < first && t < first && mom_is_active(job, row + t); i++)
            add_blind_pair(job, &v, &rows, i, t);
        if (!mom_is_active(job, row + t) || t < first)
            mom_head_store(job, &v, mom_rows_of_qkv(job, &v, job->dqkv, 0), t, rows.dq, 1.0f, D);
        mom_head_store(job, &v, mom_rows_of_qkv(job, &v, job->dqkv, 1), t, rows.dkey, 1.0f, D);
        mom_head_store(job, &v, mom_rows_of_qkv(job, &v, job->dqkv, 2), t, rows.dvalue, 1.0f, D);
    }
}
