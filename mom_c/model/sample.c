#include "model/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

typedef struct {
    float logit;
    int32_t token;
} candidate;

/* Falling logits; equal ones by rising token, so that the order does not depend on the sort. */
static int compare(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->token < y->token ? -1 : x->token > y->token;
}

static int32_t greedy(const float *logits, size_t V) {
    size_t best = 0;
    for (size_t v = 1; v < V; v++)
        if (logits[v] > logits[best])
            best = v;
    return (int32_t)best;
}

static int32_t draw(candidate *c, const float *logits, const mom_sampling *s, size_t row, size_t V) {
    for (size_t v = 0; v < V; v++)
        c[v] = (candidate){logits[v], (int32_t)v};
    qsort(c, V, sizeof *c, compare);
    size_t n = s->top_k && s->top_k < V ? s->top_k : V;
    double total = 0.0;
    for (size_t i = 0; i < n; i++)
        total += exp(((double)c[i].logit - (double)c[0].logit) / (double)s->temperature);
    if (s->top_p < 1.0f) {
        /* The smallest set whose probability reaches top_p; the most probable token always stays. */
        double sum = 0.0;
        size_t keep = 0;
        while (keep < n && (keep == 0 || sum < (double)s->top_p * total))
            sum += exp(((double)c[keep++].logit - (double)c[0].logit) / (double)s->temperature);
        n = keep;
        total = sum;
    }
    const uint64_t key = mom_rng_key(s->seed, s->step, row);
    double left = (double)(mom_rng_u64(key, 0) >> 11) * 0x1p-53 * total;
    for (size_t i = 0; i < n; i++) {
        left -= exp(((double)c[i].logit - (double)c[0].logit) / (double)s->temperature);
        if (left < 0.0)
            return c[i].token;
    }
    return c[n - 1].token;
}

mom_status mom_sample(const mom_exec *x, int32_t *tokens, const float *logits, const mom_sampling *s, size_t B, size_t V,
                      mom_error *err) {
    for (size_t b = 0; b < B; b++) {
        int any = 0; /* a token that can be chosen; single ones may be ruled out by -inf */
        for (size_t v = 0; v < V; v++) {
            const float logit = logits[b * V + v];
            if (isnan(logit) || logit == INFINITY)
                return mom_error_set(err, MOM_ERR_VALUE, "logits: %s at row %zu, token %zu",
                                     isnan(logit) ? "not a number" : "infinite", b, v);
            any |= logit != -INFINITY;
        }
        if (!any)
            return mom_error_set(err, MOM_ERR_VALUE, "logits: every token of row %zu is minus infinity", b);
    }
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    candidate *c = mom_arena_alloc(x->workspace, V, sizeof *c, err);
    if (!c)
        return MOM_ERR_MEMORY;
    for (size_t b = 0; b < B; b++)
        tokens[b] = s->temperature == 0.0f ? greedy(logits + b * V, V) : draw(c, logits + b * V, s, b, V);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
