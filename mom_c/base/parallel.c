#include "base/parallel.h"

#include "base/memory.h"

#include <sched.h>
#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#endif

/* While tasks run, denormal numbers count as zero. They cost a hundred times as much as normal numbers and do not
 * matter here: they occur in the tails of softmaxes and in the moments of rows that have long been unused. The caller's
 * mode is restored afterwards. `rest` tells the processor that a thread only waits. */
#if defined(__SSE2__)
#include <immintrin.h>
#define FLUSH_AND_ZERO 0x8040u /* of MXCSR: results, and inputs */
static uint64_t float_mode(void) { return _mm_getcsr(); }
static void set_float_mode(uint64_t mode) { _mm_setcsr((unsigned)mode); }
static void rest(void) { _mm_pause(); }
#elif defined(__aarch64__)
#define FLUSH_AND_ZERO (1u << 24) /* of FPCR: FZ, which counts for results and inputs */
static uint64_t float_mode(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void set_float_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
static void rest(void) { __asm__ volatile("yield"); }
#else
#define FLUSH_AND_ZERO 0u
static uint64_t float_mode(void) { return 0; }
static void set_float_mode(uint64_t mode) { (void)mode; }
static void rest(void) {}
#endif

/* Tasks [next, end). Each counter has a cache line of its own, so that threads do not wait for each other's. */
typedef struct {
    _Alignas(MOM_ALIGNMENT) atomic_size_t next;
    size_t end;
} task_range;

typedef struct {
    task_range ranges[MOM_MAX_THREADS];
    int count; /* of ranges: one per thread, or one for all */
    mom_task run;
    void *context;
} task_loop;

static void init_loop(task_loop *loop, int ranges, size_t tasks, mom_task run, void *context) {
    loop->count = ranges;
    loop->run = run;
    loop->context = context;
    for (int i = 0; i < ranges; i++) {
        size_t begin;
        mom_range(tasks, (size_t)ranges, (size_t)i, &begin, &loop->ranges[i].end);
        atomic_init(&loop->ranges[i].next, begin);
    }
}

/* What one thread does: first its own range, then the others. */
static void run_tasks(task_loop *loop, int thread) {
    const uint64_t mode = float_mode();
    set_float_mode(mode | FLUSH_AND_ZERO);
    for (int i = 0; i < loop->count; i++) {
        task_range *range = &loop->ranges[(thread + i) % loop->count];
        size_t task;
        while ((task = atomic_fetch_add_explicit(&range->next, 1, memory_order_relaxed)) < range->end)
            loop->run(loop->context, task, thread);
    }
    set_float_mode(mode);
}

#ifdef _OPENMP
static void *pass(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* How many threads can run at the same time, at most `threads`. */
static int try_threads(int threads) {
    pthread_t made[MOM_MAX_THREADS];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    int count = 0;
    pthread_mutex_lock(&gate);
    while (count < threads - 1 && pthread_create(&made[count], NULL, pass, &gate) == 0)
        count++;
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < count; i++)
        pthread_join(made[i], NULL);
    return count + 1;
}

/* OpenMP ends the process if it cannot create a thread. So a larger team than before is tried out first. Every thread
 * that calls has a team of its own. */
static int team_size(int threads) {
    static _Thread_local int tried, possible;
    if (threads > tried) {
        tried = threads;
        possible = try_threads(threads);
    }
    return threads < possible ? threads : possible;
}
#endif

static void run_loop(int threads, int in_order, size_t tasks, mom_task run, void *context) {
    task_loop loop;
#ifdef _OPENMP
    if (threads > 1 && tasks > 1) { /* always the same team: libgomp ends threads that a smaller team does not need */
        const int team = team_size(threads);
        init_loop(&loop, in_order ? 1 : team, tasks, run, context);
#pragma omp parallel num_threads(team)
        run_tasks(&loop, omp_get_thread_num());
        return;
    }
#else
    (void)threads, (void)in_order;
#endif
    init_loop(&loop, 1, tasks, run, context);
    run_tasks(&loop, 0);
}

void mom_parallel_run(int threads, size_t tasks, mom_task run, void *context) {
    run_loop(threads, 0, tasks, run, context);
}

void mom_parallel_run_in_order(int threads, size_t tasks, mom_task run, void *context) {
    run_loop(threads, 1, tasks, run, context);
}

#define SPINS 2000 /* some microseconds */

void mom_wait_until_zero(const atomic_size_t *count) {
    for (unsigned spins = 0; atomic_load_explicit(count, memory_order_acquire); spins++) {
        rest();
        if (spins >= SPINS)
            sched_yield();
    }
}

void mom_range(size_t n, size_t parts, size_t p, size_t *begin, size_t *end) {
    const size_t base = n / parts, extra = n % parts;
    *begin = p * base + (p < extra ? p : extra);
    *end = *begin + base + (p < extra ? 1 : 0);
}

int mom_have_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
