/* DESIGN  Only tokens that must be in order are sorted. With top-k these are the k largest, kept in a heap during one
 *         pass over the logits. With top-p they are the tokens that can belong to the smallest sufficient set. Without
 *         either, nothing is sorted.
 */
#include "model/sample.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

typedef struct {
    float logit;
    int32_t token;
} candidate;

/* Orders by falling logit, and equal logits by rising token, so that the order does not depend on the sorting
 * algorithm. */
static int compare(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->token < y->token ? -1 : x->token > y->token;
}

#define SCAN ((size_t)64)

/* The first token of the largest logit. */
static int32_t greedy(const mom_kernels *k, const float *logits, size_t V) {
    const float largest = k->vec.max(logits, V);
    for (size_t v = 0; v < V; v += SCAN) {
        const size_t end = V - v < SCAN ? V : v + SCAN;
        int found = 0;
        for (size_t i = v; i < end; i++)
            found |= logits[i] == largest;
        for (size_t i = v; found && i < end; i++)
            if (logits[i] == largest)
                return (int32_t)i;
    }
    return 0;
}

/* Moves c[i] down to its place in a heap whose root comes last in the order of `compare`. */
static void sift_down(candidate *c, size_t i, size_t n) {
    const candidate moved = c[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && compare(&c[child + 1], &c[child]) > 0)
            child++;
        if (compare(&c[child], &moved) <= 0)
            break;
        c[i] = c[child];
    }
    c[i] = moved;
}

/* The first `count` of all tokens in the order of `compare`; count <= V. */
static void take_largest(candidate *c, size_t count, const float *logits, size_t V) {
    for (size_t v = 0; v < count; v++)
        c[v] = (candidate){logits[v], (int32_t)v};
    for (size_t i = count / 2; i-- > 0;)
        sift_down(c, i, count);
    for (size_t v = count; v < V; v++) {
        if (logits[v] <= c[0].logit) /* among equal logits, the higher token comes later */
            continue;
        c[0] = (candidate){logits[v], (int32_t)v};
        sift_down(c, 0, count);
    }
    qsort(c, count, sizeof *c, compare);
}

/* Probability of a token up to a common factor, from its distance to the largest logit. */
static double weight_of(float logit, float largest, const mom_sampling *s) {
    return exp(((double)logit - (double)largest) / (double)s->temperature);
}

static double total_weight(const candidate *c, size_t n, const mom_sampling *s) {
    double total = 0.0;
    for (size_t i = 0; i < n; i++)
        total += weight_of(c[i].logit, c[0].logit, s);
    return total;
}

/* The smallest number of leading candidates whose weights reach `mass`; the first always stays. *sum: their weight. */
static size_t nucleus(const candidate *c, size_t n, double mass, const mom_sampling *s, double *sum) {
    size_t keep = 0;
    *sum = 0.0;
    while (keep < n && (keep == 0 || *sum < mass))
        *sum += weight_of(c[keep++].logit, c[0].logit, s);
    return keep;
}

/* Candidates for top-p over all tokens, in order, and the total weight of all tokens. Tokens of less than (1 - top_p) /
 * V of the total weight are left out. Together they have less than 1 - top_p of it, so the set is found among the
 * others. */
static size_t take_probable(const mom_exec *x, candidate *c, float *weights, const float *logits, const mom_sampling *s,
                            size_t V, double *total) {
    const float largest = x->k->vec.max(logits, V);
    *total = 0.0;
    for (size_t v = 0; v < V; v++) {
        weights[v] = (float)weight_of(logits[v], largest, s);
        *total += (double)weights[v];
    }
    const double least = (1.0 - (double)s->top_p) * 0.999 / (double)V * *total;
    size_t n = 0;
    for (size_t v = 0; v < V; v++)
        if ((double)weights[v] >= least)
            c[n++] = (candidate){logits[v], (int32_t)v};
    qsort(c, n, sizeof *c, compare);
    return n;
}

static double uniform(const mom_sampling *s, size_t row) {
    return (double)(mom_rng_u64(mom_rng_key(s->seed, s->step, row), 0) >> 11) * 0x1p-53;
}

static int32_t draw_candidate(const candidate *c, size_t n, double total, const mom_sampling *s, size_t row) {
    double left = uniform(s, row) * total;
    size_t last = 0; /* if rounding leaves a rest, the last candidate with a weight is chosen */
    for (size_t i = 0; i < n && left >= 0.0; i++) {
        const double weight = weight_of(c[i].logit, c[0].logit, s);
        if (weight > 0.0)
            last = i;
        left -= weight;
    }
    return c[last].token;
}

/* Draws from all tokens, in the order of their ids. */
static int32_t draw_any(const mom_exec *x, float *weights, const float *logits, const mom_sampling *s, size_t row, size_t V) {
    const float largest = x->k->vec.max(logits, V), factor = 1.0f / s->temperature;
    for (size_t v = 0; v < V; v++)
        weights[v] = logits[v] - largest;
    x->k->vec.exp_sum(weights, weights, factor < FLT_MAX ? factor : FLT_MAX, 0.0f, V);
    double total = 0.0;
    for (size_t v = 0; v < V; v++)
        total += (double)weights[v];
    double left = uniform(s, row) * total;
    size_t last = 0;
    for (size_t v = 0; v < V; v++) {
        if (weights[v] == 0.0f)
            continue;
        last = v;
        left -= (double)weights[v];
        if (left < 0.0)
            break;
    }
    return (int32_t)last;
}

static int32_t draw(const mom_exec *x, candidate *c, float *weights, const float *logits, const mom_sampling *s, size_t row,
                    size_t V) {
    const size_t count = s->top_k && s->top_k < V ? s->top_k : V;
    if (count == V && s->top_p >= 1.0f)
        return draw_any(x, weights, logits, s, row, V);
    size_t n = count;
    double total;
    if (count < V) {
        take_largest(c, count, logits, V);
        total = total_weight(c, n, s);
    } else {
        n = take_probable(x, c, weights, logits, s, V, &total);
    }
    if (s->top_p < 1.0f)
        n = nucleus(c, n, (double)s->top_p * total, s, &total);
    return draw_candidate(c, n, total, s, row);
}

/* Fails for logits from which no choice can be made. */
static mom_status check_row(const float *logits, size_t row, size_t V, mom_error *err) {
    int any = 0, bad = 0; /* any: some token can be chosen, since -inf rules out single tokens only */
    for (size_t v = 0; v < V; v++) {
        bad |= !(logits[v] < INFINITY);
        any |= logits[v] > -INFINITY;
    }
    for (size_t v = 0; bad && v < V; v++)
        if (!(logits[v] < INFINITY))
            return mom_error_set(err, MOM_ERR_VALUE, "logits: %s at row %zu, token %zu",
                                 isnan(logits[v]) ? "not a number" : "infinite", row, v);
    if (!any)
        return mom_error_set(err, MOM_ERR_VALUE, "logits: every token of row %zu is minus infinity", row);
    return MOM_OK;
}

/* A copy of the row in `copy` (n) with -inf for banned tokens. If no token is banned, the row itself. */
static const float *allowed_logits(float *copy, const float *logits, const mom_sampling *s, size_t n) {
    if (!s->num_banned)
        return logits;
    memcpy(copy, logits, n * sizeof *copy);
    for (size_t i = 0; i < s->num_banned; i++)
        if ((size_t)s->banned[i] < n)
            copy[s->banned[i]] = -INFINITY;
    return copy;
}

mom_status mom_sample(const mom_exec *x, int32_t *tokens, const float *logits, const mom_sampling *sampling,
                      const uint8_t *skip, size_t B, size_t V, mom_error *err) {
    mom_sampling s = *sampling;
    const size_t n = s.choices && s.choices < V ? s.choices : V;
    if (s.temperature > FLT_MAX) /* infinity times the -inf of a token that is ruled out would be NaN */
        s.temperature = FLT_MAX;
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    candidate *c;
    float *weights, *copy = NULL;
    MOM_ARENA_NEW(c, x->workspace, n, err);
    MOM_ARENA_NEW(weights, x->workspace, n, err);
    if (s.num_banned)
        MOM_ARENA_NEW(copy, x->workspace, n, err);
    for (size_t b = 0; b < B; b++)
        if (!skip || !skip[b])
            MOM_TRY(check_row(allowed_logits(copy, logits + b * V, &s, n), b, n, err));
    for (size_t b = 0; b < B; b++) {
        if (skip && skip[b])
            continue;
        const float *row = allowed_logits(copy, logits + b * V, &s, n);
        tokens[b] = s.temperature == 0.0f ? greedy(x->k, row, n) : draw(x, c, weights, row, &s, b, n);
    }
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
