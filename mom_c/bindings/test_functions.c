/* Functions that only tests and benchmarks call: yardsticks of the machine, memory statistics, single kernels,
 * sampling. */
#include "bindings/operators.h"

#include <string.h>

#include "base/cpu.h"
#include "base/parallel.h"
#include "bindings/call.h"
#include "bindings/decoder_type.h"
#include "bindings/errors.h"
#include "bindings/network_config.h"
#include "model/sample.h"
#include "ops/yardsticks.h"

/* ------------------------------------------------------------------ what the machine can do */

#define MOST_SECONDS 60.0
#define MOST_BYTES ((size_t)1 << 40)
#define MOST_REPEATS 10000

/* The execution context of a measurement on as many threads as the argument `threads` says. */
static mom_exec measuring_exec(mom_call *call) {
    const size_t threads = mom_arg_size(call, "threads");
    if (!call->failed && mom_check_threads((Py_ssize_t)threads, "threads") < 0)
        call->failed = 1;
    mom_exec exec = call->exec;
    exec.threads = mom_have_openmp() ? (int)threads : 1;
    return exec;
}

static void peak_gflops(mom_call *call) {
    const char *dtype = mom_arg_text(call, "dtype");
    const double seconds = mom_arg_double(call, "seconds");
    const mom_exec exec = measuring_exec(call);
    const int bf16 = dtype && strcmp(dtype, "bfloat16") == 0;
    if (dtype && !bf16 && strcmp(dtype, "float32") != 0)
        mom_call_fail(call, PyExc_ValueError, "dtype: '%s', expected 'float32' or 'bfloat16'", dtype);
    if (!(seconds >= 0.0 && seconds <= MOST_SECONDS))
        mom_call_fail(call, PyExc_ValueError, "seconds: expected 0 to 60");
    double rate = 0.0;
    MOM_RUN(call, rate = mom_yardstick_peak(&exec, bf16, seconds));
    mom_new_number(call, 1e-9 * rate);
}

static void memory_bandwidth(mom_call *call) {
    const size_t bytes = mom_arg_size(call, "bytes"), repeats = mom_arg_size(call, "repeats");
    const mom_exec exec = measuring_exec(call);
    if (bytes < 4 || bytes > MOST_BYTES || repeats < 1 || repeats > MOST_REPEATS)
        mom_call_fail(call, PyExc_ValueError, "bytes, repeats: %zu, %zu, expected 4 to 2**40 and 1 to %d", bytes, repeats,
                      MOST_REPEATS);
    mom_bandwidth best = {0};
    MOM_RUN(call, call->status = mom_yardstick_bandwidth(&exec, &best, bytes / sizeof(float), repeats, &call->error));
    mom_new_number(call, 1e-9 * best.triad);
    mom_new_number(call, 1e-9 * best.stream);
    mom_new_number(call, 1e-9 * best.read);
}

/* ------------------------------------------------------------------ memory */

static PyObject *memory_fail_at(PyObject *Py_UNUSED(module), PyObject *arg) {
    const long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    mom_memory_fail_at(n);
    Py_RETURN_NONE;
}

static PyObject *arena_fail_at(PyObject *Py_UNUSED(module), PyObject *arg) {
    const long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    mom_arena_fail_at(n);
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

static void kernel_map(mom_call *call) {
    const char *name = mom_arg_text(call, "name");
    if (call->failed)
        return;
    const mom_kernels *k = call->exec.k;
    const struct {
        const char *name;
        void (*run)(float *, const float *, size_t);
    } kernels[] = {{"exp", k->vec.exp}, {"tanh", k->vec.tanh}, {"gelu_forward", k->vec.gelu_forward}};
    void (*run)(float *, const float *, size_t) = NULL;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (name && strcmp(kernels[i].name, name) == 0)
            run = kernels[i].run;
    if (!run)
        mom_call_fail(call, PyExc_ValueError, "name: '%s', expected exp, tanh or gelu_forward", name);
    const float *inp = mom_arg_f32(call, "inp", "N");
    float *out = mom_new_f32(call, "N");
    MOM_RUN(call, run(out, inp, mom_size(call, 'N')));
}

static void kernel_reduce(mom_call *call) {
    const char *name = mom_arg_text(call, "name");
    const mom_kernels *k = call->exec.k;
    const float *a = mom_arg_f32(call, "a", "N"), *b = mom_arg_optional_f32(call, "b", "N");
    const size_t n = mom_size(call, 'N');
    if (call->failed)
        return;
    if (strcmp(name, "sum") == 0)
        mom_new_number(call, (double)k->vec.sum(a, n));
    else if (strcmp(name, "max") == 0)
        mom_new_number(call, (double)k->vec.max(a, n));
    else if (strcmp(name, "sum_squares") == 0)
        mom_new_number(call, k->vec.sum_squares(a, n));
    else if (strcmp(name, "dot") == 0 && b)
        mom_new_number(call, (double)k->vec.dot(a, b, n));
    else
        mom_call_fail(call, PyExc_ValueError, "name: '%s', expected sum, max, sum_squares or dot with b", name);
}

static void kernel_exp_sum(mom_call *call) {
    float total = 0.0f;
    const float factor = mom_arg_float(call, "factor");
    const float offset = mom_arg_float(call, "offset");
    const float *inp = mom_arg_f32(call, "inp", "N");
    float *out = mom_new_f32(call, "N");
    MOM_RUN(call, total = call->exec.k->vec.exp_sum(out, inp, factor, offset, mom_size(call, 'N')));
    mom_new_number(call, (double)total);
}

static void gemv(mom_call *call) {
    const int out_in = mom_arg_flag(call, "out_in"), gelu = mom_arg_flag(call, "gelu");
    const char *name = mom_arg_text(call, "weights");
    mom_gemv_format format = MOM_GEMV_F32;
    if (name && mom_read_weight_format(name, &format) < 0)
        call->failed = 1;
    const float *x = mom_arg_f32(call, "x", "N I");
    const float *weight = mom_arg_f32(call, "weight", out_in ? "O I" : "I O");
    const float *bias = mom_arg_optional_f32(call, "bias", "O");
    float *out = mom_new_f32(call, "N O");
    const size_t k = mom_size(call, 'I'), n = mom_size(call, 'O');
    const mom_weight_layout layout = out_in ? MOM_WEIGHT_OUT_IN : MOM_WEIGHT_IN_OUT;
    mom_gemv_matrix matrix = {MOM_GEMV_F32, layout, weight, NULL, k, n};
    void *packed = NULL;
    if (!call->failed && format != MOM_GEMV_F32)
        packed = mom_call_alloc(call, mom_gemv_packed_bytes(format, k, n), 1);
    const mom_gemv product = {.out = out, .x = x, .matrix = &matrix, .bias = bias, .rows = mom_size(call, 'N'),
                              .gelu = gelu};
    MOM_RUN(call, if (packed) mom_gemv_pack(&call->exec, &matrix, packed, format, weight, layout, k, n);
            call->status = mom_gemv_run(&call->exec, &product, 1, &call->error));
}

/* ------------------------------------------------------------------ sampling */

static void sample(mom_call *call) {
    const mom_sampling s = {.temperature = mom_arg_float(call, "temperature"), .top_k = mom_arg_size(call, "top_k"),
                            .top_p = mom_arg_float(call, "top_p"), .seed = mom_arg_bits(call, "seed"),
                            .step = mom_arg_bits(call, "step")};
    if (!(s.temperature >= 0.0f) || !(s.top_p > 0.0f && s.top_p <= 1.0f))
        mom_call_fail(call, PyExc_ValueError, "temperature, top_p: out of range");
    const float *logits = mom_arg_f32(call, "logits", "B V+");
    int32_t *tokens = mom_new_i32(call, "B");
    MOM_RUN(call, call->status = mom_sample(&call->exec, tokens, logits, &s, NULL, mom_size(call, 'B'), mom_size(call, 'V'),
                                            &call->error));
}

static PyMethodDef functions[] = {
    {"memory_fail_at", memory_fail_at, METH_O,
     "memory_fail_at($module, n, /)\n--\n\nThe n-th allocation of the core from now fails once; 0: none."},
    {"arena_fail_at", arena_fail_at, METH_O,
     "arena_fail_at($module, n, /)\n--\n\nThe n-th allocation of the core's arenas from now fails once; 0: none."},
    {"memory_live_bytes", memory_live_bytes, METH_NOARGS, "memory_live_bytes($module, /)\n--\n\nBytes the core holds."},
    {"memory_peak_bytes", memory_peak_bytes, METH_NOARGS,
     "memory_peak_bytes($module, /)\n--\n\nMost bytes the core has held since the start or memory_reset_peak."},
    {"memory_reset_peak", memory_reset_peak, METH_NOARGS,
     "memory_reset_peak($module, /)\n--\n\nStart a new peak from the bytes held now."},
    {"quota_cpus", quota_cpus, METH_O, "quota_cpus($module, limit, /)\n--\n\nCPUs of 'QUOTA PERIOD'; 0: no limit."},
    {"cgroup_cpus", cgroup_cpus, METH_O,
     "cgroup_cpus($module, root, /)\n--\n\nCPUs that control groups grant, read below root; 0: no limit."},
    {"config_fields", config_fields, METH_NOARGS, "config_fields($module, /)\n--\n\nKeys of Network's configuration."},
    {NULL, NULL, 0, NULL}};

static mom_operator operators[] = {
    MOM_OPERATOR(peak_gflops, "dtype, threads, seconds", "Most GFLOP/s of 'float32' or 'bfloat16' products."),
    MOM_OPERATOR(memory_bandwidth, "bytes, threads, repeats", "GB/s: triad, triad past the caches, read."),
    MOM_OPERATOR(kernel_map, "name, inp", "An element-wise kernel."),
    MOM_OPERATOR(kernel_reduce, "name, a, b", "A reduction kernel."),
    MOM_OPERATOR(kernel_exp_sum, "inp, factor, offset", "exp(inp * factor - offset), its sum"),
    MOM_OPERATOR(sample, "logits, temperature, top_k, top_p, seed, step", "Next tokens (B,) from logits (B, V)."),
    MOM_OPERATOR(gemv, "x, weight, bias, out_in, weights, gelu", "Product of a few rows, the matrix read once."),
};

int mom_add_test_functions(PyObject *module) {
    if (mom_add_operators(module, operators, sizeof operators / sizeof *operators) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
