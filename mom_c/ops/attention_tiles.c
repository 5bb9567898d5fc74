#include "ops/attention_job.h"

#include <math.h>
#include <string.h>

static const mom_bf16 *as_bf16(const float *words) { return (const mom_bf16 *)(const void *)words; }

void mom_pack_words(const mom_attention_job *job, float *dst, size_t width, mom_matrix rows, size_t n, size_t steps) {
    job->k->pack.factor(dst, MOM_F32, width, &rows, NULL, 0, n, 0, steps);
}

void mom_multiply_panels(const mom_attention_job *job, size_t n, const float *a, const float *b, float *c, size_t ldc,
                         int accumulate) {
    const mom_gemm_kernels *gemm = &job->k->gemm;
    if (job->bf16)
        gemm->bf16.packed(mom_words(job, n), as_bf16(a), as_bf16(b), c, ldc, accumulate, b);
    else
        gemm->f32.packed(n, a, b, c, ldc, accumulate, b);
}

void mom_score_tile(const mom_attention_job *job, float *tile, const float *keys, const float *queries, size_t n) {
    const size_t mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    for (size_t j = 0; j < n; j += mr)
        mom_multiply_panels(job, job->D, keys + j * mom_words(job, job->D), queries, tile + j * nr, nr, 0);
}

const float *mom_tile_as_factor(const mom_attention_job *job, const float *tile, size_t n, float *copy) {
    if (!job->bf16)
        return tile;
    job->k->attention.to_bf16((mom_bf16 *)(void *)copy, tile, n);
    return copy;
}

const float *mom_tile_by_row(const mom_attention_job *job, const float *tile, size_t n, float *copy) {
    if (!job->bf16)
        return tile;
    job->k->vec.to_bf16((mom_bf16 *)(void *)copy, tile, n * job->k->gemm.nr);
    return copy;
}

void mom_transpose_tile(const mom_attention_job *job, float *dst, size_t stride, const float *tile, size_t n, float *copy) {
    const size_t mr = job->k->gemm.mr, width = mom_words(job, job->k->gemm.nr);
    const float *rows = mom_tile_by_row(job, tile, n, copy);
    for (size_t i = 0; i < n; i += mr)
        mom_pack_words(job, dst + i / mr * stride, mr, mom_matrix_rows(rows + i * width, width), mr, width);
}

/* ---- products with values */

int mom_mixes_by_query(const mom_attention_job *job, size_t queries) {
    const mom_gemm_kernels *gemm = &job->k->gemm;
    const size_t mr = gemm->mr, nr = gemm->nr, lanes = mom_min(queries, nr);
    if (job->bf16 ? !gemm->bf16.a_columns : !gemm->f32.a_columns)
        return 0;
    return mom_div_up(lanes, mr) * mom_div_up(job->D, nr) <= mom_div_up(job->D, mr);
}

size_t mom_packed_channels(const mom_attention_job *job, int by_query) {
    return mom_round_up(job->D, by_query ? job->k->gemm.nr : job->k->gemm.mr);
}

size_t mom_result_size(const mom_attention_job *job) {
    const size_t mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    return mom_max(mom_round_up(job->D, mr) * nr, mom_round_up(nr, mr) * mom_round_up(job->D, nr));
}

static void mix_by_channel(const mom_attention_job *job, float *out, mom_packed_tile values, const float *tile, size_t n,
                           int accumulate) {
    const size_t mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    for (size_t d = 0; d < job->D; d += mr)
        mom_multiply_panels(job, n, values.data + d * mom_words(job, values.stored), tile, out + d * nr, nr, accumulate);
}

static void mix_by_query(const mom_attention_job *job, float *out, mom_packed_tile values, const float *tile, size_t n,
                         size_t lanes, int accumulate) {
    const mom_gemm_kernels *gemm = &job->k->gemm;
    const size_t mr = gemm->mr, nr = gemm->nr, ld = mom_round_up(job->D, nr);
    for (size_t i = 0; i < lanes; i += mr) {
        for (size_t d = 0; d < job->D; d += nr) {
            const float *b = values.data + d * mom_words(job, values.stored);
            float *c = out + i * ld + d;
            if (job->bf16)
                gemm->bf16.a_columns(mom_words(job, n), as_bf16(tile + i), nr, as_bf16(b), c, ld, accumulate, b);
            else
                gemm->f32.a_columns(n, tile + i, nr, b, c, ld, accumulate, b);
        }
    }
}

void mom_mix(const mom_attention_job *job, float *out, int by_query, mom_packed_tile values, const float *tile, size_t n,
             size_t lanes, int accumulate) {
    if (by_query)
        mix_by_query(job, out, values, tile, n, lanes, accumulate);
    else
        mix_by_channel(job, out, values, tile, n, accumulate);
}

/* ---- what queries do not see */

void mom_hide_keys(const mom_attention_job *job, const mom_head *v, float *tile, size_t j, size_t n, size_t q,
                   size_t lanes) {
    const size_t nr = job->k->gemm.nr, seen_by_all = (size_t)v->count[q]; /* the first query sees the fewest keys */
    const float never = copysignf(INFINITY, -job->scale);
    size_t hidden = 0; /* queries that do not see the row's key: the first ones, since counts rise */
    for (size_t r = seen_by_all > j ? seen_by_all - j : 0; r < n; r++) {
        while (hidden < lanes && (size_t)v->count[q + hidden] <= j + r)
            hidden++;
        const size_t columns = hidden < lanes ? hidden : nr;
        for (size_t l = 0; l < columns; l++)
            tile[r * nr + l] = never;
    }
}

float mom_attention_dropout(const mom_attention_job *job, const mom_head *v, size_t query, size_t key) {
    if (job->spec->dropout.p <= 0.0f)
        return 1.0f;
    return mom_dropout_scale(job->spec->dropout, v->dropout_index + (uint64_t)query * job->spec->T + key);
}

void mom_dropout_tile(const mom_attention_job *job, const mom_head *v, float *keep, size_t j, size_t n, size_t q,
                      size_t lanes) {
    const size_t nr = job->k->gemm.nr;
    const mom_tile_places places = {.query = v->query + q, .key = v->key + j, .queries = lanes, .keys = n,
                                    .first = v->dropout_index, .keys_apart = job->spec->T};
    job->k->attention.dropout(keep, job->spec->dropout, &places);
    memset(keep + n * nr, 0, (mom_round_up(n, job->k->gemm.mr) - n) * nr * sizeof *keep);
}
