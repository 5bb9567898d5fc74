#include "bindings/ranks.h"

#include "bindings/convert.h"
#include "bindings/errors.h"
#include "bindings/model_type.h"
#include "bindings/runtime.h"
#include "bindings/state.h"
#include "model/shards.h"
#include "ops/add_pieces.h"
#include "ops/elementwise.h"

static PyObject *whole_block(mom_network *network, float *values) {
    const npy_intp dims[1] = {(npy_intp)network->gpt.params.total};
    return mom_view_array(1, dims, NPY_FLOAT32, values, (PyObject *)network);
}

/* The argument as a network (borrowed), or NULL with a TypeError set. */
static mom_network *network_of(PyObject *module, PyObject *argument) {
    if (PyObject_TypeCheck(argument, (PyTypeObject *)mom_get_state(module)->network_type))
        return (mom_network *)argument;
    PyErr_Format(PyExc_TypeError, "network: expected Network, got %s", Py_TYPE(argument)->tp_name);
    return NULL;
}

static PyObject *parameter_block(PyObject *module, PyObject *argument) {
    mom_network *network = network_of(module, argument);
    return network ? whole_block(network, network->gpt.params.values) : NULL;
}

static PyObject *gradient_block(PyObject *module, PyObject *argument) {
    mom_network *network = network_of(module, argument);
    if (!network || mom_network_enter(network) < 0)
        return NULL;
    mom_error err;
    mom_gpt *gpt = &network->gpt;
    const mom_status status = mom_gradients_lend(&gpt->gradients, &gpt->params, &err);
    mom_network_leave(network);
    return status == MOM_OK ? whole_block(network, gpt->gradients.values) : mom_raise(module, &err);
}

static PyObject *take_gradients(PyObject *module, PyObject *args) {
    PyObject *object, *used;
    if (!PyArg_ParseTuple(args, "O!O:take_gradients", mom_get_state(module)->network_type, &object, &used))
        return NULL;
    mom_network *network = (mom_network *)object;
    const npy_intp dims[1] = {(npy_intp)network->gpt.params.count};
    PyArrayObject *array = mom_check_array(used, "used", NPY_UINT8, 1, dims, 0); /* borrowed */
    if (!array || mom_network_enter(network) < 0)
        return NULL;
    mom_gradients_take(&network->gpt.gradients, &network->gpt.params, PyArray_DATA(array));
    mom_network_leave(network);
    Py_RETURN_NONE;
}

static PyObject *shard_bounds(PyObject *module, PyObject *args) {
    PyObject *object;
    Py_ssize_t ranks;
    if (!PyArg_ParseTuple(args, "O!n:shard_bounds", mom_get_state(module)->network_type, &object, &ranks))
        return NULL;
    if (ranks < 1)
        return PyErr_Format(PyExc_ValueError, "ranks: %zd is less than 1", ranks);
    const npy_intp dims[1] = {ranks + 1};
    PyObject *out = PyArray_SimpleNew(1, dims, NPY_INT64); /* new reference */
    for (Py_ssize_t rank = 0; out && rank <= ranks; rank++)
        ((int64_t *)PyArray_DATA((PyArrayObject *)out))[rank] =
            (int64_t)mom_shard_begin(&((mom_network *)object)->gpt.params, (size_t)rank, (size_t)ranks);
    return out;
}

/* Fills `pieces` with the data of the arrays in a tuple, which must all have as many elements. Returns 0 or -1. */
static int read_pieces(PyObject *arrays, float **pieces, npy_intp *size) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arrays); i++) {
        PyArrayObject *array = mom_check_storage(PyTuple_GET_ITEM(arrays, i), "pieces", NPY_FLOAT32, 1); /* borrowed */
        if (!array)
            return -1;
        if (i && PyArray_SIZE(array) != *size) {
            PyErr_Format(PyExc_ValueError, "pieces: entry %zd has %zd elements, entry 0 has %zd", i,
                         (Py_ssize_t)PyArray_SIZE(array), (Py_ssize_t)*size);
            return -1;
        }
        *size = PyArray_SIZE(array);
        pieces[i] = PyArray_DATA(array);
    }
    return 0;
}

static int read_additions(PyObject *pairs, mom_addition *additions, Py_ssize_t pieces) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(pairs); i++) {
        Py_ssize_t to, from;
        PyObject *pair = PyTuple_GET_ITEM(pairs, i); /* borrowed */
        if (!PyTuple_Check(pair) || !PyArg_ParseTuple(pair, "nn", &to, &from)) {
            PyErr_SetString(PyExc_TypeError, "additions: expected pairs of integers");
            return -1;
        }
        if (to < 0 || to >= pieces || from < 0 || from >= pieces || to == from) {
            PyErr_Format(PyExc_ValueError, "additions: (%zd, %zd) are not two of %zd pieces", to, from, pieces);
            return -1;
        }
        additions[i] = (mom_addition){(size_t)to, (size_t)from};
    }
    return 0;
}

static PyObject *add_pieces(PyObject *module, PyObject *args) {
    PyObject *arrays, *pairs;
    if (!PyArg_ParseTuple(args, "O!O!:add_pieces", &PyTuple_Type, &arrays, &PyTuple_Type, &pairs))
        return NULL;
    const Py_ssize_t count = PyTuple_GET_SIZE(arrays), num_pairs = PyTuple_GET_SIZE(pairs);
    mom_error err;
    npy_intp size = 0;
    float **pieces = mom_memory_alloc((size_t)count, sizeof *pieces, "pieces", &err);
    mom_addition *additions = pieces ? mom_memory_alloc((size_t)num_pairs, sizeof *additions, "additions", &err) : NULL;
    int done = 0;
    if (!additions) {
        mom_raise(module, &err);
    } else if (read_pieces(arrays, pieces, &size) == 0 && read_additions(pairs, additions, count) == 0) {
        const mom_exec exec = mom_current_exec(NULL);
        MOM_WITHOUT_GIL(mom_add_pieces(&exec, pieces, (size_t)size, additions, (size_t)num_pairs));
        done = 1;
    }
    mom_memory_free(additions);
    mom_memory_free(pieces);
    return done ? Py_NewRef(Py_None) : NULL;
}

/* Reads a float32 and a uint16 array of one size; `to_narrow` says which of them is written. Returns 0 or -1. */
static int read_formats(PyObject *args, int to_narrow, float **wide, mom_bf16 **narrow, size_t *n) {
    PyObject *out, *in;
    if (!PyArg_ParseTuple(args, "OO", &out, &in))
        return -1;
    PyArrayObject *floats = mom_check_storage(to_narrow ? in : out, to_narrow ? "values" : "out", NPY_FLOAT32, !to_narrow);
    PyArrayObject *halves = floats ? mom_check_storage(to_narrow ? out : in, to_narrow ? "out" : "values", NPY_UINT16,
                                                       to_narrow) : NULL; /* both borrowed */
    if (!halves)
        return -1;
    if (PyArray_SIZE(floats) != PyArray_SIZE(halves)) {
        PyErr_Format(PyExc_ValueError, "out: has %zd elements, values %zd", (Py_ssize_t)PyArray_SIZE((PyArrayObject *)out),
                     (Py_ssize_t)PyArray_SIZE((PyArrayObject *)in));
        return -1;
    }
    *wide = PyArray_DATA(floats);
    *narrow = PyArray_DATA(halves);
    *n = (size_t)PyArray_SIZE(floats);
    return 0;
}

static PyObject *to_bfloat16(PyObject *Py_UNUSED(module), PyObject *args) {
    float *wide;
    mom_bf16 *narrow;
    size_t n;
    if (read_formats(args, 1, &wide, &narrow, &n) < 0)
        return NULL;
    const mom_exec exec = mom_current_exec(NULL);
    MOM_WITHOUT_GIL(mom_to_bf16(&exec, narrow, wide, n));
    Py_RETURN_NONE;
}

static PyObject *from_bfloat16(PyObject *Py_UNUSED(module), PyObject *args) {
    float *wide;
    mom_bf16 *narrow;
    size_t n;
    if (read_formats(args, 0, &wide, &narrow, &n) < 0)
        return NULL;
    const mom_exec exec = mom_current_exec(NULL);
    MOM_WITHOUT_GIL(mom_from_bf16(&exec, wide, narrow, n));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"parameter_block", parameter_block, METH_O,
     "parameter_block($module, network, /)\n--\n\nView of all parameters (float32), with padding between them."},
    {"gradient_block", gradient_block, METH_O,
     "gradient_block($module, network, /)\n--\n\nView of all gradients, laid out like the parameters. It holds their "
     "values until the next zero_grad; then call this again."},
    {"take_gradients", take_gradients, METH_VARARGS,
     "take_gradients($module, network, used, /)\n--\n\nThe caller has written sums into the gradient block; "
     "used: uint8 flag per parameter."},
    {"shard_bounds", shard_bounds, METH_VARARGS,
     "shard_bounds($module, network, ranks, /)\n--\n\nint64 (ranks + 1): where the part of the block that a rank "
     "updates begins and, in the next entry, ends."},
    {"add_pieces", add_pieces, METH_VARARGS,
     "add_pieces($module, pieces, additions, /)\n--\n\nFor each pair (to, from): pieces[to] += pieces[from], in order, "
     "on a tuple of float32 arrays of one size that do not overlap."},
    {"to_bfloat16", to_bfloat16, METH_VARARGS,
     "to_bfloat16($module, out, values, /)\n--\n\nRound float32 values to nearest even; out: uint16, their bits."},
    {"from_bfloat16", from_bfloat16, METH_VARARGS,
     "from_bfloat16($module, out, values, /)\n--\n\nThe float32 values of such bits."},
    {NULL, NULL, 0, NULL}};

int mom_add_rank_functions(PyObject *module) { return PyModule_AddFunctions(module, functions); }
