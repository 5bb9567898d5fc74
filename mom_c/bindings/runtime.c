#include "bindings/runtime.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/parallel.h"
#include "bindings/signals.h"

/* Only written while the GIL is held. */
static const mom_kernels *active_kernels;
static int active_threads;
static pid_t home_process; /* to notice a fork: the child has none of the OpenMP runtime's threads */

static int is_forked(void) { return home_process != getpid() && mom_have_openmp(); }

mom_exec mom_current_exec(mom_arena *workspace) {
    return (mom_exec){.k = active_kernels, .threads = is_forked() ? 1 : active_threads, .workspace = workspace,
                      .precision = MOM_F32, .dry_run = MOM_COMPUTE, .stop = mom_stop_on_signals()};
}

/* OMP_NUM_THREADS if it is set, otherwise the number of CPUs that the process may use. */
static int default_threads(void) {
    const char *text = getenv("OMP_NUM_THREADS");
    const long asked = text ? strtol(text, NULL, 10) : 0; /* the first number of a list */
    const long n = asked > 0 ? asked : mom_available_cpus();
    return n < MOM_MAX_THREADS ? (int)n : MOM_MAX_THREADS;
}

static PyObject *level_names(void) {
    PyObject *list = PyList_New(0); /* new reference */
    for (const char *const *name = mom_kernels_available(); list && *name; name++) {
        PyObject *text = PyUnicode_FromString(*name); /* new reference */
        if (!text || PyList_Append(list, text) < 0)
            Py_CLEAR(list);
        Py_XDECREF(text);
    }
    return list;
}

/* Finds a level's kernels. On failure the exception lists the choices; `what` names the setting in its message. */
static const mom_kernels *find_level(const char *name, const char *what, PyObject *exception) {
    const mom_kernels *kernels = mom_kernels_get(name);
    if (!kernels) {
        PyObject *names = level_names(); /* new reference */
        if (names)
            PyErr_Format(exception, "%s: '%s', expected one of this machine's levels %R", what, name, names);
        Py_XDECREF(names);
    }
    return kernels;
}

static int init_process(void) {
    if (active_kernels)
        return 0;
    const char *asked = getenv("MOM_CPU");
    const mom_kernels *kernels =
        asked && *asked ? find_level(asked, "MOM_CPU", PyExc_ImportError) : mom_kernels_best();
    if (!kernels)
        return -1;
    active_threads = default_threads();
    home_process = getpid();
    active_kernels = kernels;
    return 0;
}

static PyObject *set_cpu_level(PyObject *Py_UNUSED(module), PyObject *arg) {
    if (!PyUnicode_Check(arg))
        return PyErr_Format(PyExc_TypeError, "level: expected str, got %s", Py_TYPE(arg)->tp_name);
    const char *name = PyUnicode_AsUTF8(arg);
    const mom_kernels *kernels = name ? find_level(name, "level", PyExc_ValueError) : NULL;
    if (!kernels)
        return NULL;
    const char *previous = active_kernels->name;
    active_kernels = kernels;
    return PyUnicode_FromString(previous);
}

int mom_check_threads(Py_ssize_t n, const char *what) {
    if (n < 1 || n > MOM_MAX_THREADS) {
        PyErr_Format(PyExc_ValueError, "%s: %zd threads, expected 1 to %d", what, n, MOM_MAX_THREADS);
        return -1;
    }
    if (n > 1 && is_forked()) {
        PyErr_Format(PyExc_RuntimeError,
                     "%s: %zd threads in a forked process, expected 1 (threads do not survive a fork; start "
                     "processes with 'spawn' or 'forkserver')", what, n);
        return -1;
    }
    return 0;
}

static PyObject *set_num_threads(PyObject *Py_UNUSED(module), PyObject *arg) {
    const Py_ssize_t n = PyNumber_AsSsize_t(arg, PyExc_ValueError);
    if ((n == -1 && PyErr_Occurred()) || mom_check_threads(n, "n") < 0)
        return NULL;
    active_threads = (int)n;
    Py_RETURN_NONE;
}

static PyObject *get_num_threads(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromLong(mom_current_exec(NULL).threads);
}

static PyObject *cpu_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
    const mom_cpu_features f = mom_cpu_detect();
    const mom_exec exec = mom_current_exec(NULL);
    return Py_BuildValue("{s:s, s:N, s:s, s:s, s:N, s:i, s:i, s:{s:N, s:N, s:N, s:N, s:N, s:N}, s:s}", "level", exec.k->name,
                         "levels", level_names(), "gemm", exec.k->gemm.name, "gemm_bf16", exec.k->gemm.bf16_name,
                         "openmp", PyBool_FromLong(mom_have_openmp()),
                         "threads", exec.threads, "cpus", mom_available_cpus(), "features", "avx2",
                         PyBool_FromLong(f.avx2), "avx512", PyBool_FromLong(f.avx512), "avx512bf16",
                         PyBool_FromLong(f.avx512bf16), "amx", PyBool_FromLong(f.amx), "neon", PyBool_FromLong(f.neon),
                         "neonbf16", PyBool_FromLong(f.neonbf16), "compiler",
#if defined(__clang__)
                         __VERSION__
#elif defined(__GNUC__)
                         "GCC " __VERSION__
#else
                         "unknown"
#endif
    );
}

static PyObject *has_signal_handler(PyObject *Py_UNUSED(module), PyObject *number) {
    const long signal = PyLong_AsLong(number);
    return signal == -1 && PyErr_Occurred() ? NULL : PyBool_FromLong(mom_has_signal_handler((int)signal));
}

static PyMethodDef functions[] = {
    {"set_cpu_level", set_cpu_level, METH_O, "set_cpu_level($module, level, /)\n--\n\nReturns the level before."},
    {"set_num_threads", set_num_threads, METH_O, "set_num_threads($module, n, /)\n--\n\nThreads of later calls."},
    {"get_num_threads", get_num_threads, METH_NOARGS, "get_num_threads($module, /)\n--\n\nThreads of a call made now."},
    {"cpu_info", cpu_info, METH_NOARGS, "cpu_info($module, /)\n--\n\nLevel, kernels, threads and compiler."},
    {"has_signal_handler", has_signal_handler, METH_O,
     "has_signal_handler($module, number, /)\n--\n\nWhether Python or another library handles this signal."},
    {NULL, NULL, 0, NULL}};

int mom_add_runtime(PyObject *module) { return init_process() < 0 ? -1 : PyModule_AddFunctions(module, functions); }
