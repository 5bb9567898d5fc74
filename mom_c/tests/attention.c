/* Attention over whole sequences, and of single queries over a cache, against their definitions. */
#include "ops/attention_probabilities.h"

#include <math.h>
#include <string.h>

#include "ops/kv_cache.h"
#include "tests/check.h"

/* Options. */
#define STORED_BFLOAT16 2u /* arrays in bfloat16 */
#define MASK 4u            /* half of the keys are hidden */
#define REFERENCE 8u       /* masked_query */
#define ACTIVE CHECK_ROUTED /* a third of the tokens has no module */
#define QUERIES 32u        /* half of the queries are not wanted */
#define LENGTHS 64u        /* sequences of different lengths */
#define DROPOUT 128u

/* ------------------------------------------------------------------ attention: B, T, C, H */

enum { QKV, DOUT, KEYS_SEEN, HAS_MODULE, WANTED, OFFSETS, OUT, LSE, DQKV };

static size_t rows_of(const check_case *c) {
    return c->size[0] ? (size_t)check_i32(c, OFFSETS)[c->size[0]] : 0;
}

/* Sequence b has T tokens or, with LENGTHS, between 0 and T. */
static void make_offsets(check_case *c) {
    const size_t B = c->size[0], T = c->size[1];
    check_integers(c, OFFSETS, "offsets", CHECK_I32, B + 1, 1);
    size_t end = 0;
    for (size_t b = 0; b < B; b++) {
        end += c->options & LENGTHS && b != B / 2 ? check_random(c, b, T + 1) : T;
        check_set(c, OFFSETS, b + 1, (double)end);
    }
}

static void attention_setup(check_case *c) {
    const size_t C = c->size[2], H = c->size[3];
    const check_type stored = c->options & STORED_BFLOAT16 ? CHECK_BF16 : CHECK_F32;
    make_offsets(c);
    const size_t N = rows_of(c);
    (stored == CHECK_BF16 ? check_bfloats : check_floats)(c, QKV, "qkv", N * 3 * C, 2.0);
    (stored == CHECK_BF16 ? check_bfloats : check_floats)(c, DOUT, "dout", N * C, 1.0);
    check_integers(c, KEYS_SEEN, "mask", CHECK_U8, N, 2);
    check_integers(c, HAS_MODULE, "active", CHECK_U8, N, 3);
    check_integers(c, WANTED, "queries", CHECK_U8, N, 2);
    check_result(c, OUT, "out", stored, N * C);
    check_result(c, LSE, "lse", CHECK_F32, N * H);
    check_result(c, DQKV, "dqkv", stored, N * 3 * C);
    for (size_t n = 0; n < N && c->options & ACTIVE; n++)
        if (!check_u8(c, HAS_MODULE)[n]) { /* these rows are not to be read */
            for (size_t i = 0; i < 3 * C; i++)
                check_set(c, QKV, n * 3 * C + i, NAN);
            for (size_t i = 0; i < C; i++)
                check_set(c, DOUT, n * C + i, NAN);
        }
}

static int active(const check_case *c, size_t n) { return !(c->options & ACTIVE) || check_u8(c, HAS_MODULE)[n]; }
static int real(const check_case *c, size_t n) { return !(c->options & MASK) || check_u8(c, KEYS_SEEN)[n]; }

/* q, k or v (part 0, 1, 2) of a token, channel i; a token without a module has zeros. */
static double part(const check_case *c, size_t p, size_t n, size_t i) {
    return active(c, n) ? check_input(c, QKV, (n * 3 + p) * c->size[2] + i) : 0.0;
}

typedef struct {
    size_t b, h, begin, end, query; /* tokens begin .. end - 1 of a sequence; the query is one of them */
    double scale;
    int blind;          /* it sees no real key */
    double weight[256]; /* by key of the sequence */
    double keep[256];
} attending;

/* The weights of a query; returns its lse. */
static double attend(const check_case *c, attending *a) {
    const size_t D = c->size[2] / c->size[3], T = c->size[1], i = a->query - a->begin;
    double sum = 0.0, count = 0.0;
    a->blind = 1;
    for (size_t j = a->begin; j <= a->query; j++)
        a->blind &= !real(c, j);
    for (size_t j = a->begin; j < a->end; j++) {
        const int past = j <= a->query;
        const int seen = a->blind ? past || (c->options & REFERENCE && real(c, j)) : past && real(c, j);
        double score = 0.0;
        for (size_t d = a->h * D; d < (a->h + 1) * D && !a->blind; d++)
            score += a->scale * part(c, 0, a->query, d) * part(c, 1, j, d);
        a->weight[j - a->begin] = seen ? exp(score) : 0.0;
        sum += a->weight[j - a->begin];
        count += seen;
        const uint64_t index = ((a->b * c->size[3] + a->h) * T + i) * T + (j - a->begin);
        a->keep[j - a->begin] = c->options & DROPOUT ? (double)mom_dropout_scale((mom_dropout){0.25f, 3}, index) : 1.0;
    }
    for (size_t j = 0; j < a->end - a->begin; j++)
        a->weight[j] /= sum;
    return a->blind ? 0.0 : log(sum);
}

/* Adds to the expected gradients what one query contributes. */
static void attend_backward(check_case *c, const attending *a) {
    const size_t C = c->size[2], D = C / c->size[3];
    const size_t keys = a->end - a->begin;
    double *dqkv = check_expected(c, DQKV), dweight[256], mean = 0.0;
    for (size_t j = 0; j < keys; j++) {
        dweight[j] = 0.0;
        for (size_t d = a->h * D; d < (a->h + 1) * D; d++) {
            const double dout = check_input(c, DOUT, a->query * C + d);
            dweight[j] += dout * a->keep[j] * part(c, 2, a->begin + j, d);
            if (active(c, a->begin + j))
                dqkv[((a->begin + j) * 3 + 2) * C + d] += dout * a->keep[j] * a->weight[j];
        }
        mean += a->weight[j] * dweight[j];
    }
    for (size_t j = 0; j < keys; j++) {
        const int passes = !a->blind || (c->options & REFERENCE && a->begin + j <= a->query);
        const double dscore = passes ? a->scale * a->weight[j] * (dweight[j] - mean) : 0.0;
        for (size_t d = a->h * D; d < (a->h + 1) * D; d++) {
            dqkv[a->query * 3 * C + d] += dscore * part(c, 1, a->begin + j, d);
            if (active(c, a->begin + j))
                dqkv[((a->begin + j) * 3 + 1) * C + d] += dscore * part(c, 0, a->query, d);
        }
    }
}

static void define_query(check_case *c, attending *a) {
    const size_t C = c->size[2], H = c->size[3], D = C / H;
    double *out = check_expected(c, OUT) + a->query * C + a->h * D;
    double *dq = check_expected(c, DQKV) + a->query * 3 * C + a->h * D;
    if (c->options & QUERIES && !check_u8(c, WANTED)[a->query]) {
        for (size_t d = 0; d < D; d++)
            dq[d] = NAN; /* undefined; out and lse are not written */
        return;
    }
    memset(out, 0, D * sizeof *out);
    check_expected(c, LSE)[a->query * H + a->h] = 0.0;
    if (!active(c, a->query))
        return;
    check_expected(c, LSE)[a->query * H + a->h] = attend(c, a);
    for (size_t j = 0; j < a->end - a->begin; j++)
        for (size_t d = 0; d < D; d++)
            out[d] += a->weight[j] * a->keep[j] * part(c, 2, a->begin + j, a->h * D + d);
    attend_backward(c, a);
}

static double scale_of(const check_case *c) { return 1.0 / sqrt((double)(c->size[2] / c->size[3])); }

static void attention_define(check_case *c) {
    attending a = {.scale = (double)(float)scale_of(c)};
    memset(check_expected(c, DQKV), 0, rows_of(c) * 3 * c->size[2] * sizeof(double));
    for (a.b = 0; a.b < c->size[0]; a.b++) {
        a.begin = (size_t)check_i32(c, OFFSETS)[a.b];
        a.end = (size_t)check_i32(c, OFFSETS)[a.b + 1];
        for (a.h = 0; a.h < c->size[3]; a.h++)
            for (a.query = a.begin; a.query < a.end; a.query++)
                define_query(c, &a);
    }
}

static mom_status attention_run(check_case *c, const mom_exec *x, mom_error *err) {
    const mom_attention_spec spec = {
        .B = c->size[0], .T = c->size[1], .C = c->size[2], .H = c->size[3], .scale = (float)scale_of(c),
        .masked_query = c->options & REFERENCE ? MOM_MASKED_QUERY_REFERENCE : MOM_MASKED_QUERY_CAUSAL,
        .dropout = {c->options & DROPOUT ? 0.25f : 0.0f, 3}, .offsets = c->options & LENGTHS ? check_i32(c, OFFSETS) : NULL,
        .dtype = c->options & STORED_BFLOAT16 ? MOM_BF16 : MOM_F32,
        .mask = c->options & MASK ? check_u8(c, KEYS_SEEN) : NULL,
        .active = c->options & ACTIVE ? check_u8(c, HAS_MODULE) : NULL,
        .queries = c->options & QUERIES ? check_u8(c, WANTED) : NULL};
    void *out = c->array[OUT].data;
    MOM_TRY(mom_attention_forward(x, out, check_f32(c, LSE), c->array[QKV].data, &spec, err));
    return mom_attention_backward(x, c->array[DQKV].data, c->array[DOUT].data, c->array[QKV].data, out, check_f32(c, LSE),
                                  &spec, err);
}

static const check_sizes attention_cases[] = {
    {{0, 3, 4, 2}, 0},
    {{1, 1, 1, 1}, 0},
    {{2, 9, 4, 2}, 0},
    {{2, 67, 45, 3}, MASK},
    {{2, 67, 45, 3}, MASK | REFERENCE},
    {{2, 37, 30, 2}, MASK | REFERENCE | DROPOUT},
    {{2, 150, 45, 3}, ACTIVE},
    {{3, 37, 30, 2}, ACTIVE | MASK | DROPOUT},
    {{5, 61, 27, 3}, LENGTHS},
    {{6, 61, 32, 2}, LENGTHS | MASK | ACTIVE | DROPOUT},
    {{2, 83, 32, 2}, QUERIES},
    {{2, 70, 64, 1}, STORED_BFLOAT16},
    {{5, 61, 27, 3}, STORED_BFLOAT16 | LENGTHS | ACTIVE},
};

/* ------------------------------------------------------------------ probabilities: B, T, C, H, sequences asked for */

enum { CHOSEN = OFFSETS + 1, PROBABILITIES };

static void probabilities_setup(check_case *c) {
    const size_t T = c->size[1], C = c->size[2], H = c->size[3];
    make_offsets(c);
    const size_t N = rows_of(c);
    (c->options & STORED_BFLOAT16 ? check_bfloats : check_floats)(c, QKV, "qkv", N * 3 * C, 2.0);
    check_integers(c, KEYS_SEEN, "mask", CHECK_U8, N, 2);
    check_integers(c, HAS_MODULE, "active", CHECK_U8, N, 3);
    check_integers(c, CHOSEN, "rows", CHECK_I32, c->size[4], c->size[0]);
    check_result(c, PROBABILITIES, "probabilities", CHECK_F32, c->size[4] * H * T * T);
}

static void probabilities_define(check_case *c) {
    const size_t T = c->size[1], H = c->size[3];
    attending a = {.scale = (double)(float)scale_of(c)};
    memset(check_expected(c, PROBABILITIES), 0, c->size[4] * H * T * T * sizeof(double));
    for (size_t i = 0; i < c->size[4] * H; i++) {
        a.b = (size_t)check_i32(c, CHOSEN)[i / H];
        a.h = i % H;
        a.begin = (size_t)check_i32(c, OFFSETS)[a.b];
        a.end = (size_t)check_i32(c, OFFSETS)[a.b + 1];
        for (a.query = a.begin; a.query < a.end; a.query++) {
            if (!active(c, a.query))
                continue;
            attend(c, &a);
            memcpy(check_expected(c, PROBABILITIES) + (i * T + a.query - a.begin) * T, a.weight,
                   (a.end - a.begin) * sizeof(double));
        }
    }
}

static mom_status probabilities_run(check_case *c, const mom_exec *x, mom_error *err) {
    const mom_attention_spec spec = {
        .B = c->size[0], .T = c->size[1], .C = c->size[2], .H = c->size[3], .scale = (float)scale_of(c),
        .masked_query = c->options & REFERENCE ? MOM_MASKED_QUERY_REFERENCE : MOM_MASKED_QUERY_CAUSAL,
        .offsets = c->options & LENGTHS ? check_i32(c, OFFSETS) : NULL,
        .dtype = c->options & STORED_BFLOAT16 ? MOM_BF16 : MOM_F32, .mask = c->options & MASK ? check_u8(c, KEYS_SEEN) : NULL,
        .active = c->options & ACTIVE ? check_u8(c, HAS_MODULE) : NULL};
    return mom_attention_probabilities(x, check_f32(c, PROBABILITIES), c->array[QKV].data, &spec, check_i32(c, CHOSEN),
                                       c->size[4], err);
}

static const check_sizes probabilities_cases[] = {
    {{1, 3, 4, 2, 0}, 0},        {{1, 1, 1, 1, 1}, 0},         {{3, 67, 45, 3, 2}, 0},
    {{2, 35, 45, 3, 3}, MASK},   {{2, 35, 30, 2, 2}, MASK | REFERENCE}, {{3, 37, 30, 2, 3}, ACTIVE | MASK},
    {{6, 61, 32, 2, 4}, LENGTHS | MASK | ACTIVE}, {{2, 37, 32, 1, 2}, STORED_BFLOAT16},
};

/* ------------------------------------------------------------------ a cache: queries, keys, skipped, H, D */

enum { Q, K, V, ATTENDED };

static void cache_setup(check_case *c) {
    const size_t queries = c->size[0], keys = c->size[1], C = c->size[3] * c->size[4];
    check_floats(c, Q, "q", queries * C, 2.0);
    check_floats(c, K, "keys", keys * C, 2.0);
    check_floats(c, V, "values", keys * C, 1.0);
    check_result(c, ATTENDED, "out", CHECK_F32, queries * C);
}

static void cache_define(check_case *c) {
    const size_t queries = c->size[0], keys = c->size[1], D = c->size[4], C = c->size[3] * D;
    for (size_t i = 0; i < queries * c->size[3]; i++) {
        const size_t at = i / c->size[3] * C + i % c->size[3] * D, head = i % c->size[3] * D;
        double *out = check_expected(c, ATTENDED) + at, sum = (double)c->size[2];
        memset(out, 0, D * sizeof *out);
        for (size_t j = 0; j < keys; j++) {
            double score = 0.0;
            for (size_t d = 0; d < D; d++)
                score += 0.5 * (double)check_f32(c, Q)[at + d] * (double)check_f32(c, K)[j * C + head + d];
            sum += exp(score);
            for (size_t d = 0; d < D; d++)
                out[d] += exp(score) * (double)check_f32(c, V)[j * C + head + d];
        }
        for (size_t d = 0; d < D; d++)
            out[d] /= sum;
    }
}

static mom_status cache_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t queries = c->size[0], keys = c->size[1], H = c->size[3], D = c->size[4], C = H * D;
    mom_kv kv = {.capacity = (keys + MOM_PANEL - 1) / MOM_PANEL * MOM_PANEL};
    mom_kv_query *list;
    MOM_ARENA_NEW(kv.keys, &c->scratch, mom_kv_floats(kv.capacity, C), err);
    MOM_ARENA_NEW(list, &c->scratch, queries, err);
    kv.values = kv.keys + kv.capacity * C;
    mom_zero(x, kv.keys, kv.capacity * C * sizeof(float));
    for (size_t j = 0; j < keys && !x->dry_run; j++)
        for (size_t h = 0; h < H; h++)
            mom_kv_write(&kv, j, check_f32(c, K) + j * C + h * D, check_f32(c, V) + j * C + h * D, MOM_F32, h, D);
    for (size_t q = 0; q < queries; q++)
        list[q] = (mom_kv_query){check_f32(c, ATTENDED) + q * C, check_f32(c, Q) + q * C, kv, keys, c->size[2]};
    return mom_kv_attention(x, list, queries, 0.5f, H, D, err);
}

static const check_sizes cache_cases[] = {
    {{0, 1, 0, 1, 1}, 0}, {{1, 1, 0, 1, 1}, 0}, {{1, 0, 3, 2, 5}, 0}, {{2, 64, 1, 3, 16}, 0}, {{3, 200, 7, 2, 33}, 0},
};

static const check_operator operators[] = {
    {"attention", attention_setup, attention_define, attention_run, 1e-5, attention_cases, CHECK_LENGTH(attention_cases)},
    {"probabilities of attention", probabilities_setup, probabilities_define, probabilities_run, 1e-5, probabilities_cases,
     CHECK_LENGTH(probabilities_cases)},
    {"cache", cache_setup, cache_define, cache_run, 1e-5, cache_cases, CHECK_LENGTH(cache_cases)},
};

void check_attention(void) { check_operators(operators, CHECK_LENGTH(operators)); }
