#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* syscall */
#endif
#include "bindings/signals.h"

#include "bindings/numpy_api.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__)
#include <sys/syscall.h>
static int is_main_thread(void) { return getpid() == (pid_t)syscall(SYS_gettid); } /* true after a fork, too */
#elif defined(__APPLE__)
#include <pthread.h>
static int is_main_thread(void) { return pthread_main_np(); }
#else
static int is_main_thread(void) { return 1; } /* elsewhere PyErr_CheckSignals itself does nothing */
#endif

/* Taking the GIL may mean waiting for another thread, so signals are looked for only so often. */
#define INTERVAL 0.02 /* seconds */

/* Called without the GIL, between parts of a computation. Only the main thread calls it. */
static int run_handlers(void) {
    static double last;
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    const double now = (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
    if (now - last < INTERVAL)
        return 0;
    last = now;
    const PyGILState_STATE state = PyGILState_Ensure();
    const int raised = PyErr_CheckSignals() < 0;
    PyGILState_Release(state);
    return raised;
}

int (*mom_stop_on_signals(void))(void) { return is_main_thread() ? run_handlers : NULL; }

#if defined(SIGHUP) /* where there is sigaction */
int mom_has_signal_handler(int number) {
    struct sigaction action;
    return sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN;
}
#else
int mom_has_signal_handler(int number) { return number < 0; }
#endif
