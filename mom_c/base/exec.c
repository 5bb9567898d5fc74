#include "base/exec.h"

#include <string.h>

#include "base/sizes.h"

mom_status mom_check_stop(const mom_exec *x, mom_error *err) {
    if (!x->stop || x->dry_run || !x->stop())
        return MOM_OK;
    return mom_error_set(err, MOM_ERR_STOPPED, "stopped");
}

void mom_parallel_for(const mom_exec *x, size_t tasks, mom_task run, void *context) {
    if (!x->dry_run)
        mom_parallel_run(x->threads, tasks, run, context);
}

void mom_parallel_for_in_order(const mom_exec *x, size_t tasks, mom_task run, void *context) {
    if (!x->dry_run)
        mom_parallel_run_in_order(x->threads, tasks, run, context);
}

typedef struct {
    size_t n, most;
    mom_rows_task run;
    const void *context;
} rows_loop;

static void run_rows(void *context, size_t task, int thread) {
    const rows_loop *loop = context;
    (void)thread;
    loop->run(loop->context, task * loop->most, mom_min(loop->n, (task + 1) * loop->most));
}

void mom_parallel_rows(const mom_exec *x, size_t n, size_t most, mom_rows_task run, const void *context) {
    rows_loop loop = {n, most, run, context};
    mom_parallel_for(x, mom_div_up(n, most), run_rows, &loop);
}

#define PART ((size_t)128 << 10) /* bytes of a task; one task runs without the other threads */

typedef struct {
    unsigned char *out;
    const unsigned char *from;
    size_t out_stride, from_stride, bytes; /* of rows */
} bytes_job;

static void zero_part(const void *context, size_t begin, size_t end) {
    const bytes_job *job = context;
    memset(job->out + begin, 0, end - begin);
}

void mom_zero(const mom_exec *x, void *out, size_t bytes) {
    const bytes_job job = {.out = out};
    mom_parallel_rows(x, bytes, PART, zero_part, &job);
}

static void copy_part(const void *context, size_t begin, size_t end) {
    const bytes_job *job = context;
    memcpy(job->out + begin, job->from + begin, end - begin);
}

void mom_copy(const mom_exec *x, void *out, const void *from, size_t bytes) {
    const bytes_job job = {.out = out, .from = from};
    mom_parallel_rows(x, bytes, PART, copy_part, &job);
}

static void copy_rows(const void *context, size_t begin, size_t end) {
    const bytes_job *job = context;
    for (size_t i = begin; i < end; i++)
        memcpy(job->out + i * job->out_stride, job->from + i * job->from_stride, job->bytes);
}

void mom_copy_rows(const mom_exec *x, void *out, size_t out_stride, const void *from, size_t from_stride, size_t rows,
                   size_t bytes) {
    const bytes_job job = {out, from, out_stride, from_stride, bytes};
    mom_parallel_rows(x, rows, mom_max(1, PART / mom_max(1, bytes)), copy_rows, &job);
}
