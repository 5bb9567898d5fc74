#include "ops/attention_job.h"

#include <string.h>

static size_t element(const mom_head *v, size_t position, mom_head_rows rows) {
    return (v->s->row + position) * rows.ld + rows.column;
}

/* The place of an element, also where a function writes to it. */
static void *place(const mom_attention_job *job, const mom_head *v, size_t position, mom_head_rows rows) {
    const size_t at = element(v, position, rows) * mom_dtype_size(job->spec->dtype);
    return (unsigned char *)(uintptr_t)rows.data + at;
}

void mom_head_load(const mom_attention_job *job, const mom_head *v, float *dst, mom_head_rows src, size_t position,
                   float factor) {
    const mom_vec_kernels *vec = &job->k->vec;
    const void *row = place(job, v, position, src);
    if (job->bf16)
        vec->from_bf16(dst, row, job->D);
    vec->scale(dst, factor, job->bf16 ? dst : row, job->D);
}

void mom_head_store(const mom_attention_job *job, const mom_head *v, mom_head_rows dst, size_t position, float *src,
                    float factor, size_t n) {
    const mom_vec_kernels *vec = &job->k->vec;
    void *row = place(job, v, position, dst);
    if (job->bf16) {
        vec->scale(src, factor, src, n);
        vec->to_bf16(row, src, n);
    } else {
        vec->scale(row, factor, src, n);
    }
}

void mom_head_clear(const mom_attention_job *job, const mom_head *v, mom_head_rows dst, size_t position) {
    memset(place(job, v, position, dst), 0, job->D * mom_dtype_size(job->spec->dtype));
}

/* dst (n, words(D)): rows at the given positions, as they are stored. */
static void copy_rows(const mom_attention_job *job, const mom_head *v, float *dst, mom_head_rows src,
                      const int32_t *positions, size_t n) {
    const size_t size = mom_dtype_size(job->spec->dtype), width = mom_words(job, job->D);
    for (size_t i = 0; i < n; i++, dst += width) {
        memset(dst + width - 1, 0, sizeof *dst);
        memcpy(dst, place(job, v, (size_t)positions[i], src), job->D * size);
    }
}

void mom_head_pack_rows(const mom_attention_job *job, const mom_head *v, float *dst, size_t width, mom_head_rows src,
                        const int32_t *positions, size_t n, mom_staging staging) {
    const size_t words = mom_words(job, job->D);
    mom_matrix rows = {.data = place(job, v, 0, src), .rs = src.ld, .cs = 1, .row_index = positions};
    if (job->bf16 && job->D % 2) { /* rows do not end with whole words */
        copy_rows(job, v, staging.stage, src, positions, n);
        rows = mom_matrix_rows(staging.stage, words);
    } else if (job->bf16) {
        rows.rs = src.ld / 2;
    }
    mom_pack_words(job, dst, width, rows, n, words);
}

size_t mom_head_pairs_size(const mom_attention_job *job, size_t rows) {
    return job->bf16 ? mom_words(job, rows) * (mom_round_up(job->D, job->k->gemm.nr) + job->k->gemm.nr) : 0;
}

void mom_head_pack_channels(const mom_attention_job *job, const mom_head *v, float *dst, size_t width, mom_head_rows src,
                            const int32_t *positions, size_t n, mom_staging staging) {
    const size_t D = job->D;
    if (!job->bf16) {
        const mom_matrix rows = {.data = place(job, v, 0, src), .rs = 1, .cs = src.ld, .col_index = positions};
        mom_pack_words(job, dst, width, rows, D, n);
        return;
    }
    copy_rows(job, v, staging.stage, src, positions, n);
    /* Two rows make a row of pairs, padded with zeros to whole panels. So packing copies whole words. It must not compute
     * with words, since a pair is no float32. */
    const size_t stride = 2 * mom_words(job, D), whole = mom_round_up(D, width);
    const mom_bf16 *in = (const mom_bf16 *)(const void *)staging.stage;
    for (size_t i = 0; i < n; i += 2) {
        mom_bf16 *out = (mom_bf16 *)(void *)(staging.pairs + i / 2 * whole);
        const mom_bf16 *first = in + i * stride, *second = first + stride;
        memset(out, 0, 2 * whole * sizeof *out);
        for (size_t d = 0; d < D; d++)
            out[2 * d] = first[d];
        for (size_t d = 0; d < D && i + 1 < n; d++)
            out[2 * d + 1] = second[d];
    }
    mom_pack_words(job, dst, width, mom_matrix_transposed(staging.pairs, whole), whole, mom_words(job, n));
}

void mom_head_pack_keys(const mom_attention_job *job, const mom_head *v, float *dst, size_t part, size_t width,
                        mom_staging staging, size_t begin, size_t end) {
    const mom_head_rows rows = mom_rows_of_qkv(job, v, job->qkv, part);
    for (size_t j = begin; j < end; j += job->tile) {
        const size_t n = mom_min(job->tile, end - j);
        if (width)
            mom_head_pack_channels(job, v, dst + j * mom_round_up(job->D, width), width, rows, v->key + j, n, staging);
        else
            mom_head_pack_rows(job, v, dst + j * mom_words(job, job->D), job->k->gemm.mr, rows, v->key + j, n, staging);
    }
}

void mom_head_store_results(const mom_attention_job *job, const mom_head *v, mom_head_rows dst, const int32_t *positions,
                            size_t n, const mom_results *results, float *stage) {
    const size_t nr = job->k->gemm.nr, D = job->D;
    float *src = results->data;
    for (size_t l = 0; l < n && results->by_query; l++)
        mom_head_store(job, v, dst, (size_t)positions[l], src + l * mom_round_up(D, nr),
                       results->factors ? results->factors[l] : results->factor, D);
    for (size_t d = 0; d < D && !results->by_query; d += MOM_COPY_CHANNELS) {
        const size_t width = mom_min(MOM_COPY_CHANNELS, D - d);
        const mom_head_rows part = {dst.data, dst.ld, dst.column + d};
        mom_pack_words(job, stage, width, mom_matrix_rows(src + d * nr, nr), width, n);
        for (size_t l = 0; l < n; l++)
            mom_head_store(job, v, part, (size_t)positions[l], stage + l * width,
                           results->factors ? results->factors[l] : results->factor, width);
    }
}
