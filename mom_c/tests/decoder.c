/* Generating with a cache against full passes over the same tokens. */
#include "model/decoder.h"

#include <math.h>
#include <string.h>

#include "tests/check.h"
#include "tests/small.h"

#define N (SMALL_B * SMALL_T)

static const unsigned kinds[] = {0, SMALL_PLAIN, SMALL_NAIVE, SMALL_ALL_PATHS, SMALL_WEIGHTED, SMALL_LINEAR, SMALL_NORM,
                                 SMALL_OPTIONS, SMALL_OPTIONS | SMALL_NORM, SMALL_SINGLE, SMALL_SINGLE | SMALL_OPTIONS};

/* Logits (SMALL_B * T, V) of a full pass over tokens (SMALL_B, T). */
static void full_pass(mom_gpt *gpt, const mom_exec *x, const int32_t *tokens, size_t T, float *logits) {
    const mom_batch batch = {.B = SMALL_B, .T = T, .tokens = tokens, .all_rows = 1};
    mom_losses losses;
    mom_error err;
    check_ok(mom_gpt_forward(gpt, x, &batch, &losses, &err), &err, "forward");
    check_ok(mom_gpt_logits(gpt, x, logits, NULL, SMALL_B * T, &err), &err, "logits");
}

/* Mean absolute difference as a part of the mean absolute logit. */
static double mean_difference(const float *a, const float *b, size_t n) {
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < n; i++) {
        difference += fabs((double)a[i] - (double)b[i]);
        size += fabs((double)a[i]);
    }
    return difference / size;
}

static size_t best_of(const float *logits) {
    size_t best = 0;
    for (size_t v = 0; v < SMALL_V; v++)
        best = logits[v] > logits[best] ? v : best;
    return best;
}

/* The first `prompt` tokens at once, the others one at a time. */
static void check_steps(mom_gpt *gpt, const mom_exec *x, mom_gemv_format format, size_t prompt, double allowed) {
    static float wanted[N * SMALL_V];
    small_batch b;
    mom_decoder decoder;
    mom_error err;
    small_batch_init(&b, 0);
    full_pass(gpt, x, b.tokens, SMALL_T, wanted);
    check_ok(mom_decoder_init(&decoder, gpt, format, x, &err), &err, "decoder");
    for (size_t end = prompt; end <= SMALL_T; end++) {
        const size_t begin = end == prompt ? 0 : end - 1, T = end - begin;
        int32_t tokens[N];
        for (size_t i = 0; i < SMALL_B; i++)
            memcpy(tokens + i * T, b.tokens + i * SMALL_T + begin, T * sizeof *tokens);
        check_ok(mom_decoder_append(&decoder, x, tokens, NULL, SMALL_B, T, &err), &err, "append");
        for (size_t i = 0; i < SMALL_B; i++) {
            const double off = mean_difference(wanted + (i * SMALL_T + end - 1) * SMALL_V,
                                               decoder.batch.logits + i * SMALL_V, SMALL_V);
            check_that(off <= allowed, "decoder of format %d, prompt %zu: logits after %zu tokens are off by %g",
                       (int)format, prompt, end, off);
        }
    }
    mom_decoder_free(&decoder);
}

/* Greedy tokens are those of full passes. */
static void check_generate(mom_gpt *gpt, const mom_exec *x) {
    enum { PROMPT = 4, NEW = 6 };
    static float logits[N * SMALL_V];
    int32_t tokens[SMALL_B * PROMPT], made[NEW * SMALL_B], all[SMALL_B * (PROMPT + NEW)];
    uint8_t finished[SMALL_B] = {0};
    size_t rows;
    small_batch b;
    mom_decoder decoder;
    mom_error err;
    const mom_sampling greedy = {.top_p = 1.0f};
    small_batch_init(&b, 0);
    for (size_t i = 0; i < SMALL_B; i++)
        memcpy(tokens + i * PROMPT, b.tokens + i * SMALL_T, PROMPT * sizeof *tokens);
    check_ok(mom_decoder_init(&decoder, gpt, MOM_GEMV_F32, x, &err), &err, "decoder");
    check_ok(mom_decoder_append(&decoder, x, tokens, NULL, SMALL_B, PROMPT, &err), &err, "append");
    check_ok(mom_decoder_generate(&decoder, x, made, finished, &rows, &greedy, -1, NEW, &err), &err, "generate");
    check_that(rows == NEW, "%zu of %d tokens were made", rows, NEW);
    mom_decoder_free(&decoder);
    for (size_t i = 0; i < SMALL_B; i++) {
        memcpy(all + i * (PROMPT + NEW), tokens + i * PROMPT, PROMPT * sizeof *tokens);
        for (size_t n = 0; n < NEW; n++)
            all[i * (PROMPT + NEW) + PROMPT + n] = made[n * SMALL_B + i];
    }
    full_pass(gpt, x, all, PROMPT + NEW, logits);
    for (size_t i = 0; i < SMALL_B; i++)
        for (size_t n = 0; n < NEW; n++)
            check_that(best_of(logits + (i * (PROMPT + NEW) + PROMPT + n - 1) * SMALL_V) == (size_t)made[n * SMALL_B + i],
                       "sequence %zu: generated token %zu is not the likeliest", i, n);
}

/* A whole life of a decoder; `logits` gets the last ones, after sequences were put in another order. */
static mom_status use(mom_gpt *gpt, const mom_exec *x, mom_gemv_format format, float *logits, mom_error *err) {
    const int32_t order[] = {2, 0, 0}, lengths[] = {5, 3, 1};
    const mom_sampling sampling = {.temperature = 1.0f, .top_k = 9, .top_p = 0.9f, .seed = 3};
    int32_t made[3 * SMALL_B];
    uint8_t finished[SMALL_B] = {0};
    size_t rows;
    small_batch b;
    mom_decoder decoder;
    small_batch_init(&b, 0);
    mom_status status = mom_decoder_init(&decoder, gpt, format, x, err);
    if (status != MOM_OK)
        return status;
    status = mom_decoder_append(&decoder, x, b.tokens, lengths, SMALL_B, 5, err);
    if (status == MOM_OK)
        status = mom_decoder_generate(&decoder, x, made, finished, &rows, &sampling, -1, 3, err);
    if (status == MOM_OK)
        status = mom_decoder_reorder(&decoder, order, SMALL_B, err);
    if (status == MOM_OK)
        status = mom_decoder_append(&decoder, x, b.tokens, NULL, SMALL_B, 2, err);
    if (status == MOM_OK)
        memcpy(logits, decoder.batch.logits, SMALL_B * SMALL_V * sizeof *logits);
    mom_decoder_free(&decoder);
    return status;
}

static void check_threads(mom_gpt *gpt, const mom_kernels *k, mom_gemv_format format) {
    float one[SMALL_B * SMALL_V], more[SMALL_B * SMALL_V];
    mom_error err;
    for (int threads = 1; threads <= 3; threads++) {
        const mom_exec x = {.k = k, .threads = threads};
        check_ok(use(gpt, &x, format, threads == 1 ? one : more, &err), &err, "decoder");
        check_that(threads == 1 || memcmp(one, more, sizeof one) == 0,
                   "decoder of format %d, level %s: other bits with %d threads", (int)format, k->name, threads);
    }
}

typedef struct {
    unsigned options;
    mom_gemv_format format;
} life_of;

static mom_status life(void *context, mom_error *err) {
    const life_of *of = context;
    const mom_exec x = {.k = mom_kernels_best(), .threads = 2};
    float logits[SMALL_B * SMALL_V];
    mom_gpt gpt;
    MOM_TRY(small_init(&gpt, of->options, err));
    const mom_status status = use(&gpt, &x, of->format, logits, err);
    mom_gpt_free(&gpt);
    return status;
}

static void check_kind(unsigned options, const mom_kernels *k) {
    /* Rounded weights lead to other routes, and these to other logits. */
    const int same_routes = options & (SMALL_PLAIN | SMALL_ALL_PATHS);
    static const double allowed[] = {[MOM_GEMV_F32] = 1e-4, [MOM_GEMV_BF16] = 0.1, [MOM_GEMV_INT8] = 0.2};
    const mom_exec x = {.k = k, .threads = 2};
    mom_gpt gpt;
    mom_error err;
    check_ok(small_init(&gpt, options, &err), &err, "init");
    for (mom_gemv_format format = MOM_GEMV_F32; format <= MOM_GEMV_INT8; format++) {
        if (format == MOM_GEMV_F32 || same_routes)
            check_steps(&gpt, &x, format, 1, allowed[format]);
        check_threads(&gpt, k, format);
    }
    check_steps(&gpt, &x, MOM_GEMV_F32, 5, allowed[MOM_GEMV_F32]);
    check_generate(&gpt, &x);
    mom_gpt_free(&gpt);
}

void check_decoder(void) {
    if (check_quick) {
        check_kind(0, mom_kernels_best());
        return;
    }
    for (size_t i = 0; i < CHECK_LENGTH(kinds); i++)
        for (const char *const *level = mom_kernels_available(); *level; level++)
            check_kind(kinds[i], mom_kernels_get(*level));
    for (mom_gemv_format format = MOM_GEMV_F32; format <= MOM_GEMV_INT8; format++) {
        life_of of = {0, format};
        check_failing_memory("decoder", mom_memory_fail_at, life, &of);
    }
}
