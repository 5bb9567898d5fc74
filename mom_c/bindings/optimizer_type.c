/* _core.AdamW: moments and step counts for the parameters of one network. Also the function clip_grad_norm. */
#include "bindings/optimizer_type.h"

#include <math.h>
#include <string.h>

#include "bindings/convert.h"
#include "bindings/errors.h"
#include "bindings/model_type.h"
#include "bindings/runtime.h"
#include "bindings/state.h"
#include "model/balance_bias.h"
#include "model/shards.h"
#include "ops/adamw.h"

typedef struct {
    PyObject_HEAD
    mom_network *network; /* strong reference */
    Py_ssize_t rank, ranks;      /* it updates the shard of this rank, all parameters if `ranks` is 1 */
    size_t begin, end;           /* the shard: a range of the parameters' block (model/shards.h) */
    float *exp_avg, *exp_avg_sq; /* of the shard, laid out like the parameters */
    double *steps;               /* one per parameter */
    uint8_t *held;               /* by parameter: this optimizer is counted in its mom_gradient.held */
    uint8_t *fresh;              /* by row of wte, then wpe: no gradient so far, and no caller has seen the moments */
} mom_optimizer;

/* The part of parameter i that the optimizer updates; *begin counts from the parameter's first element. Returns its size. */
static size_t part_of(const mom_optimizer *o, size_t i, size_t *begin) {
    const mom_param *param = &o->network->gpt.params.table[i];
    const size_t first = o->begin > param->offset ? mom_min(o->begin - param->offset, param->count) : 0;
    const size_t last = o->end > param->offset ? mom_min(o->end - param->offset, param->count) : 0;
    *begin = first;
    return last > first ? last - first : 0;
}

/* The part of `fresh` that belongs to embedding i, which is wte or wpe. */
static uint8_t *fresh_rows(const mom_params *p, const mom_optimizer *o, size_t i) {
    return o->fresh + (i == p->wte ? 0 : p->table[p->wte].dims[0]);
}

/* Counts the moments of parameter i as memory in use. Their pages take up memory from the parameter's first step, or
 * from the moment a caller looks at them. Moments of parameters that are not trained cost nothing. */
static void hold(mom_optimizer *self, size_t i) {
    mom_gradient *gradient = &self->network->gpt.gradients.table[i];
    if (self->held[i])
        return;
    self->held[i] = 1;
    gradient->held++;
    if (!gradient->trained)
        mom_gpt_forget_plans(&self->network->gpt);
}

/* Gives the entry of parameter i its moments, and reduces it to the part that the optimizer updates. */
static void add_moments(mom_adamw_tensor *tensor, const mom_optimizer *o, size_t i) {
    const mom_param *param = &o->network->gpt.params.table[i];
    size_t begin;
    tensor->step = o->steps[i];
    tensor->n = part_of(o, i, &begin);
    if (!tensor->n)
        return;
    tensor->param += begin;
    tensor->grad += begin;
    tensor->exp_avg = o->exp_avg + (param->offset + begin - o->begin);
    tensor->exp_avg_sq = o->exp_avg_sq + (param->offset + begin - o->begin);
    if (tensor->width) {
        tensor->touched = tensor->touched ? tensor->touched + begin / tensor->width : NULL;
        tensor->fresh += begin / tensor->width;
    }
}

/* Makes a list with one entry per parameter. Without an optimizer, the moments are NULL. */
static mom_adamw_tensor *list_tensors(mom_gpt *gpt, const mom_optimizer *o, mom_error *err) {
    const mom_params *p = &gpt->params;
    const mom_gradients *g = &gpt->gradients;
    mom_adamw_tensor *list = mom_memory_alloc(p->count, sizeof *list, "optimizer", err);
    for (size_t i = 0; list && i < p->count; i++) {
        const mom_param *param = &p->table[i];
        const mom_gradient *gradient = &g->table[i];
        list[i] = (mom_adamw_tensor){.param = mom_param_value(p, i), .grad = mom_param_grad(g, p, i),
                                     .n = param->count, .decay = param->decay,
                                     .used = gradient->used && param->rule == MOM_RULE_OPTIMIZER,
                                     .leave_grad = !g->shown && (gradient->overwrite || !gradient->written)};
        if (gradient->touched) {
            list[i].width = param->dims[1];
            list[i].touched = g->shown ? NULL : gradient->touched;
            list[i].fresh = o ? fresh_rows(p, o, i) : NULL;
        }
        if (o)
            add_moments(&list[i], o, i);
    }
    return list;
}

/* Allocates what the optimizer holds; `fresh` is the last of it. */
static mom_status allocate(mom_optimizer *self, mom_error *err) {
    const mom_params *p = &self->network->gpt.params;
    const size_t rows = p->table[p->wte].dims[0] + p->table[p->wpe].dims[0], size = self->end - self->begin;
    self->exp_avg = mom_memory_calloc(size, sizeof(float), "optimizer", err);
    if (self->exp_avg)
        self->exp_avg_sq = mom_memory_calloc(size, sizeof(float), "optimizer", err);
    if (self->exp_avg_sq)
        self->steps = mom_memory_calloc(p->count, sizeof(double), "optimizer", err);
    if (self->steps)
        self->held = mom_memory_calloc(p->count, 1, "optimizer", err);
    if (self->held)
        self->fresh = mom_memory_alloc(rows, 1, "optimizer", err);
    if (!self->fresh)
        return MOM_ERR_MEMORY;
    memset(self->fresh, 1, rows);
    return MOM_OK;
}

/* Lets memory plans count this optimizer. */
static void count_optimizer(const mom_optimizer *self) {
    mom_gpt *gpt = &self->network->gpt;
    gpt->gradients.optimizers++;
    for (size_t i = 0; i < gpt->params.count; i++) {
        size_t begin;
        gpt->gradients.table[i].moments =
            self->ranks == 1 ? mom_param_floats(gpt->params.table[i].count) : part_of(self, i, &begin);
    }
    mom_gpt_forget_plans(gpt);
}

static PyObject *optimizer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"network", "rank", "ranks", NULL};
    mom_state *state = PyType_GetModuleState(type);
    PyObject *network;
    Py_ssize_t rank = 0, ranks = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|nn:AdamW", names, state->network_type, &network, &rank, &ranks))
        return NULL;
    if (rank < 0 || rank >= ranks)
        return PyErr_Format(PyExc_ValueError, "rank: %zd is not in [0, %zd)", rank, ranks);
    mom_optimizer *self = (mom_optimizer *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->network = (mom_network *)Py_NewRef(network);
    if (mom_network_enter(self->network) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    const mom_params *p = &self->network->gpt.params;
    mom_error err;
    self->rank = rank;
    self->ranks = ranks;
    self->begin = mom_shard_begin(p, (size_t)rank, (size_t)ranks);
    self->end = mom_shard_begin(p, (size_t)rank + 1, (size_t)ranks);
    const mom_status status = allocate(self, &err);
    if (status == MOM_OK)
        count_optimizer(self);
    mom_network_leave(self->network);
    if (status == MOM_OK)
        return (PyObject *)self;
    mom_raise((PyObject *)type, &err);
    Py_DECREF(self);
    return NULL;
}

/* Deallocation must not fail, so it cannot claim the network, and another thread may be computing. It changes only
 * atomic counts of the network, which memory plans read. */
static void optimizer_dealloc(mom_optimizer *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (self->fresh) { /* `fresh` is allocated last, so the optimizer is complete */
        mom_gpt *gpt = &self->network->gpt;
        for (size_t i = 0; i < gpt->params.count; i++)
            gpt->gradients.table[i].held -= self->held[i];
        gpt->gradients.optimizers--;
    }
    mom_memory_free(self->exp_avg);
    mom_memory_free(self->exp_avg_sq);
    mom_memory_free(self->steps);
    mom_memory_free(self->held);
    mom_memory_free(self->fresh);
    Py_XDECREF(self->network);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* A step's clipping. */
typedef struct {
    int wanted;
    double max_norm, norm;      /* norm: the result */
    PyArrayObject *all_squares; /* sums of squares of all ranks' gradients, one rank after the other; or NULL (borrowed) */
} clipping;

/* Makes a step. If clipping is wanted, the step multiplies each gradient by the clipping factor as it reads the
 * gradient. If asked for, it zeroes each gradient while it is still in a cache. If the norm is not finite, nothing
 * changes. */
static mom_status clipped_step(const mom_exec *exec, mom_optimizer *self, mom_adamw_tensor *list, mom_adamw_spec *spec,
                               clipping *clip, mom_error *err) {
    mom_gpt *gpt = &self->network->gpt;
    const size_t count = gpt->params.count;
    if (clip->wanted) {
        if (clip->all_squares)
            clip->norm = mom_norm_of_squares(PyArray_DATA(clip->all_squares), (size_t)PyArray_SIZE(clip->all_squares));
        else
            MOM_TRY(mom_grad_norm(exec, &clip->norm, list, count, err));
        if (!isfinite(clip->norm))
            return MOM_OK;
        spec->grad_scale = mom_clip_factor(clip->norm, clip->max_norm);
    }
    mom_balance_biases(&gpt->params, &gpt->gradients, gpt->config.bias_rate, self->begin, self->end);
    mom_adamw_step(exec, list, count, spec); /* may zero all gradients */
    for (size_t i = 0; i < count; i++) {
        self->steps[i] = list[i].step;
        if (list[i].used)
            hold(self, i);
    }
    if (!spec->zero_grad)
        return MOM_OK;
    if (self->ranks == 1)
        mom_gpt_forget_grad(gpt);
    else /* the gradients of the other ranks' shards are there still */
        mom_gpt_zero_grad(gpt, exec);
    return MOM_OK;
}

/* Reads max_norm and squares; None switches either off. Returns 0 or -1. */
static int read_clipping(clipping *clip, PyObject *max_norm, PyObject *squares) {
    *clip = (clipping){.wanted = max_norm != Py_None};
    const npy_intp any[1] = {-1};
    if (squares != Py_None && !(clip->all_squares = mom_check_array(squares, "squares", NPY_FLOAT64, 1, any, 0)))
        return -1;
    if (!clip->wanted)
        return 0;
    clip->max_norm = PyFloat_AsDouble(max_norm);
    return clip->max_norm == -1.0 && PyErr_Occurred() ? -1 : 0;
}

static PyObject *optimizer_step(mom_optimizer *self, PyObject *args) {
    mom_adamw_spec spec = {.grad_scale = 1.0f};
    PyObject *max_norm, *squares = Py_None;
    clipping clip;
    if (!PyArg_ParseTuple(args, "dddddOp|O:step", &spec.lr, &spec.beta1, &spec.beta2, &spec.eps, &spec.weight_decay,
                          &max_norm, &spec.zero_grad, &squares) ||
        read_clipping(&clip, max_norm, squares) < 0)
        return NULL;
    mom_gpt *gpt = &self->network->gpt;
    mom_error err;
    if (mom_network_enter(self->network) < 0)
        return NULL;
    mom_status status = MOM_OK;
    if (gpt->gradients.values) { /* otherwise no parameter has a gradient yet */
        mom_adamw_tensor *list = list_tensors(gpt, self, &err);
        status = list ? MOM_OK : MOM_ERR_MEMORY;
        if (list) {
            const mom_exec exec = mom_current_exec(&gpt->memory.workspace);
            MOM_WITHOUT_GIL(status = clipped_step(&exec, self, list, &spec, &clip, &err));
        }
        mom_memory_free(list);
    }
    mom_network_leave(self->network);
    if (status != MOM_OK)
        return mom_raise((PyObject *)Py_TYPE(self), &err);
    return clip.wanted ? PyFloat_FromDouble(clip.norm) : Py_NewRef(Py_None);
}

/* Sums of squares of the gradients in the shard. Those of all ranks, in their order, give the norm of all gradients. */
static PyObject *optimizer_squares(mom_optimizer *self, PyObject *Py_UNUSED(ignored)) {
    mom_gpt *gpt = &self->network->gpt;
    mom_error err;
    if (mom_network_enter(self->network) < 0)
        return NULL;
    PyObject *out = NULL;
    mom_adamw_tensor *list = list_tensors(gpt, self, &err);
    const npy_intp dims[1] = {list && gpt->gradients.values ? (npy_intp)mom_grad_chunks(list, gpt->params.count) : 0};
    if (!list)
        mom_raise((PyObject *)Py_TYPE(self), &err);
    else if ((out = PyArray_SimpleNew(1, dims, NPY_FLOAT64)) && dims[0]) { /* new reference */
        const mom_exec exec = mom_current_exec(&gpt->memory.workspace);
        double *squares = PyArray_DATA((PyArrayObject *)out);
        MOM_WITHOUT_GIL(mom_grad_squares(&exec, squares, list, gpt->params.count));
    }
    mom_memory_free(list);
    mom_network_leave(self->network);
    return out;
}

static PyObject *moment_view(mom_optimizer *self, PyObject *arg, float *block) {
    const Py_ssize_t i = PyNumber_AsSsize_t(arg, PyExc_IndexError);
    if (i == -1 && PyErr_Occurred())
        return NULL;
    const mom_params *p = &self->network->gpt.params;
    if (i >= 0 && (size_t)i < p->count) {
        if (mom_network_enter(self->network) < 0)
            return NULL;
        if (self->network->gpt.gradients.table[i].touched)
            memset(fresh_rows(p, self, (size_t)i), 0, p->table[i].dims[0]);
        hold(self, (size_t)i);
        mom_network_leave(self->network);
    }
    if (self->ranks == 1 || i < 0 || (size_t)i >= p->count)
        return mom_network_view(self->network, (PyObject *)self, i, block);
    size_t begin;
    const npy_intp dims[1] = {(npy_intp)part_of(self, (size_t)i, &begin)};
    return mom_view_array(1, dims, NPY_FLOAT32, dims[0] ? block + (p->table[i].offset + begin - self->begin) : block,
                          (PyObject *)self);
}

static PyObject *optimizer_exp_avg(mom_optimizer *self, PyObject *arg) { return moment_view(self, arg, self->exp_avg); }
static PyObject *optimizer_exp_avg_sq(mom_optimizer *self, PyObject *arg) {
    return moment_view(self, arg, self->exp_avg_sq);
}

static PyObject *optimizer_get_steps(mom_optimizer *self, void *Py_UNUSED(closure)) {
    const npy_intp dims[1] = {(npy_intp)self->network->gpt.params.count};
    return mom_view_array(1, dims, NPY_FLOAT64, self->steps, (PyObject *)self);
}

static PyMethodDef optimizer_methods[] = {
    {"step", (PyCFunction)optimizer_step, METH_VARARGS,
     "step($self, lr, beta1, beta2, eps, weight_decay, max_norm, zero_grad, squares=None, /)\n--\n\n"
     "Update every parameter that has a gradient; the norm before clipping, None without max_norm. squares: those of all "
     "ranks, for the norm."},
    {"squares", (PyCFunction)optimizer_squares, METH_NOARGS,
     "squares($self, /)\n--\n\nSums of squares (float64) of the gradients, by chunk."},
    {"exp_avg", (PyCFunction)optimizer_exp_avg, METH_O,
     "exp_avg($self, index, /)\n--\n\nView of a first moment; with several ranks, of the part in the shard, flat."},
    {"exp_avg_sq", (PyCFunction)optimizer_exp_avg_sq, METH_O, "exp_avg_sq($self, index, /)\n--\n\nView of a second moment."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef optimizer_getset[] = {
    {"steps", (getter)optimizer_get_steps, NULL, "float64 view: updates each parameter has had", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot optimizer_slots[] = {{Py_tp_new, optimizer_new},
                                        {Py_tp_dealloc, optimizer_dealloc},
                                        {Py_tp_methods, optimizer_methods},
                                        {Py_tp_getset, optimizer_getset},
                                        {Py_tp_doc, "AdamW(network, rank=0, ranks=1)\n--\n\nMoments of a network's parameters, or of a rank's shard; see mom.AdamW."},
                                        {0, NULL}};

PyType_Spec mom_optimizer_spec = {.name = "mom._core.AdamW",
                                     .basicsize = sizeof(mom_optimizer),
                                     .flags = Py_TPFLAGS_DEFAULT,
                                     .slots = optimizer_slots};

static PyObject *clip_grad_norm(PyObject *module, PyObject *args) {
    PyObject *object;
    double max_norm, norm = 0.0;
    mom_state *state = mom_get_state(module);
    if (!PyArg_ParseTuple(args, "O!d:clip_grad_norm", state->network_type, &object, &max_norm))
        return NULL;
    mom_network *network = (mom_network *)object;
    mom_gpt *gpt = &network->gpt;
    mom_error err;
    if (mom_network_enter(network) < 0)
        return NULL;
    if (!gpt->gradients.values) {
        mom_network_leave(network);
        return PyFloat_FromDouble(0.0);
    }
    mom_adamw_tensor *list = list_tensors(gpt, NULL, &err);
    mom_status status = list ? MOM_OK : MOM_ERR_MEMORY;
    if (list) {
        const mom_exec exec = mom_current_exec(&gpt->memory.workspace);
        Py_BEGIN_ALLOW_THREADS
        status = mom_grad_norm(&exec, &norm, list, gpt->params.count, &err);
        const float factor = mom_clip_factor(norm, max_norm);
        if (status == MOM_OK && factor < 1.0f)
            mom_grad_scale(&exec, list, gpt->params.count, factor);
        Py_END_ALLOW_THREADS
    }
    mom_network_leave(network);
    mom_memory_free(list);
    return status == MOM_OK ? PyFloat_FromDouble(norm) : mom_raise(module, &err);
}

static PyMethodDef functions[] = {
    {"clip_grad_norm", clip_grad_norm, METH_VARARGS,
     "clip_grad_norm($module, network, max_norm, /)\n--\n\nScale gradients to at most max_norm; returns the norm before."},
    {NULL, NULL, 0, NULL}};

int mom_add_clipping(PyObject *module) { return PyModule_AddFunctions(module, functions); }
