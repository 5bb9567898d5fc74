/* A small network: gradients against finite differences, threads, the memory plan, refused allocations. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/check.h"
#include "tests/small.h"

static const float scales[MOM_TERMS] = {[MOM_TERM_LM] = 1.0f, [MOM_TERM_BALANCE] = 0.1f, [MOM_TERM_Z] = 0.3f,
                                       [MOM_TERM_PATH] = 1.0f, [MOM_TERM_COUPLING] = 2.0f};

static const unsigned kinds[] = {
    0,
    SMALL_PLAIN,
    SMALL_NAIVE,
    SMALL_ALL_PATHS,
    SMALL_WEIGHTED,
    SMALL_CHECKPOINT,
    SMALL_DROPOUT,
    SMALL_RANDOM | SMALL_NAIVE,
    SMALL_RANDOM,
    SMALL_LINEAR,
    SMALL_NORM,
    SMALL_OPTIONS,
    SMALL_OPTIONS | SMALL_LINEAR,
    SMALL_OPTIONS | SMALL_NORM,
    SMALL_OPTIONS | SMALL_CHECKPOINT,
    SMALL_SINGLE,
    SMALL_SINGLE | SMALL_LINEAR | SMALL_OPTIONS,
    SMALL_COUPLED | SMALL_LINEAR,
    SMALL_COUPLED | SMALL_LINEAR | SMALL_OPTIONS,
    SMALL_COUPLED | SMALL_LINEAR | SMALL_DROPOUT | SMALL_CHECKPOINT,
    SMALL_BFLOAT16 | SMALL_COUPLED | SMALL_LINEAR | SMALL_DROPOUT,
    SMALL_BFLOAT16,
    SMALL_BFLOAT16 | SMALL_OPTIONS,
    SMALL_BFLOAT16 | SMALL_PLAIN,
    SMALL_BFLOAT16 | SMALL_DROPOUT | SMALL_CHECKPOINT,
};

static const char *kind_name(unsigned options) {
    static char name[40];
    snprintf(name, sizeof name, "network of kind %u", options);
    return name;
}

/* ------------------------------------------------------------------ finite differences */

static double total(const mom_losses *losses) {
    double sum = 0.0;
    for (int term = 0; term < MOM_TERMS; term++)
        if (losses->has[term])
            sum += (double)scales[term] * losses->value[term];
    return sum;
}

static uint64_t hash_with(uint64_t hash, uint64_t value) { return (hash ^ value) * 1099511628211u; }

/* The number of the largest score of token n, which the balance loss counts. */
static uint64_t preferred(const mom_route *route, size_t n, size_t S) {
    size_t best = 0;
    for (size_t s = 1; s < S; s++)
        best = route->scores[n * S + s] > route->scores[n * S + best] ? s : best;
    return best;
}

/* A number that changes if any choice of any router does, or what a router prefers. */
static uint64_t hash_of_routes(const mom_gpt *gpt) {
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < gpt->params.num_places; i++)
        for (size_t h = 0; h < 2 * gpt->params.places[i].rounds; h++) {
            const mom_pool *pool = mom_place_pool(&gpt->params.places[i], (int)(h % 2));
            const mom_route *route = &gpt->last.halves[i][h].route;
            for (size_t n = 0; pool->routed && n < gpt->last.pass.N * pool->K; n++)
                hash = hash_with(hash, (uint64_t)route->index[n]);
            for (size_t n = 0; pool->routed && !route->left_out && n < gpt->last.pass.N; n++)
                hash = hash_with(hash, preferred(route, n, pool->S));
        }
    return hash;
}

/* The total loss with parameter i moved by `step` along `direction`. */
static double moved_loss(mom_gpt *gpt, const mom_exec *x, const mom_batch *batch, size_t i, const float *direction,
                         double step, uint64_t *routes) {
    static float kept[4096];
    float *value = mom_param_value(&gpt->params, i);
    const size_t n = gpt->params.table[i].count;
    mom_losses losses = {0};
    mom_error err;
    memcpy(kept, value, n * sizeof *value);
    for (size_t j = 0; j < n; j++)
        value[j] = (float)((double)value[j] + step * (double)direction[j]);
    gpt->counter = 0; /* the same random numbers every time */
    check_ok(mom_gpt_forward(gpt, x, batch, &losses, &err), &err, "forward");
    *routes = hash_of_routes(gpt);
    memcpy(value, kept, n * sizeof *value);
    return total(&losses);
}

/* The slope of the loss along a parameter's gradient is that gradient's length. A route that changes is a jump of the loss,
 * so the step is made shorter until routes stay. The coupling loss has kinks, so a step with another slope is made shorter,
 * too. Returns whether routes stayed. */
static int check_slope(mom_gpt *gpt, const mom_exec *x, const mom_batch *batch, size_t i, const float *gradient,
                       uint64_t routes, unsigned options) {
    static float direction[4096];
    const mom_param *param = &gpt->params.table[i];
    double square = 0.0;
    for (size_t j = 0; j < param->count; j++)
        square += (double)gradient[j] * (double)gradient[j];
    const double norm = sqrt(square);
    for (size_t j = 0; j < param->count; j++)
        direction[j] = (float)((double)gradient[j] / (norm > 0.0 ? norm : 1.0));
    int stayed = 0, agrees = 0;
    double slope = NAN;
    for (double step = 1e-2; step > 1e-3 && !agrees; step /= 2.0) {
        uint64_t up_routes, down_routes;
        const double up = moved_loss(gpt, x, batch, i, direction, step, &up_routes);
        const double down = moved_loss(gpt, x, batch, i, direction, -step, &down_routes);
        if (up_routes != routes || down_routes != routes)
            continue;
        slope = (up - down) / (2.0 * step);
        agrees = fabs(slope - norm) <= 0.02 * norm + 3e-4;
        stayed = 1;
        if (!(options & SMALL_COUPLED))
            break;
    }
    check_that(agrees || !stayed, "kind %u, %s: gradient of length %g, slope %g", options, param->name, norm, slope);
    return stayed;
}

static void check_gradients(unsigned options) {
    static float gradients[1 << 17];
    const mom_exec x = {.k = mom_kernels_best(), .threads = 2};
    mom_gpt gpt;
    mom_error err;
    mom_losses losses;
    small_batch b;
    size_t compared = 0;
    small_batch_init(&b, options);
    check_ok(small_init(&gpt, options, &err), &err, "init");
    check_ok(mom_gpt_forward(&gpt, &x, &b.batch, &losses, &err), &err, "forward");
    const uint64_t routes = hash_of_routes(&gpt);
    check_ok(mom_gpt_backward(&gpt, &x, scales, &err), &err, "backward");
    check_ok(mom_gradients_show(&gpt.gradients, &gpt.params, &err), &err, "gradients");
    memcpy(gradients, gpt.gradients.values, gpt.params.total * sizeof *gradients);
    for (size_t i = 0; i < gpt.params.count; i++)
        compared += (size_t)check_slope(&gpt, &x, &b.batch, i, gradients + gpt.params.table[i].offset, routes, options);
    check_that(2 * compared >= gpt.params.count, "kind %u: only %zu of %zu parameters could be compared", options, compared,
               gpt.params.count);
    mom_gpt_free(&gpt);
}

/* ------------------------------------------------------------------ threads and levels */

typedef struct {
    float gradients[1 << 17];
    mom_losses losses;
    double peak, capacity; /* of the region, in bytes */
    int full;
} result;

static mom_status one_step(mom_gpt *gpt, const mom_exec *x, unsigned options, mom_losses *losses, mom_error *err) {
    small_batch b;
    small_batch_init(&b, options);
    MOM_TRY(mom_gpt_forward(gpt, x, &b.batch, losses, err));
    MOM_TRY(mom_gpt_backward(gpt, x, scales, err));
    return mom_gradients_show(&gpt->gradients, &gpt->params, err);
}

static void take_step(result *r, const mom_exec *x, unsigned options) {
    mom_gpt gpt;
    mom_error err;
    memset(r, 0, sizeof *r);
    check_ok(small_init(&gpt, options, &err), &err, kind_name(options));
    check_ok(one_step(&gpt, x, options, &r->losses, &err), &err, kind_name(options));
    memcpy(r->gradients, gpt.gradients.values, gpt.params.total * sizeof(float));
    r->peak = (double)gpt.memory.region.peak;
    r->capacity = (double)gpt.memory.region.capacity;
    r->full = gpt.memory.region.full;
    mom_gpt_free(&gpt);
}

static double largest_difference(const result *a, const result *b) {
    double worst = 0.0, largest = 0.0;
    for (size_t i = 0; i < CHECK_LENGTH(a->gradients); i++) {
        /* No calls of fmax: with them GCC 12 fails on AArch64 with an internal error. */
        const double off = fabs((double)a->gradients[i] - (double)b->gradients[i]), size = fabs((double)a->gradients[i]);
        if (!isfinite(off))
            return INFINITY;
        worst = off > worst ? off : worst;
        largest = size > largest ? size : largest;
    }
    return worst / largest;
}

static void check_levels(unsigned options) {
    static result first, one, more;
    int first_level = 1;
    for (const char *const *level = mom_kernels_available(); *level; level++) {
        if (check_quick && level[1])
            continue;
        mom_exec x = {.k = mom_kernels_get(*level), .threads = 1};
        take_step(&one, &x, options);
        if (first_level)
            first = one;
        first_level = 0;
        check_that(isfinite(total(&one.losses)), "%s, level %s: the loss is %g", kind_name(options), *level,
                   total(&one.losses));
        const double off = largest_difference(&first, &one);
        check_that(off <= (options & SMALL_BFLOAT16 ? 0.1 : 1e-4), "%s, level %s: gradients differ by %g",
                   kind_name(options), *level, off);
        for (x.threads = 2; x.threads <= 3; x.threads++) {
            take_step(&more, &x, options);
            check_that(memcmp(one.gradients, more.gradients, sizeof one.gradients) == 0 &&
                           memcmp(one.losses.value, more.losses.value, sizeof one.losses.value) == 0,
                       "%s, level %s: other bits with %d threads", kind_name(options), *level, x.threads);
        }
    }
}

/* ------------------------------------------------------------------ passes that begin in the middle */

/* What a whole pass has before each of its half-rounds: the streams, and the states after them. */
typedef struct {
    float values[24][2][SMALL_B * SMALL_T * 24]; /* by half-round: stream, state */
    mom_capture captures[48];
    mom_site sites[24];
    size_t halves, count;
} whole_pass;

static void list_captures(whole_pass *w, const mom_gpt *gpt) {
    w->halves = w->count = 0;
    for (size_t i = 0; i < gpt->params.num_places; i++)
        for (size_t h = 0; h < 2 * gpt->params.places[i].rounds; h++, w->halves++) {
            mom_site site = {.kind = MOM_SITE_INPUT, .place = i, .round = h / 2, .half = (int)(h % 2)};
            w->sites[w->halves] = site;
            w->captures[w->count++] = (mom_capture){site, w->values[w->halves][0], NULL};
            site.kind = MOM_SITE_STATE;
            if (mom_pool_has_state(mom_place_pool(&gpt->params.places[i], site.half)))
                w->captures[w->count++] = (mom_capture){site, w->values[w->halves][1], NULL};
        }
}

/* A pass that begins with half-round h. */
static mom_begin begin_with(const whole_pass *w, const mom_gpt *gpt, size_t h) {
    const mom_site at = w->sites[h];
    mom_begin begin = {.place = at.place, .round = at.round, .half = at.half, .stream = w->values[h][0]};
    for (int half = 0; half < 2; half++) {
        const size_t back = half == at.half ? 2 : 1;
        if (mom_pool_has_state(mom_place_pool(&gpt->params.places[at.place], half)) && (at.round || half < at.half))
            begin.states[half] = w->values[h - back][1];
    }
    return begin;
}

static void check_begin(unsigned options) {
    static whole_pass w;
    mom_exec x = {.k = mom_kernels_best(), .threads = 2};
    mom_gpt gpt;
    mom_error err;
    mom_losses whole, part;
    small_batch b;
    small_batch_init(&b, options);
    b.batch.keep = b.batch.checkpoint = 0;
    check_ok(small_init(&gpt, options, &err), &err, "init");
    list_captures(&w, &gpt);
    const mom_interventions captures = {.captures = w.captures, .capture_count = w.count};
    b.batch.interventions = &captures;
    check_ok(mom_gpt_forward(&gpt, &x, &b.batch, &whole, &err), &err, "forward");
    b.batch.interventions = NULL;
    for (size_t h = 0; h < w.halves; h++) {
        mom_gpt_forget_plans(&gpt);
        gpt.counter = 0;
        x.threads = 1 + (int)(h % 3);
        b.batch.begin = begin_with(&w, &gpt, h);
        check_ok(mom_gpt_forward(&gpt, &x, &b.batch, &part, &err), &err, "forward from the middle");
        check_that(memcmp(&part.value[MOM_TERM_LM], &whole.value[MOM_TERM_LM], sizeof *part.value) == 0,
                   "%s, from half-round %zu: loss %.9g, of the whole pass %.9g", kind_name(options), h,
                   part.value[MOM_TERM_LM], whole.value[MOM_TERM_LM]);
        check_that(!gpt.memory.region.full && !gpt.last.has_routes, "%s, from half-round %zu: no memory, or routes",
                   kind_name(options), h);
    }
    b.batch.keep = 1;
    check_that(mom_gpt_forward(&gpt, &x, &b.batch, &part, &err) == MOM_ERR_VALUE, "%s: begins in the middle and keeps",
               kind_name(options));
    mom_gpt_free(&gpt);
}

/* ------------------------------------------------------------------ memory */

/* The plan covers a pass. Without routers it is close: beyond the spare room that every plan has, it counts a
 * list or two of rows that some passes need. */
static void check_plan(unsigned options) {
    static result r;
    for (int threads = 1; threads <= 3; threads++) {
        const mom_exec x = {.k = mom_kernels_best(), .threads = threads};
        take_step(&r, &x, options);
        check_that(!r.full && r.peak <= r.capacity, "%s, %d threads: the pass takes %.0f bytes, %.0f are planned",
                   kind_name(options), threads, r.peak, r.capacity);
        if (options & SMALL_PLAIN)
            check_that(r.capacity - r.peak <= r.peak / 100.0 + 65536.0,
                       "%s, %d threads: the pass takes %.0f bytes, %.0f are planned",
                       kind_name(options), threads, r.peak, r.capacity);
    }
}

static mom_status life(void *context, mom_error *err) {
    const unsigned options = *(const unsigned *)context;
    const mom_exec x = {.k = mom_kernels_best(), .threads = 2};
    mom_losses losses;
    mom_gpt gpt;
    mom_status status = small_init(&gpt, options, err);
    if (status == MOM_OK)
        status = one_step(&gpt, &x, options, &losses, err);
    if (status == MOM_OK) {
        mom_gpt_zero_grad(&gpt, &x);
        status = one_step(&gpt, &x, options, &losses, err);
    }
    mom_gpt_free(&gpt);
    return status;
}

void check_network(void) {
    for (size_t i = 0; i < CHECK_LENGTH(kinds); i++) {
        unsigned options = kinds[i];
        if (check_quick) {
            check_levels(options);
            continue;
        }
        if (!(options & SMALL_BFLOAT16) && !(options & SMALL_COUPLED && options & SMALL_DROPOUT))
            check_gradients(options);
        check_levels(options);
        if (!(options & (SMALL_OPTIONS | SMALL_SINGLE))) /* not with a SKIP that is final, or rounds left out */
            check_begin(options);
        check_plan(options);
        check_failing_memory(kind_name(options), mom_memory_fail_at, life, &options);
    }
}
