/* A sweep takes panel after panel of b, and for each of them panel after panel of a. Panels at the edges of c are
 * computed in a buffer. While a panel of a is computed, a part of the next panel of b is fetched. */
#include "gemm/sweep.h"

/* c (mr, nr) = or += the panel of a that begins at row i, times the panel b. At least the first `rows` rows are computed.
 * `next`: as in mom_gemm_f32_kernels. */
static void multiply_panels(const mom_gemm_sweep *s, size_t i, size_t rows, const mom_item *b, float *c, size_t ldc,
                            int accumulate, const mom_item *next) {
    const mom_gemm_kernels *gemm = &s->k->gemm;
    const size_t depth = s->depth;
    const float *b_f32 = (const float *)(const void *)b;
    if (i < s->a.first_packed && s->a.rows) {
        gemm->f32.a_rows(depth, s->a.rows + i, b_f32, c, ldc, accumulate, next);
        return;
    }
    if (i < s->a.first_packed) {
        gemm->f32.a_columns(depth, s->a.columns + i, s->a.lda, b_f32, c, ldc, accumulate, next);
        return;
    }
    const mom_item *packed = s->a.packed + (i - s->a.first_packed) * depth;
    const float *a_f32 = (const float *)(const void *)packed;
    const mom_bf16 *a_bf16 = (const mom_bf16 *)(const void *)packed, *b_bf16 = (const mom_bf16 *)(const void *)b;
    const int few = rows <= MOM_FEW_ROWS;
    if (s->precision == MOM_BF16 && few && gemm->bf16.packed_few)
        gemm->bf16.packed_few(depth, rows, a_bf16, b_bf16, c, ldc, accumulate);
    else if (s->precision == MOM_BF16)
        gemm->bf16.packed(depth, a_bf16, b_bf16, c, ldc, accumulate, next);
    else if (few && gemm->f32.packed_few)
        gemm->f32.packed_few(depth, rows, a_f32, b_f32, c, ldc, accumulate);
    else
        gemm->f32.packed(depth, a_f32, b_f32, c, ldc, accumulate, next);
}

/* c (rows, columns) = or += the upper left part of a tile (., nr) */
static void put_edge(float *c, size_t ldc, const float *edge, size_t nr, size_t rows, size_t columns, int accumulate) {
    for (size_t r = 0; r < rows; r++)
        for (size_t q = 0; q < columns; q++)
            c[r * ldc + q] = accumulate ? c[r * ldc + q] + edge[r * nr + q] : edge[r * nr + q];
}

void mom_sweep_b_rows(const mom_gemm_sweep *s, const float *b, size_t ldb, float *c) {
    const mom_gemm_kernels *gemm = &s->k->gemm;
    const size_t mr = gemm->mr, nr = gemm->nr, kc = s->depth;
    const float *a = (const float *)(const void *)s->a.packed;
    float edge[MOM_MOST_TILE] __attribute__((aligned(64)));
    size_t i = 0;
    for (; i + mr <= s->m; i += mr)
        gemm->f32.b_rows(kc, a + i * kc, b, ldb, c + i * s->ldc, s->ldc, s->accumulate);
    if (i == s->m)
        return;
    if (s->m - i <= MOM_FEW_ROWS && gemm->f32.b_rows_few)
        gemm->f32.b_rows_few(kc, s->m - i, a + i * kc, b, ldb, edge, nr, 0);
    else
        gemm->f32.b_rows(kc, a + i * kc, b, ldb, edge, nr, 0);
    put_edge(c + i * s->ldc, s->ldc, edge, nr, s->m - i, nr, s->accumulate);
}

/* Items of the next panel of b to fetch during each panel of a, in whole cache lines. */
static size_t fetched_part(const mom_gemm_sweep *s) {
    const size_t line = MOM_ALIGNMENT / sizeof(mom_item);
    return mom_div_up(s->k->gemm.nr * s->depth / line, mom_div_up(s->m, s->k->gemm.mr)) * line;
}

/* A sweep on tiles takes two panels of a at a time where there are two. Sums begin with what is in c, at the edges too,
 * so the bits do not depend on where the edges are. */
static void sweep_on_tiles(const mom_gemm_sweep *s, const mom_item *b, const mom_item *after) {
    const mom_gemm_tile_kernels *tiles = &s->k->gemm.tiles;
    const size_t mr = s->k->gemm.mr, nr = s->k->gemm.nr, depth = s->depth, part = fetched_part(s);
    const size_t chunks = depth / tiles->items;
    float edge[2 * MOM_MOST_TILE] __attribute__((aligned(64))) = {0};
    tiles->begin();
    for (size_t j = 0; j < s->n; j += nr) {
        const mom_item *bj = b + j * depth;
        const mom_bf16 *b_bf16 = (const mom_bf16 *)(const void *)bj;
        const size_t columns = mom_min(nr, s->n - j);
        const mom_item *next = columns < s->n - j ? bj + nr * depth : after;
        for (size_t i = 0, panels; i < s->m; i += panels * mr, next += panels * part) {
            const mom_bf16 *a_bf16 = (const mom_bf16 *)(const void *)(s->a.packed + i * depth);
            const size_t rows = mom_min(2 * mr, s->m - i);
            float *c = s->c + i * s->ldc + j;
            panels = rows > mr ? 2 : 1;
            if (rows == panels * mr && columns == nr) {
                tiles->multiply(chunks, panels, a_bf16, b_bf16, c, s->ldc, s->accumulate, next);
                continue;
            }
            if (s->accumulate)
                put_edge(edge, nr, c, s->ldc, rows, columns, 0);
            tiles->multiply(chunks, panels, a_bf16, b_bf16, edge, nr, s->accumulate, next);
            put_edge(c, s->ldc, edge, nr, rows, columns, 0);
        }
    }
    tiles->end();
}

void mom_sweep(const mom_gemm_sweep *s, const mom_item *b, const mom_item *after) {
    if (mom_uses_tiles(s->k, s->precision)) {
        sweep_on_tiles(s, b, after);
        return;
    }
    float edge[MOM_MOST_TILE] __attribute__((aligned(64)));
    const size_t mr = s->k->gemm.mr, nr = s->k->gemm.nr, depth = s->depth, part = fetched_part(s);
    for (size_t j = 0; j < s->n; j += nr) {
        const mom_item *bj = b + j * depth;
        const size_t columns = mom_min(nr, s->n - j);
        const mom_item *next = columns < s->n - j ? bj + nr * depth : after;
        for (size_t i = 0; i < s->m; i += mr, next += part) {
            const size_t rows = mom_min(mr, s->m - i);
            float *c = s->c + i * s->ldc + j;
            if (rows == mr && columns == nr) {
                multiply_panels(s, i, mr, bj, c, s->ldc, s->accumulate, next);
                continue;
            }
            multiply_panels(s, i, rows, bj, edge, nr, 0, next);
            put_edge(c, s->ldc, edge, nr, rows, columns, s->accumulate);
        }
    }
}
