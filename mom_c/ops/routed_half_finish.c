#include "ops/routed_half_parts.h"

#include <string.h>

/* The slot and token of row r of a block, and the score that multiplies it. */
typedef struct {
    size_t slot, token;
    float weight;
} row_place;

static row_place place_of(const mom_half_block *f, size_t r) {
    const mom_routing_plan *plan = f->half->plan;
    const size_t slot = f->first + r, token = (size_t)plan->token[slot];
    return (row_place){slot, token, f->weight ? f->weight[token * plan->K + (size_t)plan->choice[slot]] : 1.0f};
}

void mom_half_store_row(const mom_kernels *k, void *out, mom_dtype dtype, float *row, float factor, size_t n) {
    if (dtype == MOM_BF16) {
        if (factor != 1.0f)
            k->vec.scale(row, factor, row, n);
        k->vec.to_bf16(out, row, n);
    } else {
        k->vec.scale(out, factor, row, n);
    }
}

const float *mom_half_load_row(const mom_kernels *k, float *buffer, const void *row, mom_dtype dtype, size_t n) {
    if (dtype == MOM_F32)
        return row;
    k->vec.from_bf16(buffer, row, n);
    return buffer;
}

/* out[slot or token] = weight * sums */
void mom_half_finish_store(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m,
                           size_t j0, size_t n) {
    const mom_half_block *f = g->context;
    for (size_t r = 0; r < m; r++) {
        const row_place p = place_of(f, i0 + r);
        void *out = mom_half_at(f->out, f->out_dtype, f->by_token ? p.token : p.slot, f->width, j0);
        mom_half_store_row(k, out, f->out_dtype, sums + r * ld, p.weight, n);
    }
}

/* x_out[token] = x[token] + dropout(weight * sums) */
void mom_half_finish_residual(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m,
                              size_t j0, size_t n) {
    const mom_half_block *f = g->context;
    for (size_t r = 0; r < m; r++) {
        const row_place p = place_of(f, i0 + r);
        float *row = sums + r * ld, *out = (float *)f->out + p.token * f->width + j0;
        const float *x = f->half->x + p.token * f->width + j0;
        if (f->slots)
            memcpy(f->slots + p.slot * f->width + j0, row, n * sizeof *row);
        if (f->dropout.p > 0.0f)
            k->vec.dropout(row, row, f->dropout, (uint64_t)p.token * f->width + j0, n);
        if (out != x)
            memcpy(out, x, n * sizeof *out);
        k->vec.axpy(out, p.weight, row, n);
    }
}

/* inner[slot] becomes weight * sums * gelu'(inner); partial: <sums, gelu(inner)> */
void mom_half_finish_gelu_backward(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m,
                                   size_t j0, size_t n) {
    const mom_half_block *f = g->context;
    float buffer[MOM_MOST_COLUMNS];
    for (size_t r = 0; r < m; r++) {
        const row_place p = place_of(f, i0 + r);
        float *row = sums + r * ld;
        void *inner = mom_half_at(f->inner, f->half->dtype, p.slot, f->width, j0);
        const float *v = mom_half_load_row(k, buffer, inner, f->half->dtype, n);
        const float score = k->vec.gelu_backward_score(row, v, p.weight, n);
        if (f->partial)
            f->partial[p.slot * f->blocks + j0 / k->gemm.column_block] = score;
        mom_half_store_row(k, inner, f->half->dtype, row, 1.0f, n);
    }
}

/* out[slot or token] = weight * sums; partial: <sums, inner[token]> */
void mom_half_finish_scored(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m,
                            size_t j0, size_t n) {
    const mom_half_block *f = g->context;
    float buffer[MOM_MOST_COLUMNS];
    for (size_t r = 0; r < m; r++) {
        const row_place p = place_of(f, i0 + r);
        float *row = sums + r * ld;
        if (f->partial) {
            const void *inner = mom_half_at(f->inner, f->half->dtype, p.token, f->width, j0);
            f->partial[p.slot * f->blocks + j0 / k->gemm.column_block] =
                k->vec.dot(row, mom_half_load_row(k, buffer, inner, f->half->dtype, n), n);
        }
        void *out = mom_half_at(f->out, f->out_dtype, f->by_token ? p.token : p.slot, f->width, j0);
        mom_half_store_row(k, out, f->out_dtype, row, p.weight, n);
    }
}

/* out[token] += sums */
void mom_half_finish_add(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m,
                         size_t j0, size_t n) {
    const mom_half_block *f = g->context;
    for (size_t r = 0; r < m; r++)
        k->vec.add((float *)f->out + place_of(f, i0 + r).token * f->width + j0, sums + r * ld, n);
}

/* out[slot] = weight * sums; partial: <sums, LN_m(x)[token]> */
void mom_half_finish_scored_norm(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m,
                                 size_t j0, size_t n) {
    const mom_half_block *f = g->context;
    const mom_half *half = f->half;
    float xn[MOM_MOST_COLUMNS];
    for (size_t r = 0; r < m; r++) {
        const row_place p = place_of(f, i0 + r);
        k->norm.apply(xn, half->x + p.token * half->C + j0, half->mean[p.token], half->rstd[p.token],
                           half->ln_weight[f->m] + j0, half->ln_bias[f->m] + j0, n);
        f->partial[p.slot * f->blocks + j0 / k->gemm.column_block] = k->vec.dot(sums + r * ld, xn, n);
        k->vec.scale((float *)f->out + p.slot * f->width + j0, p.weight, sums + r * ld, n);
    }
}
