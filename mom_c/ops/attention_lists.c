#include "ops/attention_job.h"

#include <math.h>
#include <stdlib.h>

#define KEY_TILE 128       /* keys per tile, rounded down to whole micro-tiles */
#define QUERY_BLOCK 128    /* queries per block of backward, rounded down to whole micro-tiles */
#define TINY_SCALE 1e-30f  /* replaces a scale of 0, which would turn the -inf of hidden keys into NaN */
#define TASKS_PER_THREAD 4 /* heads are cut into about that many tasks */

mom_attention_job mom_attention_job_init(const mom_exec *x, const mom_attention_spec *spec, const void *qkv) {
    const mom_kernels *k = x->k;
    return (mom_attention_job){.k = k,
                               .spec = spec,
                               .bf16 = spec->dtype == MOM_BF16,
                               .scale = spec->scale != 0.0f ? spec->scale : TINY_SCALE,
                               .D = spec->C / spec->H,
                               .tile = mom_max(KEY_TILE / k->gemm.mr, 1) * k->gemm.mr,
                               .block = mom_max(QUERY_BLOCK / k->gemm.nr, 1) * k->gemm.nr,
                               .qkv = qkv};
}

/* ---- lists */

typedef struct {
    int32_t *key, *query, *count, *skipped;
} token_lists;

/* Lists the keys and queries of a sequence. */
static void list_tokens(const mom_attention_job *job, mom_sequence *s, const token_lists *lists) {
    s->first = s->length;
    for (size_t t = 0; t < s->length; t++) {
        const size_t row = s->row + t;
        if (mom_is_real(job, row)) {
            if (s->real++ == 0)
                s->first = t;
            if (mom_is_active(job, row))
                lists->key[s->row + s->keys++] = (int32_t)t;
        }
        if (s->real && mom_has_output(job, row)) {
            const size_t entry = s->row + s->queries++;
            lists->query[entry] = (int32_t)t;
            lists->count[entry] = (int32_t)s->keys;
            lists->skipped[entry] = (int32_t)(s->real - s->keys);
            s->work += (double)s->keys;
        }
    }
}

/* A dry run has no lists. It counts as if there were no mask and no skipped token. */
static void count_tokens(mom_sequence *s) {
    s->real = s->keys = s->queries = s->length;
    s->work = 0.5 * (double)s->length * (double)(s->length + 1);
}

mom_status mom_attention_lists(mom_attention_job *job, const mom_exec *x, mom_error *err) {
    const mom_attention_spec *spec = job->spec;
    const int32_t *offsets = spec->offsets;
    const size_t N = offsets ? (size_t)offsets[spec->B] : spec->B * spec->T;
    mom_sequence *sequences;
    token_lists lists;
    MOM_ARENA_NEW(sequences, x->workspace, spec->B, err);
    MOM_ARENA_NEW(lists.key, x->workspace, N, err);
    MOM_ARENA_NEW(lists.query, x->workspace, N, err);
    MOM_ARENA_NEW(lists.count, x->workspace, N, err);
    MOM_ARENA_NEW(lists.skipped, x->workspace, N, err);
    for (size_t b = 0; b < spec->B; b++) {
        const size_t row = offsets ? (size_t)offsets[b] : b * spec->T;
        mom_sequence s = {.row = row, .length = offsets ? (size_t)offsets[b + 1] - row : spec->T};
        if (x->dry_run)
            count_tokens(&s);
        else
            list_tokens(job, &s, &lists);
        s.has_nonqueries = s.queries < s.length;
        sequences[b] = s;
        job->work += s.work * (double)spec->H;
    }
    job->sequences = sequences;
    job->key = lists.key;
    job->query = lists.query;
    job->count = lists.count;
    job->skipped = lists.skipped;
    return MOM_OK;
}

void mom_attention_count(const mom_attention_job *job, const mom_exec *x, size_t products) {
    size_t pairs = 0;
    if (!x->counts)
        return;
    for (size_t b = 0; b < job->spec->B; b++) {
        const mom_sequence *s = &job->sequences[b];
        for (size_t q = s->row; q < s->row + s->queries; q++)
            if (mom_is_real(job, s->row + (size_t)job->query[q]))
                pairs += (size_t)job->count[q];
    }
    mom_counts_add(x->counts, x->counts->part, products * pairs * job->spec->C);
}

mom_head mom_attention_head(const mom_attention_job *job, size_t head) {
    const size_t T = job->spec->T;
    const mom_sequence *s = &job->sequences[head / job->spec->H];
    return (mom_head){s, head % job->spec->H, job->key + s->row, job->query + s->row, job->count + s->row,
                      job->skipped + s->row, (uint64_t)head * T * T};
}

/* ---- tasks */

static int by_falling_work(const void *left, const void *right) {
    const mom_attention_task *a = left, *b = right;
    if (a->work != b->work)
        return a->work < b->work ? 1 : -1;
    if (a->head != b->head)
        return a->head < b->head ? -1 : 1;
    if (a->keys != b->keys)
        return a->keys < b->keys ? -1 : 1;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

void mom_attention_sort_tasks(mom_attention_task *tasks, size_t n) { qsort(tasks, n, sizeof *tasks, by_falling_work); }

double mom_attention_finish_time(const mom_attention_task *tasks, size_t n, int threads) {
    double busy[MOM_MAX_THREADS] = {0}, last = 0.0;
    for (size_t i = 0; i < n; i++) {
        int next = 0;
        for (int t = 1; t < threads; t++)
            next = busy[t] < busy[next] ? t : next;
        busy[next] += tasks[i].work;
        last = busy[next] > last ? busy[next] : last;
    }
    return last;
}

/* Into how many parts of about equal work to cut a head, at most `most`. */
static size_t parts_of(const mom_attention_job *job, const mom_sequence *s, size_t most, int threads) {
    const double wanted = s->work / job->work * threads * TASKS_PER_THREAD;
    return threads == 1 || !(wanted > 1.0) ? 1 : mom_max(1, mom_min(most, (size_t)ceil(wanted)));
}

/* Pairs that queries [begin, end) see. */
static double pairs_of(const mom_attention_job *job, const mom_sequence *s, size_t begin, size_t end) {
    double pairs = 0.0;
    for (size_t q = begin; q < end; q++)
        pairs += (double)job->count[s->row + q];
    return pairs;
}

/* Keys or queries [begin, end) of part p out of `parts`, in whole units. */
static void part_range(size_t n, size_t unit, size_t parts, size_t p, size_t *begin, size_t *end) {
    mom_range(mom_div_up(n, unit), parts, p, begin, end);
    *begin *= unit;
    *end = mom_min(*end * unit, n);
}

size_t mom_attention_query_tasks(const mom_attention_job *job, mom_attention_task *tasks, size_t unit, int threads) {
    size_t n = 0;
    for (size_t head = 0; head < job->spec->B * job->spec->H; head++) {
        const mom_sequence *s = &job->sequences[head / job->spec->H];
        const size_t parts = parts_of(job, s, mom_div_up(s->queries, unit), threads);
        for (size_t p = 0; p < parts && s->queries; p++, n++) {
            if (!tasks)
                continue;
            mom_attention_task task = {.head = head, .queries = 1};
            part_range(s->queries, unit, parts, p, &task.begin, &task.end);
            task.work = pairs_of(job, s, task.begin, task.end);
            tasks[n] = task;
        }
    }
    return n;
}

/* The columns of the triangle of keys are cut like the rows of the triangle of queries. */
size_t mom_attention_key_tasks(const mom_attention_job *job, mom_attention_task *tasks, int threads) {
    size_t n = 0;
    for (size_t head = 0; head < job->spec->B * job->spec->H; head++) {
        const mom_sequence *s = &job->sequences[head / job->spec->H];
        const size_t parts = parts_of(job, s, mom_div_up(s->keys, job->tile), threads);
        for (size_t p = 0; p < parts && s->keys; p++, n++) {
            if (!tasks)
                continue;
            mom_attention_task task = {.head = head, .keys = 1};
            part_range(s->keys, job->tile, parts, p, &task.begin, &task.end);
            const double before = (double)(s->keys - task.begin), after = (double)(s->keys - task.end);
            task.work = s->work * (before * before - after * after) / ((double)s->keys * (double)s->keys);
            tasks[n] = task;
        }
    }
    return n;
}
