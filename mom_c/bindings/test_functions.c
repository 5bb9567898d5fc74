/* Functions that only tests and benchmarks call: yardsticks of the machine, memory statistics, single kernels. */
#include "bindings/operators.h"

#include <string.h>

#include "base/cpu.h"
#include "base/parallel.h"
#include "bindings/call.h"
#include "bindings/decoder_type.h"
#include "bindings/errors.h"
#include "bindings/network_config.h"
#include "ops/yardsticks.h"

/* ------------------------------------------------------------------ what the machine can do */

#define MOST_SECONDS 60.0
#define MOST_BYTES ((Py_ssize_t)1 << 40)
#define MOST_REPEATS 10000

static PyObject *peak_gflops(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *dtype;
    Py_ssize_t threads;
    double seconds;
    if (!PyArg_ParseTuple(args, "snd:peak_gflops", &dtype, &threads, &seconds) || mom_check_threads(threads, "threads") < 0)
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
    rate = mom_yardstick_peak(&exec, bf16, seconds);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(1e-9 * rate);
}

static PyObject *memory_bandwidth(PyObject *module, PyObject *args) {
    Py_ssize_t bytes, threads, repeats;
    if (!PyArg_ParseTuple(args, "nnn:memory_bandwidth", &bytes, &threads, &repeats) ||
        mom_check_threads(threads, "threads") < 0)
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
    status = mom_yardstick_bandwidth(&exec, &best, (size_t)bytes / sizeof(float), (size_t)repeats, &err);
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

/* ------------------------------------------------------------------ CPUs and configuration */

static PyObject *quota_cpus(PyObject *Py_UNUSED(module), PyObject *limit) {
    const char *text = PyUnicode_AsUTF8(limit);
    return text ? PyLong_FromLong(mom_quota_cpus(text)) : NULL;
}

static PyObject *cgroup_cpus(PyObject *Py_UNUSED(module), PyObject *root) {
    const char *text = PyUnicode_AsUTF8(root);
    return text ? PyLong_FromLong(mom_cgroup_cpus(text)) : NULL;
}


static PyObject *config_fields(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) { return mom_config_fields(); }

/* ------------------------------------------------------------------ kernels */

static PyObject *kernel_map(PyObject *module, PyObject *args) {
    const char *name;
    PyObject *inp_o;
    if (!PyArg_ParseTuple(args, "sO:kernel_map", &name, &inp_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_kernels *k = call.exec.k;
    const struct {
        const char *name;
        void (*run)(float *, const float *, size_t);
    } kernels[] = {{"exp", k->vec.exp}, {"tanh", k->vec.tanh}, {"gelu_forward", k->vec.gelu_forward}};
    void (*run)(float *, const float *, size_t) = NULL;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (strcmp(kernels[i].name, name) == 0)
            run = kernels[i].run;
    if (!run)
        mom_call_fail(&call, PyExc_ValueError, "name: '%s', expected exp, tanh or gelu_forward", name);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "N");
    float *out = mom_new_f32(&call, "N");
    MOM_RUN(&call, run(out, inp, mom_size(&call, 'N')));
    return mom_call_end(&call);
}

static PyObject *kernel_reduce(PyObject *module, PyObject *args) {
    const char *name;
    PyObject *a_o, *b_o;
    if (!PyArg_ParseTuple(args, "sOO:kernel_reduce", &name, &a_o, &b_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_kernels *k = call.exec.k;
    const float *a = mom_arg_f32(&call, "a", a_o, "N"), *b = mom_arg_optional_f32(&call, "b", b_o, "N");
    const size_t n = mom_size(&call, 'N');
    if (strcmp(name, "sum") == 0)
        mom_new_number(&call, call.failed ? 0.0 : (double)k->vec.sum(a, n));
    else if (strcmp(name, "max") == 0)
        mom_new_number(&call, call.failed ? 0.0 : (double)k->vec.max(a, n));
    else if (strcmp(name, "sum_squares") == 0)
        mom_new_number(&call, call.failed ? 0.0 : k->vec.sum_squares(a, n));
    else if (strcmp(name, "dot") == 0 && b)
        mom_new_number(&call, (double)k->vec.dot(a, b, n));
    else
        mom_call_fail(&call, PyExc_ValueError, "name: '%s', expected sum, max, sum_squares or dot with b", name);
    return mom_call_end(&call);
}

static PyObject *kernel_exp_sum(PyObject *module, PyObject *args) {
    PyObject *inp_o;
    float factor, offset, total = 0.0f;
    if (!PyArg_ParseTuple(args, "Off:kernel_exp_sum", &inp_o, &factor, &offset))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "N");
    float *out = mom_new_f32(&call, "N");
    MOM_RUN(&call, total = call.exec.k->vec.exp_sum(out, inp, factor, offset, mom_size(&call, 'N')));
    mom_new_number(&call, (double)total);
    return mom_call_end(&call);
}

static PyObject *gemv(PyObject *module, PyObject *args) {
    PyObject *x_o, *weight_o, *bias_o;
    const char *name;
    int out_in, gelu;
    mom_gemv_format format;
    if (!PyArg_ParseTuple(args, "OOOpsp:gemv", &x_o, &weight_o, &bias_o, &out_in, &name, &gelu) ||
        mom_read_weight_format(name, &format) < 0)
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *x = mom_arg_f32(&call, "x", x_o, "N I");
    const float *weight = mom_arg_f32(&call, "weight", weight_o, out_in ? "O I" : "I O");
    const float *bias = mom_arg_optional_f32(&call, "bias", bias_o, "O");
    float *out = mom_new_f32(&call, "N O");
    const size_t k = mom_size(&call, 'I'), n = mom_size(&call, 'O');
    const mom_weight_layout layout = out_in ? MOM_WEIGHT_OUT_IN : MOM_WEIGHT_IN_OUT;
    mom_gemv_matrix matrix = {MOM_GEMV_F32, layout, weight, NULL, k, n};
    void *packed = NULL;
    if (!call.failed && format != MOM_GEMV_F32)
        packed = mom_call_alloc(&call, mom_gemv_packed_bytes(format, k, n), 1);
    const mom_gemv product = {.out = out, .x = x, .matrix = &matrix, .bias = bias, .rows = mom_size(&call, 'N'),
                              .gelu = gelu};
    MOM_RUN(&call, if (packed) mom_gemv_pack(&call.exec, &matrix, packed, format, weight, layout, k, n);
            call.status = mom_gemv_run(&call.exec, &product, 1, &call.error));
    return mom_call_end(&call);
}

static PyMethodDef functions[] = {
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
    {"quota_cpus", quota_cpus, METH_O, "quota_cpus($module, limit, /)\n--\n\nCPUs of 'QUOTA PERIOD'; 0: no limit."},
    {"cgroup_cpus", cgroup_cpus, METH_O,
     "cgroup_cpus($module, root, /)\n--\n\nCPUs that control groups grant, read below root; 0: no limit."},
    {"config_fields", config_fields, METH_NOARGS, "config_fields($module, /)\n--\n\nKeys of Network's configuration."},
    {"kernel_map", kernel_map, METH_VARARGS, "kernel_map($module, name, inp, /)\n--\n\nAn element-wise kernel."},
    {"kernel_reduce", kernel_reduce, METH_VARARGS, "kernel_reduce($module, name, a, b, /)\n--\n\nA reduction kernel."},
    {"kernel_exp_sum", kernel_exp_sum, METH_VARARGS,
     "kernel_exp_sum($module, inp, factor, offset, /)\n--\n\nexp(inp * factor - offset), its sum"},
    {"gemv", gemv, METH_VARARGS,
     "gemv($module, x, weight, bias, out_in, weights, gelu, /)\n--\n\nProduct of a few rows, the matrix read once."},
    {NULL, NULL, 0, NULL}};

int mom_add_test_functions(PyObject *module) { return PyModule_AddFunctions(module, functions); }
