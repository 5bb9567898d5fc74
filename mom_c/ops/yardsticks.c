/* Each thread gets one task of equal work. Other programs can only slow a burst down, so the best burst counts. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 199309L
#endif

#include "ops/yardsticks.h"

#include <time.h>

#include "base/sizes.h"

double mom_clock_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ------------------------------------------------------------------ arithmetic */

#define BURST 0.004 /* seconds: long compared with the start of a parallel region, short compared with a time slice */

typedef struct {
    float (*run)(size_t rounds, double *flop);
    size_t rounds;
    double flop[MOM_MAX_THREADS]; /* per task */
    float sum[MOM_MAX_THREADS];   /* results, kept so that the compiler cannot drop the work */
} peak_job;

static void peak_task(void *context, size_t task, int thread) {
    peak_job *job = context;
    (void)thread;
    job->sum[task] = job->run(job->rounds, &job->flop[task]);
}

/* Operations per second of one burst; *seconds is how long it took. */
static double burst(peak_job *job, int threads, double *seconds) {
    const double started = mom_clock_seconds();
    mom_parallel_run(threads, (size_t)threads, peak_task, job);
    *seconds = mom_clock_seconds() - started;
    double flop = 0.0;
    for (int i = 0; i < threads; i++)
        flop += job->flop[i];
    return *seconds > 0.0 ? flop / *seconds : 0.0;
}

double mom_yardstick_peak(const mom_exec *x, int bf16, double seconds) {
    peak_job job = {.run = bf16 ? x->k->yardsticks.peak_bf16 : x->k->yardsticks.peak_f32, .rounds = 1000};
    double took, best = 0.0;
    while (burst(&job, x->threads, &took), took < BURST)
        job.rounds *= 2;
    const double end = mom_clock_seconds() + seconds;
    do {
        const double rate = burst(&job, x->threads, &took);
        best = rate > best ? rate : best;
    } while (mom_clock_seconds() < end);
    return best;
}

/* ------------------------------------------------------------------ memory */

#define LINE ((size_t)16) /* floats */

typedef struct {
    const mom_kernels *k;
    void (*triad)(float *out, const float *a, const float *b, float factor, size_t n);
    float *out, *a, *b;
    size_t lines, tasks;
    float sum[MOM_MAX_THREADS];
} memory_job;

static void fill_task(void *context, size_t task, int thread) {
    memory_job *job = context;
    size_t begin, end;
    (void)thread;
    mom_range(job->lines, job->tasks, task, &begin, &end);
    for (size_t i = begin * LINE; i < end * LINE; i++) {
        job->out[i] = 0.0f;
        job->a[i] = 1.0f;
        job->b[i] = 2.0f;
    }
}

static void triad_task(void *context, size_t task, int thread) {
    memory_job *job = context;
    size_t begin, end;
    (void)thread;
    mom_range(job->lines, job->tasks, task, &begin, &end);
    begin *= LINE;
    job->triad(job->out + begin, job->a + begin, job->b + begin, 0.5f, end * LINE - begin);
}

static void read_task(void *context, size_t task, int thread) {
    memory_job *job = context;
    size_t begin, end;
    (void)thread;
    mom_range(job->lines, job->tasks, task, &begin, &end);
    job->sum[task] = job->k->yardsticks.read_sum(job->a + begin * LINE, (end - begin) * LINE);
}

static double best_rate(memory_job *job, mom_task run, double bytes, size_t repeats) {
    double best = 0.0;
    for (size_t i = 0; i < repeats; i++) {
        const double started = mom_clock_seconds();
        mom_parallel_run((int)job->tasks, job->tasks, run, job);
        const double took = mom_clock_seconds() - started, rate = took > 0.0 ? bytes / took : 0.0;
        best = rate > best ? rate : best;
    }
    return best;
}

mom_status mom_yardstick_bandwidth(const mom_exec *x, mom_bandwidth *best, size_t floats, size_t repeats,
                                 mom_error *err) {
    memory_job job = {.k = x->k, .lines = mom_div_up(floats, LINE), .tasks = (size_t)x->threads};
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t n = job.lines * LINE;
    MOM_ARENA_NEW(job.out, x->workspace, n, err);
    MOM_ARENA_NEW(job.a, x->workspace, n, err);
    MOM_ARENA_NEW(job.b, x->workspace, n, err);
    mom_parallel_for(x, job.tasks, fill_task, &job);
    job.triad = x->k->yardsticks.triad;
    best->triad = best_rate(&job, triad_task, 12.0 * (double)n, repeats);
    job.triad = x->k->yardsticks.triad_stream;
    best->stream = best_rate(&job, triad_task, 12.0 * (double)n, repeats);
    best->read = best_rate(&job, read_task, 4.0 * (double)n, repeats);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
