/* _core: the module, its state, and what concerns the whole process (level, threads, memory statistics). */
#define MOM_IMPORT_NUMPY
#include "bindings/numpy_api.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/parallel.h"
#include "bindings/decoder_type.h"
#include "bindings/errors.h"
#include "bindings/model_type.h"
#include "bindings/op_functions.h"
#include "bindings/optimizer_type.h"
#include "bindings/plan_type.h"
#include "bindings/state.h"
#include "ops/machine.h"

/* ------------------------------------------------------------------ level and threads of the process */

/* Written with the GIL held only. */
static const mom_kernels *active_kernels;
static int active_threads;
static pid_t home_process; /* a child made by fork has none of the OpenMP run time's threads */

static int is_forked(void) { return home_process != getpid() && mom_have_openmp(); }

mom_exec mom_current_exec(mom_arena *workspace) {
    return (mom_exec){active_kernels, is_forked() ? 1 : active_threads, workspace, MOM_F32, MOM_COMPUTE};
}

/* OMP_NUM_THREADS, else the CPUs the process may use. */
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

/* Finds a level's kernels; the exception lists the choices. `what` names the setting. */
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

/* -1 and an exception if so many threads cannot be had; `what` names the argument. */
static int check_threads(Py_ssize_t n, const char *what) {
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
    if ((n == -1 && PyErr_Occurred()) || check_threads(n, "n") < 0)
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
    return Py_BuildValue("{s:s, s:N, s:s, s:s, s:N, s:i, s:i, s:{s:N, s:N, s:N, s:N}, s:s}", "level", exec.k->name,
                         "levels", level_names(), "gemm", exec.k->gemm.name, "gemm_bf16", exec.k->gemm.bf16_name,
                         "openmp", PyBool_FromLong(mom_have_openmp()),
                         "threads", exec.threads, "cpus", mom_available_cpus(), "features", "avx2",
                         PyBool_FromLong(f.avx2), "avx512", PyBool_FromLong(f.avx512), "avx512bf16",
                         PyBool_FromLong(f.avx512bf16), "amx", PyBool_FromLong(f.amx), "compiler",
#if defined(__clang__)
                         __VERSION__
#elif defined(__GNUC__)
                         "GCC " __VERSION__
#else
                         "unknown"
#endif
    );
}

/* ------------------------------------------------------------------ what the machine can do */

#define MOST_SECONDS 60.0
#define MOST_BYTES ((Py_ssize_t)1 << 40)
#define MOST_REPEATS 10000

static PyObject *peak_gflops(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *dtype;
    Py_ssize_t threads;
    double seconds;
    if (!PyArg_ParseTuple(args, "snd:peak_gflops", &dtype, &threads, &seconds) || check_threads(threads, "threads") < 0)
        return NULL;
    const int bf16 = strcmp(dtype, "bfloat16") == 0;
    if (!bf16 && strcmp(dtype, "float32") != 0)
        return PyErr_Format(PyExc_ValueError, "dtype: '%s', expected 'float32' or 'bfloat16'", dtype);
    if (!(seconds >= 0.0 && seconds <= MOST_SECONDS)) {
        PyErr_SetString(PyExc_ValueError, "seconds: expected 0 to 60");
        return NULL;
    }
    mom_exec exec = mom_current_exec(NULL);
    exec.threads = mom_have_openmp() ? (int)threads : 1;
    double rate;
    Py_BEGIN_ALLOW_THREADS
    rate = mom_machine_peak(&exec, bf16, seconds);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(1e-9 * rate);
}

static PyObject *memory_bandwidth(PyObject *module, PyObject *args) {
    Py_ssize_t bytes, threads, repeats;
    if (!PyArg_ParseTuple(args, "nnn:memory_bandwidth", &bytes, &threads, &repeats) ||
        check_threads(threads, "threads") < 0)
        return NULL;
    if (bytes < 4 || bytes > MOST_BYTES || repeats < 1 || repeats > MOST_REPEATS) {
        PyErr_Format(PyExc_ValueError, "bytes, repeats: %zd, %zd, expected 4 to 2**40 and 1 to %d", bytes, repeats,
                     MOST_REPEATS);
        return NULL;
    }
    mom_arena workspace;
    mom_arena_init(&workspace, "arrays to measure memory with");
    mom_exec exec = mom_current_exec(&workspace);
    exec.threads = mom_have_openmp() ? (int)threads : 1;
    mom_bandwidth best = {0};
    mom_error err;
    mom_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mom_machine_bandwidth(&exec, &best, (size_t)bytes / sizeof(float), (size_t)repeats, &err);
    mom_arena_free(&workspace);
    Py_END_ALLOW_THREADS
    if (status != MOM_OK)
        return mom_raise(module, &err);
    return Py_BuildValue("(ddd)", 1e-9 * best.triad, 1e-9 * best.stream, 1e-9 * best.read);
}

/* ------------------------------------------------------------------ memory */

static PyObject *memory_fail_at(PyObject *Py_UNUSED(module), PyObject *arg) {
    const long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    mom_memory_fail_at(n);
    Py_RETURN_NONE;
}

static PyObject *memory_live_bytes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromSize_t(mom_memory_live_bytes());
}

static PyObject *memory_peak_bytes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromSize_t(mom_memory_peak_bytes());
}

static PyObject *memory_reset_peak(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
    mom_memory_reset_peak();
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ the module */

static PyMethodDef functions[] = {
    {"set_cpu_level", set_cpu_level, METH_O, "set_cpu_level($module, level, /)\n--\n\nReturns the level before."},
    {"set_num_threads", set_num_threads, METH_O, "set_num_threads($module, n, /)\n--\n\nThreads of later calls."},
    {"get_num_threads", get_num_threads, METH_NOARGS, "get_num_threads($module, /)\n--\n\nThreads of a call made now."},
    {"cpu_info", cpu_info, METH_NOARGS, "cpu_info($module, /)\n--\n\nLevel, kernels, threads and compiler."},
    {"peak_gflops", peak_gflops, METH_VARARGS,
     "peak_gflops($module, dtype, threads, seconds, /)\n--\n\nMost GFLOP/s of 'float32' or 'bfloat16' products."},
    {"memory_bandwidth", memory_bandwidth, METH_VARARGS,
     "memory_bandwidth($module, bytes, threads, repeats, /)\n--\n\nGB/s: triad, triad past the caches, read."},
    {"memory_fail_at", memory_fail_at, METH_O,
     "memory_fail_at($module, n, /)\n--\n\nThe n-th allocation of the core from now fails once; 0: none."},
    {"memory_live_bytes", memory_live_bytes, METH_NOARGS, "memory_live_bytes($module, /)\n--\n\nBytes the core holds."},
    {"memory_peak_bytes", memory_peak_bytes, METH_NOARGS,
     "memory_peak_bytes($module, /)\n--\n\nMost bytes the core has held since the start or memory_reset_peak."},
    {"memory_reset_peak", memory_reset_peak, METH_NOARGS,
     "memory_reset_peak($module, /)\n--\n\nStart a new peak from the bytes held now."},
    {NULL, NULL, 0, NULL}};

static int module_exec(PyObject *module) {
    import_array1(-1);
    mom_init_exceptions(mom_get_state(module));
    if (init_process() < 0 || mom_add_plan_type(module) < 0 || mom_add_op_functions(module) < 0 ||
        mom_add_routing_functions(module) < 0 || mom_add_network(module) < 0 || mom_add_optimizer(module) < 0 ||
        mom_add_decoder(module) < 0)
        return -1;
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    const mom_state *state = mom_get_state(module);
    Py_VISIT(state->network_type);
    Py_VISIT(state->plan_type);
    for (int i = 0; i <= MOM_ERR_STATE; i++)
        Py_VISIT(state->exceptions[i]);
    return 0;
}

static int module_clear(PyObject *module) {
    mom_state *state = mom_get_state(module);
    Py_CLEAR(state->network_type);
    Py_CLEAR(state->plan_type);
    for (int i = 0; i <= MOM_ERR_STATE; i++)
        Py_CLEAR(state->exceptions[i]);
    return 0;
}

static void module_free(void *module) { module_clear(module); }

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
                                          {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
                                          {0, NULL}};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mom._core",
    .m_doc = "The C core of mom; use it through the package's Python modules.",
    .m_size = sizeof(mom_state),
    .m_methods = functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&module_def); }
