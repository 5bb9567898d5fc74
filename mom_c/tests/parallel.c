/* Loops over tasks: every task runs exactly once, and tasks that are started in order may wait for earlier ones. */
#include "tests/check.h"

#define MOST_TASKS 1000

typedef struct {
    atomic_size_t waiting[MOST_TASKS]; /* 1 until the task is done */
    atomic_size_t runs[MOST_TASKS];
    atomic_int wrong_threads;
    int threads, in_order;
} loop_counts;

static void count_run(void *context, size_t task, int thread) {
    loop_counts *counts = context;
    if (thread < 0 || thread >= counts->threads)
        atomic_fetch_add(&counts->wrong_threads, 1);
    if (counts->in_order && task)
        mom_wait_until_zero(&counts->waiting[task - 1]);
    atomic_fetch_add(&counts->runs[task], 1);
    atomic_store(&counts->waiting[task], 0);
}

static void check_loop(int threads, size_t tasks, int in_order) {
    static loop_counts counts;
    for (size_t i = 0; i < MOST_TASKS; i++) {
        atomic_store(&counts.waiting[i], 1);
        atomic_store(&counts.runs[i], 0);
    }
    counts.threads = threads;
    counts.in_order = in_order;
    (in_order ? mom_parallel_run_in_order : mom_parallel_run)(threads, tasks, count_run, &counts);
    for (size_t i = 0; i < MOST_TASKS; i++)
        check_that(atomic_load(&counts.runs[i]) == (i < tasks), "task %zu of %zu on %d threads, in order %d: %zu runs",
                   i, tasks, threads, in_order, atomic_load(&counts.runs[i]));
    check_that(!atomic_load(&counts.wrong_threads), "a thread that is none of %d", threads);
}

void check_parallel(void) {
    const size_t tasks[] = {0, 1, 2, 3, 7, MOST_TASKS};
    for (int threads = 1; threads <= 5; threads++)
        for (size_t i = 0; i < CHECK_LENGTH(tasks); i++)
            for (int in_order = 0; in_order < 2; in_order++)
                check_loop(threads, tasks[i], in_order);
}
