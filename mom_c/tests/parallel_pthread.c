/* base/parallel.c with POSIX threads in place of OpenMP, for tests under ThreadSanitizer: it follows the synchronisation of
 * POSIX threads, but not that of OpenMP's run-time library, and would report races where there are none. */
#define mom_parallel_run mom_parallel_run_replaced
#define mom_parallel_run_in_order mom_parallel_run_in_order_replaced
#include "base/parallel.c"
#undef mom_parallel_run
#undef mom_parallel_run_in_order

#include <pthread.h>

void mom_parallel_run(int threads, size_t tasks, mom_task run, void *context);
void mom_parallel_run_in_order(int threads, size_t tasks, mom_task run, void *context);

typedef struct {
    task_loop *loop;
    int thread;
} member;

static void *run_member(void *argument) {
    const member *m = argument;
    run_tasks(m->loop, m->thread);
    return NULL;
}

/* The caller is thread 0. If the system refuses a thread, the others do its work. */
static void run_on_threads(int threads, int ranges, size_t tasks, mom_task run, void *context) {
    task_loop loop;
    pthread_t handles[MOM_MAX_THREADS];
    member members[MOM_MAX_THREADS];
    int started = 1;
    init_loop(&loop, ranges, tasks, run, context);
    for (; started < threads && tasks > 1; started++) {
        members[started] = (member){&loop, started};
        if (pthread_create(&handles[started], NULL, run_member, &members[started]))
            break;
    }
    run_tasks(&loop, 0);
    for (int i = 1; i < started; i++)
        pthread_join(handles[i], NULL);
}

void mom_parallel_run(int threads, size_t tasks, mom_task run, void *context) {
    run_on_threads(threads, threads, tasks, run, context);
}

void mom_parallel_run_in_order(int threads, size_t tasks, mom_task run, void *context) {
    run_on_threads(threads, 1, tasks, run, context);
}
