/* _core.Network: one network with its parameters, gradients and activations.
 *
 * Parameters and gradients are returned as views that keep the network alive; all other arrays are copies. Arguments
 * must be C-contiguous arrays of exactly the type that a function names; the Python layer converts them. Shapes, ids
 * and row numbers are checked here before any work, since mom_gpt_forward and the other functions of the core trust
 * them. Errors that the core finds later (memory, calls in the wrong order) become exceptions, too.
 *
 * The GIL is released while the core computes. Every function that runs the network, reads its results or changes its
 * state claims the network until it returns. A second thread that tries gets a RuntimeError.
 */
#include "bindings/model_type.h"

#include <stdatomic.h>
#include <unistd.h>

#include "bindings/convert.h"
#include "bindings/errors.h"
#include "bindings/network_batch.h"
#include "bindings/network_config.h"
#include "bindings/network_results.h"
#include "bindings/routes.h"
#include "bindings/runtime.h"
#include "bindings/state.h"

/* ------------------------------------------------------------------ life and death */

static PyObject *network_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"config", NULL};
    PyObject *dict;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!:Network", names, &PyDict_Type, &dict))
        return NULL;
    mom_config config;
    if (mom_read_config(dict, &config) < 0)
        return NULL;
    mom_network *self = (mom_network *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    mom_error err;
    atomic_init(&self->owner, 0);
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
    mom_release_interventions(self->held);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

int mom_network_enter(mom_network *self) {
    const int process = (int)getpid();
    int owner = atomic_load(&self->owner);
    if (owner == process || !atomic_compare_exchange_strong(&self->owner, &owner, process)) {
        PyErr_SetString(PyExc_RuntimeError, "model: in use by another thread; a model is used by one thread at a time");
        return -1;
    }
    if (owner) /* a thread of the parent was using the network when this process was forked; here it does not exist */
        mom_gpt_abandon_pass(&self->gpt);
    return 0;
}

void mom_network_leave(mom_network *self) { atomic_store(&self->owner, 0); }

/* ------------------------------------------------------------------ forward and backward */

/* {name: value} of the terms that the pass has. New reference. */
static PyObject *loss_terms(const mom_losses *losses) {
    PyObject *dict = PyDict_New();
    for (int term = 0; dict && term < MOM_TERMS; term++) {
        if (!losses->has[term])
            continue;
        PyObject *value = PyFloat_FromDouble(losses->value[term]); /* new reference */
        if (!value || PyDict_SetItemString(dict, mom_term_names[term], value) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    return dict;
}

/* (losses, labelled, logits or None, routes or None) of a forward pass that has just been run. New reference. */
static PyObject *take_results(mom_network *self, const mom_batch *batch, const mom_wanted *wanted, const mom_losses *losses) {
    PyObject *logits = Py_NewRef(Py_None), *routes = Py_NewRef(Py_None);
    if (wanted->logits)
        Py_SETREF(logits, self->gpt.config.num_labels ? mom_pooled_logits(self)
                                                      : mom_logits(self, batch->rows, batch->row_count));
    if (wanted->routes && logits)
        Py_SETREF(routes, mom_routes(self));
    PyObject *terms = logits && routes ? loss_terms(losses) : NULL;
    if (terms)
        return Py_BuildValue("(NnNN)", terms, (Py_ssize_t)losses->labelled, logits, routes); /* steals */
    Py_XDECREF(logits);
    Py_XDECREF(routes);
    return NULL;
}

/* Keeps the interventions that the last pass refers to, and releases the others. */
static void keep_interventions(mom_network *self, mom_held_interventions *held) {
    const mom_interventions *last = self->gpt.last.pass.interventions;
    if (last && last == mom_interventions_of(self->held)) {
        mom_release_interventions(held);
        return;
    }
    mom_release_interventions(self->held);
    self->held = held;
}

static PyObject *network_forward(mom_network *self, PyObject *args, PyObject *kwargs) {
    mom_batch batch;
    mom_wanted wanted;
    mom_held_interventions *held;
    if (mom_read_batch(args, kwargs, &self->gpt, &batch, &wanted, &held) < 0)
        return NULL;
    if (mom_network_enter(self) < 0) {
        mom_release_interventions(held);
        return NULL;
    }
    const mom_exec exec = mom_network_exec(self);
    mom_losses losses;
    mom_error err;
    mom_status status;
    const uint64_t counter = self->gpt.counter;
    MOM_WITHOUT_GIL(status = mom_gpt_forward(&self->gpt, &exec, &batch, &losses, &err));
    PyObject *results = NULL;
    if (status != MOM_OK)
        mom_raise((PyObject *)Py_TYPE(self), &err);
    else if (!(results = take_results(self, &batch, &wanted, &losses)))
        self->gpt.counter = counter; /* the same call draws the same numbers again */
    keep_interventions(self, held);
    mom_network_leave(self);
    return results;
}

/* Reads a factor for each term by name. Terms that are left out get 0. */
static int read_scales(PyObject *dict, float scales[MOM_TERMS]) {
    Py_ssize_t known = 0;
    for (int term = 0; term < MOM_TERMS; term++) {
        PyObject *item = PyDict_GetItemString(dict, mom_term_names[term]); /* borrowed */
        scales[term] = 0.0f;
        if (!item)
            continue;
        Py_INCREF(item); /* its __float__ may change the dict */
        const double value = PyFloat_AsDouble(item);
        Py_DECREF(item);
        if (value == -1.0 && PyErr_Occurred())
            return -1;
        scales[term] = (float)value;
        known++;
    }
    if (known < PyDict_Size(dict)) {
        PyErr_Format(PyExc_ValueError, "scales: unknown term among %R", dict);
        return -1;
    }
    return 0;
}

static PyObject *network_backward(mom_network *self, PyObject *arg) {
    float scales[MOM_TERMS];
    if (!PyDict_Check(arg))
        return PyErr_Format(PyExc_TypeError, "scales: expected dict, got %s", Py_TYPE(arg)->tp_name);
    if (read_scales(arg, scales) < 0 || mom_network_enter(self) < 0)
        return NULL;
    const mom_exec exec = mom_network_exec(self);
    mom_error err;
    mom_status status;
    MOM_WITHOUT_GIL(status = mom_gpt_backward(&self->gpt, &exec, scales, &err));
    mom_network_leave(self);
    return status == MOM_OK ? Py_NewRef(Py_None) : mom_raise((PyObject *)Py_TYPE(self), &err);
}

static PyObject *network_plan(mom_network *self, PyObject *args) {
    Py_ssize_t B, T, N;
    mom_memory_key key = {0};
    if (!PyArg_ParseTuple(args, "nnnppp|p:plan", &B, &T, &N, &key.keep, &key.checkpoint, &key.training,
                          &key.outputs))
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
    const mom_exec exec = mom_network_exec(self);
    key.B = (size_t)B;
    key.T = (size_t)T;
    key.N = (size_t)N;
    key.labels = 1;
    key.threads = exec.threads;
    key.k = exec.k;
    mom_memory_plan plan;
    mom_error err;
    const mom_status status = mom_gpt_plan(&self->gpt, &key, &plan, &err);
    /* Training needs an optimizer, so one is counted even if none exists yet. */
    const mom_gradients *g = &self->gpt.gradients;
    plan.moments = key.keep ? mom_gradients_moment_bytes(g, &self->gpt.params, g->optimizers ? g->optimizers : 1) : 0;
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
    const mom_exec exec = mom_network_exec(self);
    MOM_WITHOUT_GIL(mom_gpt_zero_grad(&self->gpt, &exec));
    mom_network_leave(self);
    Py_RETURN_NONE;
}

static PyObject *network_randomize(mom_network *self, PyObject *arg) {
    const unsigned long long seed = PyLong_AsUnsignedLongLong(arg);
    if ((seed == (unsigned long long)-1 && PyErr_Occurred()) || mom_network_enter(self) < 0)
        return NULL;
    const mom_exec exec = mom_network_exec(self);
    MOM_WITHOUT_GIL(mom_params_randomize(&exec, &self->gpt.params, seed));
    mom_network_leave(self);
    Py_RETURN_NONE;
}

static PyObject *network_logits(mom_network *self, PyObject *rows_o) {
    const int32_t *rows = NULL;
    size_t count = 0;
    PyObject *out = NULL;
    if (mom_network_enter(self) < 0)
        return NULL;
    if (!self->gpt.last.has_routes)
        PyErr_SetString(PyExc_RuntimeError, "logits: there is no forward pass to take them from");
    else if (rows_o == Py_None || mom_read_rows(rows_o, self->gpt.last.pass.N, &rows, &count) == 0)
        out = mom_logits(self, rows, count);
    mom_network_leave(self);
    return out;
}

/* Makes what a reader of routes returns for a half-round with a router. */
typedef PyObject *(*route_reader)(const mom_gpt *gpt, const mom_pool *pool, const mom_route *r);

/* Calls `read` for the half-round that args name. Returns None if the half-round has no router. */
static PyObject *read_route(mom_network *self, PyObject *args, route_reader read) {
    Py_ssize_t place, round;
    int half;
    if (!PyArg_ParseTuple(args, "nni", &place, &round, &half) || mom_network_enter(self) < 0)
        return NULL;
    const mom_gpt *gpt = &self->gpt;
    PyObject *out = NULL;
    if (!gpt->last.has_routes) {
        PyErr_SetString(PyExc_RuntimeError, "route: there is no forward pass to take it from");
    } else {
        const mom_pool *pool = mom_find_pool(&gpt->params, place, round, half);
        if (pool && pool->routed)
            out = read(gpt, pool, &gpt->last.halves[place][2 * (size_t)round + (size_t)half].route);
        else if (pool)
            out = Py_NewRef(Py_None);
    }
    mom_network_leave(self);
    return out;
}

static PyObject *count_choices(const mom_gpt *gpt, const mom_pool *pool, const mom_route *r) {
    const npy_intp dims[1] = {(npy_intp)pool->M + 1};
    PyObject *out = PyArray_ZEROS(1, dims, NPY_INT64, 0); /* new reference */
    if (!out)
        return NULL;
    int64_t *counts = PyArray_DATA((PyArrayObject *)out);
    for (size_t i = 0; i < gpt->last.pass.N * r->K; i++)
        counts[(size_t)r->index[i] < pool->M ? (size_t)r->index[i] : pool->M]++;
    return out;
}

static PyObject *copy_route(const mom_gpt *gpt, const mom_pool *pool, const mom_route *r) {
    return mom_copy_route(pool, gpt->last.pass.N, r->K, r->scores, r->index, r->kept);
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
    return mom_view_array(param->ndim, dims, NPY_FLOAT32, block + param->offset, owner);
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
    const mom_status status = mom_gradients_show(&self->gpt.gradients, &self->gpt.params, &err);
    mom_network_leave(self);
    if (status != MOM_OK)
        return mom_raise((PyObject *)Py_TYPE(self), &err);
    return mom_network_view(self, (PyObject *)self, i, self->gpt.gradients.values);
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
        ((uint8_t *)PyArray_DATA((PyArrayObject *)out))[i] = self->gpt.gradients.table[i].used != 0;
    mom_network_leave(self);
    return out;
}

static int network_set_used(mom_network *self, PyObject *value, void *Py_UNUSED(closure)) {
    const mom_params *p = &self->gpt.params;
    mom_gradients *g = &self->gpt.gradients;
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
    if (any) { /* the caller marks gradients that may not exist yet: allocate them as zeros */
        mom_error err = {0};
        if (mom_gradients_allocate(g, p, 0, &err) != MOM_OK) {
            mom_network_leave(self);
            mom_raise((PyObject *)Py_TYPE(self), &err);
            return -1;
        }
    }
    for (size_t i = 0; i < p->count; i++) {
        g->table[i].used = ((const uint8_t *)PyArray_DATA(array))[i] != 0;
        if (g->table[i].used)
            mom_gradient_settle(g, p, i);
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
    if (mom_network_enter(self) < 0)
        return NULL;
    const unsigned long long seed = self->gpt.seed, counter = self->gpt.counter;
    mom_network_leave(self);
    return Py_BuildValue("(KK)", seed, counter);
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

static PyObject *network_get_exploration(mom_network *self, void *Py_UNUSED(closure)) {
    if (mom_network_enter(self) < 0)
        return NULL;
    const double temperature = (double)self->gpt.config.temperature, jitter = (double)self->gpt.config.jitter;
    mom_network_leave(self);
    return Py_BuildValue("(dd)", temperature, jitter);
}

static int network_set_exploration(mom_network *self, PyObject *value, void *Py_UNUSED(closure)) {
    double temperature, jitter;
    if (!value || !PyTuple_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "exploration: expected a tuple (temperature, jitter)");
        return -1;
    }
    if (!PyArg_ParseTuple(value, "dd:exploration", &temperature, &jitter))
        return -1;
    if (!((float)temperature > 0.0f) || !((float)jitter >= 0.0f)) {
        PyErr_SetString(PyExc_ValueError, "exploration: expected a positive temperature and a jitter of at least 0");
        return -1;
    }
    if (mom_network_enter(self) < 0)
        return -1;
    self->gpt.config.temperature = (float)temperature;
    self->gpt.config.jitter = (float)jitter;
    mom_network_leave(self);
    return 0;
}

static PyObject *network_get_memory_limit(mom_network *self, void *Py_UNUSED(closure)) {
    return PyLong_FromSize_t(self->gpt.memory.limit);
}

static int network_set_memory_limit(mom_network *self, PyObject *value, void *Py_UNUSED(closure)) {
    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "memory_limit: cannot be deleted");
        return -1;
    }
    const size_t limit = PyLong_AsSize_t(value);
    if ((limit == (size_t)-1 && PyErr_Occurred()) || mom_network_enter(self) < 0)
        return -1;
    self->gpt.memory.limit = limit;
    mom_gpt_forget_plans(&self->gpt);
    mom_network_leave(self);
    return 0;
}

/* (bytes of the region, most bytes of it in use so far, bytes in other blocks, whether the region was too small) */
static PyObject *network_get_region(mom_network *self, void *Py_UNUSED(closure)) {
    if (mom_network_enter(self) < 0)
        return NULL;
    size_t beside = 0;
    const mom_arena *arenas[] = {&self->gpt.memory.saved, &self->gpt.memory.workspace};
    for (size_t i = 0; i < 2; i++)
        for (const mom_arena_block *block = arenas[i]->top; block; block = block->previous)
            beside += block->capacity;
    const mom_region *region = &self->gpt.memory.region;
    PyObject *out = Py_BuildValue("(nnni)", (Py_ssize_t)region->capacity, (Py_ssize_t)region->peak, (Py_ssize_t)beside,
                                  region->full);
    mom_network_leave(self);
    return out;
}

/* (activations, packed, workspace): bytes of the region in use when its use was largest */
static PyObject *network_get_region_parts(mom_network *self, void *Py_UNUSED(closure)) {
    if (mom_network_enter(self) < 0)
        return NULL;
    const mom_region *region = &self->gpt.memory.region;
    PyObject *out = Py_BuildValue("(nnn)", (Py_ssize_t)region->at_peak[0], (Py_ssize_t)region->tagged_at_peak,
                                  (Py_ssize_t)(region->at_peak[1] - region->tagged_at_peak));
    mom_network_leave(self);
    return out;
}

/* ------------------------------------------------------------------ counters */

static PyObject *network_count(mom_network *self, PyObject *on) {
    const int counting = PyObject_IsTrue(on);
    if (counting < 0 || mom_network_enter(self) < 0)
        return NULL;
    if (counting)
        self->counts = (mom_counts){0};
    self->counting = counting;
    mom_network_leave(self);
    Py_RETURN_NONE;
}

/* {part: multiply-adds} of one kind of work. New reference. */
static PyObject *work_counts(const uint64_t sums[MOM_PARTS]) {
    static const char *const names[MOM_PARTS] = {"none", "qkv", "scores", "projection", "up", "down", "router", "state", "head"};
    PyObject *dict = PyDict_New();
    for (int part = 0; dict && part < MOM_PARTS; part++) {
        PyObject *value = PyLong_FromUnsignedLongLong(sums[part]); /* new reference */
        if (!value || PyDict_SetItemString(dict, names[part], value) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(value);
    }
    return dict;
}

/* (forward, backward, computed again) since counting began */
static PyObject *network_get_counts(mom_network *self, void *Py_UNUSED(closure)) {
    if (mom_network_enter(self) < 0)
        return NULL;
    const mom_counts counts = self->counts;
    mom_network_leave(self);
    PyObject *out = PyTuple_New(MOM_WORKS); /* new reference */
    for (int work = 0; out && work < MOM_WORKS; work++) {
        PyObject *dict = work_counts(counts.sums[work]);
        if (!dict)
            Py_CLEAR(out);
        else
            PyTuple_SET_ITEM(out, work, dict); /* steals */
    }
    return out;
}

static PyMethodDef network_methods[] = {
    {"forward", (PyCFunction)(void (*)(void))network_forward, METH_VARARGS | METH_KEYWORDS,
     "forward($self, tokens, lengths=None, labels=None, mask=None, positions=None, pooled=None, classes=None, values=None, "
     "label_loss=0, keep=False, training=False, checkpoint=False, rows=None, logits=False, routes=False, interventions=None, "
     "begin=None)\n--\n\n"
     "Forward pass; returns ({term: loss}, labelled, logits or None, routes or None)."},
    {"backward", (PyCFunction)network_backward, METH_O,
     "backward($self, scales, /)\n--\n\nAdd to the gradients those of the sum of loss terms, each times its scale by name."},
    {"plan", (PyCFunction)network_plan, METH_VARARGS,
     "plan($self, batch, length, tokens, keep, checkpoint, training, outputs=False, /)\n--\n\n"
     "Bytes of a labelled forward pass, by kind; with `outputs`, one in which outputs are captured or patched."},
    {"zero_grad", (PyCFunction)network_zero_grad, METH_NOARGS, "zero_grad($self, /)\n--\n\nZero all gradients."},
    {"randomize", (PyCFunction)network_randomize, METH_O, "randomize($self, seed, /)\n--\n\nFresh parameters."},
    {"logits", (PyCFunction)network_logits, METH_O,
     "logits($self, rows, /)\n--\n\nLogits (count, V) of the last forward at flat rows, None for all."},
    {"route", (PyCFunction)network_route, METH_VARARGS,
     "route($self, place, round, half, /)\n--\n\nCopies of one half's routing, None without a router."},
    {"route_counts", (PyCFunction)network_route_counts, METH_VARARGS,
     "route_counts($self, place, round, half, /)\n--\n\nKept choices per module, SKIP last; None without a router."},
    {"parameter_table", (PyCFunction)network_parameter_table, METH_NOARGS,
     "parameter_table($self, /)\n--\n\nList of (name, shape, decay)."},
    {"parameter", (PyCFunction)network_parameter, METH_O, "parameter($self, index, /)\n--\n\nView of a parameter."},
    {"set_trained", (PyCFunction)network_set_trained, METH_O,
     "set_trained($self, trained, /)\n--\n\nBackward leaves out what only parameters marked 0 need (uint8, by parameter)."},
    {"count", (PyCFunction)network_count, METH_O,
     "count($self, on, /)\n--\n\nCount the multiply-adds of all calls from now on, from zero; or stop counting."},
    {"gradient", (PyCFunction)network_gradient, METH_O, "gradient($self, index, /)\n--\n\nView of a gradient."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef network_getset[] = {
    {"used", (getter)network_get_used, (setter)network_set_used, "uint8 flag per parameter: it has a gradient", NULL},
    {"memory_limit", (getter)network_get_memory_limit, (setter)network_set_memory_limit,
     "Largest plan of a forward pass in bytes; 0: any", NULL},
    {"region", (getter)network_get_region, NULL, "(bytes, most in use, bytes beside, too small)", NULL},
    {"region_parts", (getter)network_get_region_parts, NULL, "(activations, packed, workspace) at the fullest moment", NULL},
    {"exploration", (getter)network_get_exploration, (setter)network_set_exploration,
     "(temperature, jitter) of the routers: those of the configuration, unless training goes through others.", NULL},
    {"counts", (getter)network_get_counts, NULL, "multiply-adds by part: (forward, backward, computed again)", NULL},
    {"random_state", (getter)network_get_random_state, (setter)network_set_random_state, "(seed, counter)", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot network_slots[] = {{Py_tp_new, network_new},
                                      {Py_tp_dealloc, network_dealloc},
                                      {Py_tp_methods, network_methods},
                                      {Py_tp_getset, network_getset},
                                      {Py_tp_doc, "Network(config)\n--\n\nA network in C memory; see mom.MoM."},
                                      {0, NULL}};

PyType_Spec mom_network_spec = {.name = "mom._core.Network",
                                   .basicsize = sizeof(mom_network),
                                   .flags = Py_TPFLAGS_DEFAULT,
                                   .slots = network_slots};
