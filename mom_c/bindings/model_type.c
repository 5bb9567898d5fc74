/* _core.Network: one network with its parameters, gradients and activations.
 *
 * Arrays that leave here are either views whose base is the network (parameters, gradients) or copies (logits,
 * routes). Arguments arrive as int32/uint8/float32 C-contiguous arrays made by the Python layer and are checked here
 * once more for shape and range, before any work. The GIL is released around forward, backward and logits; a second
 * thread that meanwhile computes, reads results or changes state gets a RuntimeError.
 */
#include "bindings/model_type.h"

#include <stdatomic.h>
#include <string.h>

#include "bindings/convert.h"
#include "bindings/errors.h"
#include "bindings/runtime.h"
#include "bindings/state.h"

/* ------------------------------------------------------------------ life and death */

static int read_size(PyObject *dict, const char *key, size_t *out) {
    PyObject *item = PyDict_GetItemString(dict, key); /* borrowed */
    if (!item) {
        PyErr_Format(PyExc_TypeError, "config: key '%s' is missing", key);
        return -1;
    }
    const Py_ssize_t value = PyNumber_AsSsize_t(item, PyExc_ValueError);
    if (value == -1 && PyErr_Occurred())
        return -1;
    if (value < 0) {
        PyErr_Format(PyExc_ValueError, "config: '%s' is negative", key);
        return -1;
    }
    *out = (size_t)value;
    return 0;
}

static int read_flag(PyObject *dict, const char *key, int *out) {
    PyObject *item = PyDict_GetItemString(dict, key); /* borrowed */
    if (!item) {
        PyErr_Format(PyExc_TypeError, "config: key '%s' is missing", key);
        return -1;
    }
    *out = PyObject_IsTrue(item);
    return *out < 0 ? -1 : 0;
}

static int read_float(PyObject *dict, const char *key, float *out) {
    PyObject *item = PyDict_GetItemString(dict, key); /* borrowed */
    if (!item) {
        PyErr_Format(PyExc_TypeError, "config: key '%s' is missing", key);
        return -1;
    }
    const double value = PyFloat_AsDouble(item);
    if (value == -1.0 && PyErr_Occurred())
        return -1;
    *out = (float)value;
    return 0;
}

static int read_config(PyObject *dict, mom_config *c) {
    memset(c, 0, sizeof *c);
    size_t kind = 0;
    int reference_queries = 0, bf16 = 0;
    const struct {
        const char *key;
        size_t *out;
    } sizes[] = {{"V", &c->V}, {"P", &c->P}, {"C", &c->C}, {"H", &c->H}, {"F", &c->F}, {"bottom", &c->bottom},
                 {"chunks", &c->chunks}, {"top", &c->top}, {"num_attn", &c->num_attn}, {"num_ffn", &c->num_ffn},
                 {"rounds", &c->rounds}, {"choices_attn", &c->choices_attn}, {"choices_ffn", &c->choices_ffn},
                 {"top_k", &c->top_k}, {"R", &c->R}, {"router_kind", &kind}, {"num_labels", &c->num_labels}};
    const struct {
        const char *key;
        int *out;
    } flags[] = {{"anchor_between", &c->anchor_between}, {"vanilla", &c->vanilla},
                 {"router_softmax", &c->router_softmax}, {"router_random", &c->router_random},
                 {"use_ste", &c->use_ste}, {"weighted_qkv", &c->weighted_qkv}, {"all_paths", &c->all_paths},
                 {"balance_enabled", &c->balance_enabled}, {"balance_reference", &c->balance_reference},
                 {"balance_depthwise", &c->balance_depthwise}, {"balance_step_counts", &c->balance_step_counts},
                 {"masked_query_reference", &reference_queries}, {"scale_attention", &c->scale_attention},
                 {"bf16", &bf16}};
    const struct {
        const char *key;
        float *out;
    } floats[] = {{"temperature", &c->temperature}, {"embd_pdrop", &c->embd_pdrop}, {"attn_pdrop", &c->attn_pdrop},
                  {"resid_pdrop", &c->resid_pdrop}, {"ln_eps", &c->ln_eps}, {"init_range", &c->init_range},
                  {"anchor_proj_range", &c->anchor_proj_range}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (read_size(dict, sizes[i].key, sizes[i].out) < 0)
            return -1;
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (read_flag(dict, flags[i].key, flags[i].out) < 0)
            return -1;
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        if (read_float(dict, floats[i].key, floats[i].out) < 0)
            return -1;
    if (kind > MOM_ROUTER_GRU_DEV) {
        PyErr_Format(PyExc_ValueError, "config: router_kind %zu is unknown", kind);
        return -1;
    }
    c->router_kind = (mom_router_kind)kind;
    c->dtype = bf16 ? MOM_BF16 : MOM_F32;
    c->masked_query = reference_queries ? MOM_MASKED_QUERY_REFERENCE : MOM_MASKED_QUERY_CAUSAL;
    return 0;
}

static PyObject *network_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"config", NULL};
    PyObject *dict;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!:Network", names, &PyDict_Type, &dict))
        return NULL;
    mom_config config;
    if (read_config(dict, &config) < 0)
        return NULL;
    mom_network *self = (mom_network *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    mom_error err;
    atomic_init(&self->busy, 0);
    const mom_status status = mom_gpt_init(&self->gpt, &config, &err);
    if (status != MOM_OK) {
        mom_raise((PyObject *)type, &err);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void network_dealloc(mom_network *self) {
    PyTypeObject *type = Py_TYPE(self);
    mom_gpt_free(&self->gpt);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

int mom_network_enter(mom_network *self) {
    if (atomic_exchange(&self->busy, 1)) {
        PyErr_SetString(PyExc_RuntimeError, "model: in use by another thread; a model is used by one thread at a time");
        return -1;
    }
    return 0;
}

void mom_network_leave(mom_network *self) { atomic_store(&self->busy, 0); }

/* ------------------------------------------------------------------ forward and backward */

/* None -> NULL; otherwise a C-contiguous array of the exact type and shape. *array is borrowed. */
static int optional_array(PyObject *object, const char *name, int type, int ndim, const npy_intp *shape, const void **data) {
    *data = NULL;
    if (object == Py_None)
        return 0;
    PyArrayObject *array = mom_check_array(object, name, type, ndim, shape, 0);
    if (!array)
        return -1;
    *data = PyArray_DATA(array);
    return 0;
}

static int check_range(const int32_t *values, size_t n, int32_t low, int32_t high, int ignored, const char *name,
                       const char *limit) {
    for (size_t i = 0; i < n; i++) {
        if ((values[i] < low || values[i] >= high) && !(ignored && values[i] == MOM_IGNORED_LABEL)) {
            PyErr_Format(PyExc_ValueError, "%s: %d at position %zu is not in [%d, %d) (%s)", name, values[i], i, low,
                         high, limit);
            return -1;
        }
    }
    return 0;
}

/* Lengths of the sequences that make up N packed tokens, each at most `longest`; fills B, T and lengths of the batch. */
static int read_lengths(PyObject *object, size_t N, size_t longest, const char *limit, mom_batch *batch) {
    const npy_intp any[1] = {-1};
    PyArrayObject *array = mom_check_array(object, "lengths", NPY_INT32, 1, any, 0); /* borrowed */
    if (!array)
        return -1;
    batch->lengths = PyArray_DATA(array);
    batch->B = (size_t)PyArray_DIM(array, 0);
    batch->T = 0;
    size_t total = 0;
    for (size_t b = 0; b < batch->B; b++) {
        if (batch->lengths[b] < 1 || (size_t)batch->lengths[b] > longest) {
            PyErr_Format(PyExc_ValueError, "lengths: %d at position %zu is not in [1, %zu] (%s)", batch->lengths[b], b,
                         longest, limit);
            return -1;
        }
        const size_t length = (size_t)batch->lengths[b];
        total += length;
        batch->T = length > batch->T ? length : batch->T;
    }
    if (total != N) {
        PyErr_Format(PyExc_ValueError, "lengths: sum %zu, expected %zu like tokens", total, N);
        return -1;
    }
    return 0;
}

/* Row numbers below N. */
static int read_rows(PyObject *object, size_t N, const int32_t **rows, size_t *count) {
    const npy_intp any[1] = {-1};
    PyArrayObject *array = mom_check_array(object, "rows", NPY_INT32, 1, any, 0); /* borrowed */
    if (!array)
        return -1;
    *rows = PyArray_DATA(array);
    *count = (size_t)PyArray_DIM(array, 0);
    return check_range(*rows, *count, 0, (int32_t)N, 0, "rows", "rows of the batch");
}

static PyObject *network_forward(mom_network *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tokens", "lengths", "labels", "mask", "positions", "pooled", "classes", "values",
                            "label_loss", "keep", "training", "checkpoint", "rows", "all_rows", NULL};
    PyObject *tokens_o, *lengths_o = Py_None, *labels_o = Py_None, *mask_o = Py_None, *positions_o = Py_None,
             *pooled_o = Py_None, *classes_o = Py_None, *values_o = Py_None, *rows_o = Py_None;
    int label_loss = 0, keep = 0, training = 0, checkpoint = 0, all_rows = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|OOOOOOOipppOp:forward", names, &tokens_o, &lengths_o, &labels_o,
                                     &mask_o, &positions_o, &pooled_o, &classes_o, &values_o, &label_loss, &keep, &training,
                                     &checkpoint, &rows_o, &all_rows))
        return NULL;
    const mom_config *c = &self->gpt.config;
    const npy_intp any[2] = {-1, -1};
    const int ndim = lengths_o == Py_None ? 2 : 1; /* (B, T), or (N) of packed rows */
    PyArrayObject *tokens = mom_check_array(tokens_o, "tokens", NPY_INT32, ndim, any, 0); /* borrowed */
    if (!tokens)
        return NULL;
    const npy_intp *shape = PyArray_DIMS(tokens);
    const size_t N = (size_t)PyArray_SIZE(tokens);
    if (!N) {
        char have[64];
        mom_format_shape(have, sizeof have, ndim, shape);
        PyErr_Format(PyExc_ValueError, "tokens: shape %s is empty", have);
        return NULL;
    }
    if (N > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "tokens: %zu tokens in one batch are more than %d", N, INT32_MAX);
        return NULL;
    }
    mom_batch batch = {.tokens = PyArray_DATA(tokens), .keep = keep, .training = training, .checkpoint = checkpoint,
                       .all_rows = all_rows};
    if (lengths_o == Py_None) {
        batch.B = (size_t)shape[0];
        batch.T = (size_t)shape[1];
    } else if (positions_o == Py_None ? read_lengths(lengths_o, N, c->P, "n_positions", &batch) < 0
                                      : read_lengths(lengths_o, N, N, "tokens", &batch) < 0) {
        return NULL;
    }
    const npy_intp rows[1] = {(npy_intp)batch.B}, values_shape[2] = {rows[0], (npy_intp)c->num_labels};
    if (optional_array(labels_o, "labels", NPY_INT32, ndim, shape, (const void **)&batch.labels) < 0 ||
        optional_array(mask_o, "attention_mask", NPY_UINT8, ndim, shape, (const void **)&batch.mask) < 0 ||
        optional_array(positions_o, "positions", NPY_INT32, ndim, shape, (const void **)&batch.positions) < 0 ||
        optional_array(pooled_o, "pooled", NPY_INT32, 1, rows, (const void **)&batch.pooled) < 0 ||
        optional_array(classes_o, "labels", NPY_INT32, 1, rows, (const void **)&batch.classes) < 0 ||
        optional_array(values_o, "labels", NPY_FLOAT32, 2, values_shape, (const void **)&batch.values) < 0)
        return NULL;
    if (rows_o != Py_None && read_rows(rows_o, N, &batch.rows, &batch.row_count) < 0)
        return NULL;
    if (!batch.positions && batch.T > c->P) {
        PyErr_Format(PyExc_ValueError, "tokens: sequences of %zu tokens, n_positions is %zu", batch.T, c->P);
        return NULL;
    }
    if (check_range(batch.tokens, N, 0, (int32_t)c->V, 0, "tokens", "vocab_size") < 0 ||
        (batch.labels && check_range(batch.labels, N, 0, (int32_t)c->V, 1, "labels", "vocab_size") < 0) ||
        (batch.positions && check_range(batch.positions, N, 0, (int32_t)c->P, 0, "positions", "n_positions") < 0) ||
        (batch.pooled && check_range(batch.pooled, batch.B, 0, (int32_t)batch.T, 0, "pooled", "sequence length") < 0) ||
        (batch.classes && check_range(batch.classes, batch.B, 0, (int32_t)c->num_labels, 1, "labels", "num_labels") < 0))
        return NULL;
    if ((c->num_labels > 0 && !batch.lengths) != (batch.pooled != NULL) || (c->num_labels && batch.labels)) {
        PyErr_SetString(PyExc_ValueError, "pooled: given exactly for a classifier without lengths, which takes no token "
                                          "labels");
        return NULL;
    }
    batch.label_loss = (mom_label_loss)label_loss;
    if (label_loss < MOM_LOSS_MSE || label_loss > MOM_LOSS_BCE ||
        (batch.classes && batch.label_loss != MOM_LOSS_CROSS_ENTROPY) ||
        (batch.values && batch.label_loss == MOM_LOSS_CROSS_ENTROPY)) {
        PyErr_Format(PyExc_ValueError, "label_loss: %d does not fit the labels", label_loss);
        return NULL;
    }

    if (mom_network_enter(self) < 0)
        return NULL;
    const mom_exec exec = mom_current_exec(NULL);
    mom_losses losses;
    mom_error err;
    mom_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mom_gpt_forward(&self->gpt, &exec, &batch, &losses, &err);
    Py_END_ALLOW_THREADS
    mom_network_leave(self);
    if (status != MOM_OK)
        return mom_raise((PyObject *)Py_TYPE(self), &err);
    PyObject *lm = losses.has_loss ? PyFloat_FromDouble(losses.lm_loss) : Py_NewRef(Py_None);
    PyObject *balance = losses.has_balance ? PyFloat_FromDouble(losses.balance_loss) : Py_NewRef(Py_None);
    if (!lm || !balance) {
        Py_XDECREF(lm);
        Py_XDECREF(balance);
        return NULL;
    }
    return Py_BuildValue("(NNn)", lm, balance, (Py_ssize_t)losses.labelled);
}

static PyObject *network_backward(mom_network *self, PyObject *args) {
    float lm_scale, balance_scale;
    if (!PyArg_ParseTuple(args, "ff:backward", &lm_scale, &balance_scale) || mom_network_enter(self) < 0)
        return NULL;
    const mom_exec exec = mom_current_exec(NULL);
    mom_error err;
    mom_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mom_gpt_backward(&self->gpt, &exec, lm_scale, balance_scale, &err);
    Py_END_ALLOW_THREADS
    mom_network_leave(self);
    return status == MOM_OK ? Py_NewRef(Py_None) : mom_raise((PyObject *)Py_TYPE(self), &err);
}

static PyObject *network_plan(mom_network *self, PyObject *args) {
    Py_ssize_t B, T, N;
    mom_memory_key key = {0};
    if (!PyArg_ParseTuple(args, "nnnppp:plan", &B, &T, &N, &key.keep, &key.checkpoint, &key.training))
        return NULL;
    if (B < 1 || T < 1 || B > INT32_MAX / T) {
        PyErr_Format(PyExc_ValueError, "batch, length: %zd sequences of %zd tokens, expected 1 to %d tokens in all", B, T,
                     INT32_MAX);
        return NULL;
    }
    if (N < T + B - 1 || N > B * T) {
        PyErr_Format(PyExc_ValueError, "tokens: %zd in %zd sequences, the longest of %zd, expected %zd to %zd", N, B, T,
                     T + B - 1, B * T);
        return NULL;
    }
    if (mom_network_enter(self) < 0)
        return NULL;
    const mom_exec exec = mom_current_exec(NULL);
    key.B = (size_t)B;
    key.T = (size_t)T;
    key.N = (size_t)N;
    key.labels = 1;
    key.threads = exec.threads;
    key.k = exec.k;
    mom_memory_plan plan;
    mom_error err;
    const mom_status status = mom_gpt_plan(&self->gpt, &key, &plan, &err);
    /* Training has an optimizer, even if it is not made yet. */
    const size_t optimizers = self->gpt.optimizers ? self->gpt.optimizers : 1;
    plan.moments = key.keep ? mom_gpt_moments(&self->gpt, optimizers) : 0;
    mom_network_leave(self);
    if (status != MOM_OK)
        return mom_raise((PyObject *)Py_TYPE(self), &err);
    return Py_BuildValue("{s:n,s:n,s:n,s:n,s:n,s:n}", "parameters", (Py_ssize_t)plan.parameters, "gradients",
                         (Py_ssize_t)plan.gradients, "moments", (Py_ssize_t)plan.moments, "activations",
                         (Py_ssize_t)plan.activations, "packed", (Py_ssize_t)plan.packed, "workspace",
                         (Py_ssize_t)plan.workspace);
}

static PyObject *network_zero_grad(mom_network *self, PyObject *Py_UNUSED(ignored)) {
    if (mom_network_enter(self) < 0)
        return NULL;
    mom_gpt_zero_grad(&self->gpt);
    mom_network_leave(self);
    Py_RETURN_NONE;
}

static PyObject *network_randomize(mom_network *self, PyObject *arg) {
    const unsigned long long seed = PyLong_AsUnsignedLongLong(arg);
    if ((seed == (unsigned long long)-1 && PyErr_Occurred()) || mom_network_enter(self) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    mom_params_randomize(&self->gpt.params, seed);
    Py_END_ALLOW_THREADS
    mom_network_leave(self);
    Py_RETURN_NONE;
}

static PyObject *network_logits(mom_network *self, PyObject *rows_o) {
    mom_gpt *gpt = &self->gpt;
    const size_t N = gpt->run.N, V = gpt->config.V;
    if (!gpt->has_routes) {
        PyErr_SetString(PyExc_RuntimeError, "logits: there is no forward pass to take them from");
        return NULL;
    }
    const int32_t *rows = NULL;
    size_t count = N;
    if (rows_o != Py_None && read_rows(rows_o, N, &rows, &count) < 0)
        return NULL;
    const npy_intp dims[2] = {(npy_intp)count, (npy_intp)V};
    PyObject *out = PyArray_SimpleNew(2, dims, NPY_FLOAT32); /* new reference */
    if (!out)
        return NULL;
    if (mom_network_enter(self) < 0) {
        Py_DECREF(out);
        return NULL;
    }
    const mom_exec exec = mom_current_exec(NULL);
    float *data = PyArray_DATA((PyArrayObject *)out);
    mom_error err;
    mom_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mom_gpt_logits(gpt, &exec, data, rows, count, &err);
    Py_END_ALLOW_THREADS
    mom_network_leave(self);
    if (status == MOM_OK)
        return out;
    Py_DECREF(out);
    return mom_raise((PyObject *)Py_TYPE(self), &err);
}

static PyObject *copy_array(int ndim, const npy_intp *dims, int type, const void *data) {
    PyObject *out = PyArray_SimpleNew(ndim, dims, type); /* new reference */
    if (out && PyArray_SIZE((PyArrayObject *)out) > 0)
        memcpy(PyArray_DATA((PyArrayObject *)out), data, (size_t)PyArray_NBYTES((PyArrayObject *)out));
    return out;
}

static PyObject *network_pooled_logits(mom_network *self, PyObject *Py_UNUSED(ignored)) {
    const mom_gpt *gpt = &self->gpt;
    PyObject *out = NULL;
    if (mom_network_enter(self) < 0)
        return NULL;
    if (gpt->has_routes && gpt->hidden && gpt->config.num_labels) {
        const npy_intp dims[2] = {(npy_intp)gpt->run.B, (npy_intp)gpt->config.num_labels};
        out = copy_array(2, dims, NPY_FLOAT32, gpt->pooled_logits);
    } else {
        PyErr_SetString(PyExc_RuntimeError, "pooled_logits: there is no classification to take them from");
    }
    mom_network_leave(self);
    return out;
}

static const mom_route *find_route(mom_network *self, PyObject *args, const mom_pool **pool) {
    Py_ssize_t place_index, round;
    int half;
    if (!PyArg_ParseTuple(args, "nni", &place_index, &round, &half))
        return NULL;
    const mom_gpt *gpt = &self->gpt;
    if (!gpt->has_routes) {
        PyErr_SetString(PyExc_RuntimeError, "route: there is no forward pass to take it from");
        return NULL;
    }
    if (place_index < 0 || (size_t)place_index >= gpt->params.num_places || half < 0 || half > 1 || round < 0 ||
        (size_t)round >= gpt->params.places[place_index].rounds) {
        PyErr_SetString(PyExc_IndexError, "route: no such place, round or half");
        return NULL;
    }
    const mom_place *place = &gpt->params.places[place_index];
    *pool = half ? &place->ffn : &place->attn;
    return &gpt->halves[place_index][2 * (size_t)round + (size_t)half].route;
}

/* What a reader of routes gives for a half that has a router. */
typedef PyObject *(*route_reader)(const mom_gpt *gpt, const mom_pool *pool, const mom_route *r);

/* Calls `read` for the half that args name; None for a half without a router. */
static PyObject *read_route(mom_network *self, PyObject *args, route_reader read) {
    const mom_pool *pool;
    if (mom_network_enter(self) < 0)
        return NULL;
    const mom_route *r = find_route(self, args, &pool);
    PyObject *out = !r ? NULL : pool->routed ? read(&self->gpt, pool, r) : Py_NewRef(Py_None);
    mom_network_leave(self);
    return out;
}

static PyObject *count_choices(const mom_gpt *gpt, const mom_pool *pool, const mom_route *r) {
    const npy_intp dims[1] = {(npy_intp)pool->M + 1};
    PyObject *out = PyArray_ZEROS(1, dims, NPY_INT64, 0); /* new reference */
    if (!out)
        return NULL;
    int64_t *counts = PyArray_DATA((PyArrayObject *)out);
    for (size_t i = 0; i < gpt->run.N * pool->K; i++)
        counts[(size_t)r->index[i] < pool->M ? (size_t)r->index[i] : pool->M]++;
    return out;
}

static PyObject *copy_route(const mom_gpt *gpt, const mom_pool *pool, const mom_route *r) {
    const npy_intp all[2] = {(npy_intp)gpt->run.N, (npy_intp)pool->S}, kept[2] = {(npy_intp)gpt->run.N, (npy_intp)pool->K};
    return Py_BuildValue("{s:N,s:N,s:N}", "scores", copy_array(2, all, NPY_FLOAT32, r->scores), "index",
                         copy_array(2, kept, NPY_INT16, r->index), "weight", copy_array(2, kept, NPY_FLOAT32, r->kept));
}

/* route_counts(place, round, half) -> int64 (M + 1): kept choices of each module, then of SKIP; None without a router */
static PyObject *network_route_counts(mom_network *self, PyObject *args) { return read_route(self, args, count_choices); }

/* route(place, round, half) -> {"scores": (N, S), "index": (N, K), "weight": (N, K)} or None without a router */
static PyObject *network_route(mom_network *self, PyObject *args) { return read_route(self, args, copy_route); }

/* ------------------------------------------------------------------ parameters */

static PyObject *network_parameter_table(mom_network *self, PyObject *Py_UNUSED(ignored)) {
    const mom_params *p = &self->gpt.params;
    PyObject *list = PyList_New((Py_ssize_t)p->count); /* new reference */
    for (size_t i = 0; list && i < p->count; i++) {
        const mom_param *param = &p->table[i];
        PyObject *row = param->ndim == 2 ? Py_BuildValue("(s(nn)i)", param->name, (Py_ssize_t)param->dims[0],
                                                         (Py_ssize_t)param->dims[1], param->decay)
                                         : Py_BuildValue("(s(n)i)", param->name, (Py_ssize_t)param->dims[0], param->decay);
        if (!row) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, row); /* steals */
    }
    return list;
}

PyObject *mom_network_view(mom_network *self, PyObject *owner, Py_ssize_t i, float *block) {
    const mom_params *p = &self->gpt.params;
    if (i < 0 || (size_t)i >= p->count) {
        PyErr_Format(PyExc_IndexError, "parameter: no parameter %zd", i);
        return NULL;
    }
    const mom_param *param = &p->table[i];
    const npy_intp dims[2] = {(npy_intp)param->dims[0], (npy_intp)param->dims[1]};
    PyObject *view = PyArray_SimpleNewFromData(param->ndim, dims, NPY_FLOAT32, block + param->offset);
    if (view && PyArray_SetBaseObject((PyArrayObject *)view, Py_NewRef(owner)) < 0) /* steals, also on failure */
        Py_CLEAR(view);
    return view;
}

static PyObject *network_parameter(mom_network *self, PyObject *arg) {
    const Py_ssize_t i = PyNumber_AsSsize_t(arg, PyExc_IndexError);
    if (i == -1 && PyErr_Occurred())
        return NULL;
    return mom_network_view(self, (PyObject *)self, i, self->gpt.params.values);
}

static PyObject *network_gradient(mom_network *self, PyObject *arg) {
    const Py_ssize_t i = PyNumber_AsSsize_t(arg, PyExc_IndexError);
    if (i == -1 && PyErr_Occurred())
        return NULL;
    mom_error err;
    if (mom_network_enter(self) < 0)
        return NULL;
    const mom_status status = mom_params_add_gradients(&self->gpt.params, &err);
    if (status == MOM_OK) {
        mom_params_settle(&self->gpt.params);
        self->gpt.params.grads_shown = 1;
    }
    mom_network_leave(self);
    if (status != MOM_OK)
        return mom_raise((PyObject *)Py_TYPE(self), &err);
    return mom_network_view(self, (PyObject *)self, i, self->gpt.params.grads);
}

static PyObject *network_get_used(mom_network *self, void *Py_UNUSED(closure)) {
    const mom_params *p = &self->gpt.params;
    const npy_intp dims[1] = {(npy_intp)p->count};
    PyObject *out = PyArray_SimpleNew(1, dims, NPY_UINT8); /* new reference */
    if (out && mom_network_enter(self) < 0)
        Py_CLEAR(out);
    if (!out)
        return NULL;
    for (size_t i = 0; i < p->count; i++)
        ((uint8_t *)PyArray_DATA((PyArrayObject *)out))[i] = p->table[i].used != 0;
    mom_network_leave(self);
    return out;
}

static int network_set_used(mom_network *self, PyObject *value, void *Py_UNUSED(closure)) {
    mom_params *p = &self->gpt.params;
    const npy_intp dims[1] = {(npy_intp)p->count};
    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "used: cannot be deleted");
        return -1;
    }
    PyArrayObject *array = mom_check_array(value, "used", NPY_UINT8, 1, dims, 0); /* borrowed */
    if (!array || mom_network_enter(self) < 0)
        return -1;
    int any = 0;
    for (size_t i = 0; i < p->count; i++)
        any |= ((const uint8_t *)PyArray_DATA(array))[i];
    if (any) { /* marked by hand, perhaps before there is any: zero, then */
        mom_error err = {0};
        if (mom_params_add_gradients(p, &err) != MOM_OK) {
            mom_network_leave(self);
            mom_raise((PyObject *)Py_TYPE(self), &err);
            return -1;
        }
    }
    for (size_t i = 0; i < p->count; i++) {
        p->table[i].used = ((const uint8_t *)PyArray_DATA(array))[i] != 0;
        if (p->table[i].used)
            mom_param_settle(p, i);
    }
    mom_network_leave(self);
    return 0;
}

static PyObject *network_set_trained(mom_network *self, PyObject *value) {
    const npy_intp dims[1] = {(npy_intp)self->gpt.params.count};
    PyArrayObject *array = mom_check_array(value, "trained", NPY_UINT8, 1, dims, 0); /* borrowed */
    if (!array || mom_network_enter(self) < 0)
        return NULL;
    mom_gpt_set_trained(&self->gpt, PyArray_DATA(array));
    mom_network_leave(self);
    Py_RETURN_NONE;
}

static PyObject *network_get_random_state(mom_network *self, void *Py_UNUSED(closure)) {
    return Py_BuildValue("(KK)", (unsigned long long)self->gpt.seed, (unsigned long long)self->gpt.counter);
}

static int network_set_random_state(mom_network *self, PyObject *value, void *Py_UNUSED(closure)) {
    unsigned long long seed, counter;
    if (!value || !PyTuple_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "random_state: expected a tuple (seed, counter)");
        return -1;
    }
    if (!PyArg_ParseTuple(value, "KK:random_state", &seed, &counter) || mom_network_enter(self) < 0)
        return -1;
    self->gpt.seed = seed;
    self->gpt.counter = counter;
    mom_network_leave(self);
    return 0;
}

static PyObject *network_get_memory_limit(mom_network *self, void *Py_UNUSED(closure)) {
    return PyLong_FromSize_t(self->gpt.memory_limit);
}

static int network_set_memory_limit(mom_network *self, PyObject *value, void *Py_UNUSED(closure)) {
    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "memory_limit: cannot be deleted");
        return -1;
    }
    const size_t limit = PyLong_AsSize_t(value);
    if ((limit == (size_t)-1 && PyErr_Occurred()) || mom_network_enter(self) < 0)
        return -1;
    self->gpt.memory_limit = limit;
    mom_gpt_forget_plans(&self->gpt);
    mom_network_leave(self);
    return 0;
}

/* (bytes of the arena, most of them in use so far, bytes allocated beside it, whether it was too small) */
static PyObject *network_get_arena(mom_network *self, void *Py_UNUSED(closure)) {
    size_t beside = 0;
    const mom_arena *arenas[] = {&self->gpt.saved, &self->gpt.workspace};
    for (size_t i = 0; i < 2; i++)
        for (const mom_arena_block *block = arenas[i]->top; block; block = block->previous)
            beside += block->capacity;
    const mom_region *region = &self->gpt.region;
    return Py_BuildValue("(nnni)", (Py_ssize_t)region->capacity, (Py_ssize_t)region->peak, (Py_ssize_t)beside, region->full);
}

/* (activations, packed, workspace): bytes of the arena in use at its fullest moment so far */
static PyObject *network_get_arena_parts(mom_network *self, void *Py_UNUSED(closure)) {
    const mom_region *region = &self->gpt.region;
    return Py_BuildValue("(nnn)", (Py_ssize_t)region->at_peak[0], (Py_ssize_t)region->noted_at_peak,
                         (Py_ssize_t)(region->at_peak[1] - region->noted_at_peak));
}

static PyMethodDef network_methods[] = {
    {"forward", (PyCFunction)(void (*)(void))network_forward, METH_VARARGS | METH_KEYWORDS,
     "forward($self, tokens, lengths=None, labels=None, mask=None, positions=None, pooled=None, classes=None, values=None, "
     "label_loss=0, keep=False, training=False, checkpoint=False)\n--\n\nForward pass; returns (lm_loss, balance_loss, labelled)."},
    {"backward", (PyCFunction)network_backward, METH_VARARGS,
     "backward($self, lm_scale, balance_scale, /)\n--\n\nAdd to the gradients."},
    {"plan", (PyCFunction)network_plan, METH_VARARGS,
     "plan($self, batch, length, tokens, keep, checkpoint, training, /)\n--\n\nBytes of a labelled forward pass, by kind."},
    {"zero_grad", (PyCFunction)network_zero_grad, METH_NOARGS, "zero_grad($self, /)\n--\n\nZero all gradients."},
    {"randomize", (PyCFunction)network_randomize, METH_O, "randomize($self, seed, /)\n--\n\nFresh parameters."},
    {"logits", (PyCFunction)network_logits, METH_O,
     "logits($self, rows, /)\n--\n\nLogits (count, V) of the last forward at flat rows, None for all."},
    {"pooled_logits", (PyCFunction)network_pooled_logits, METH_NOARGS,
     "pooled_logits($self, /)\n--\n\nClassification logits (B, num_labels) of the last forward."},
    {"route", (PyCFunction)network_route, METH_VARARGS,
     "route($self, place, round, half, /)\n--\n\nCopies of one half's routing, None without a router."},
    {"route_counts", (PyCFunction)network_route_counts, METH_VARARGS,
     "route_counts($self, place, round, half, /)\n--\n\nKept choices per module, SKIP last; None without a router."},
    {"parameter_table", (PyCFunction)network_parameter_table, METH_NOARGS,
     "parameter_table($self, /)\n--\n\nList of (name, shape, decay)."},
    {"parameter", (PyCFunction)network_parameter, METH_O, "parameter($self, index, /)\n--\n\nView of a parameter."},
    {"set_trained", (PyCFunction)network_set_trained, METH_O,
     "set_trained($self, trained, /)\n--\n\nBackward leaves out what only parameters marked 0 need (uint8, by parameter)."},
    {"gradient", (PyCFunction)network_gradient, METH_O, "gradient($self, index, /)\n--\n\nView of a gradient."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef network_getset[] = {
    {"used", (getter)network_get_used, (setter)network_set_used, "uint8 flag per parameter: it has a gradient", NULL},
    {"memory_limit", (getter)network_get_memory_limit, (setter)network_set_memory_limit,
     "Largest plan of a forward pass in bytes; 0: any", NULL},
    {"arena", (getter)network_get_arena, NULL, "(bytes, most in use, bytes beside, too small)", NULL},
    {"arena_parts", (getter)network_get_arena_parts, NULL, "(activations, packed, workspace) at the fullest moment", NULL},
    {"random_state", (getter)network_get_random_state, (setter)network_set_random_state, "(seed, counter)", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot network_slots[] = {{Py_tp_new, network_new},
                                      {Py_tp_dealloc, network_dealloc},
                                      {Py_tp_methods, network_methods},
                                      {Py_tp_getset, network_getset},
                                      {Py_tp_doc, "Network(config)\n--\n\nA network in C memory; see mom.MoM."},
                                      {0, NULL}};

static PyType_Spec network_spec = {.name = "mom._core.Network",
                                   .basicsize = sizeof(mom_network),
                                   .flags = Py_TPFLAGS_DEFAULT,
                                   .slots = network_slots};

int mom_add_network(PyObject *module) {
    PyObject *type = PyType_FromModuleAndSpec(module, &network_spec, NULL); /* new reference */
    if (!type)
        return -1;
    mom_state *state = mom_get_state(module);
    state->network_type = type; /* the state keeps the reference */
    return PyModule_AddObjectRef(module, "Network", type);
}
