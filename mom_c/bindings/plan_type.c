/* _core.RoutingPlan: immutable, made by _core.routing_plan and _core.routing_plan_dense. Its arrays are read-only views
 * that keep the plan alive. */
#include "bindings/plan_type.h"

#include <stddef.h>
#include <structmember.h>

#include "bindings/convert.h"
#include "bindings/state.h"

mom_plan_object *mom_plan_new(PyObject *module) {
    PyTypeObject *type = (PyTypeObject *)mom_get_state(module)->plan_type;
    mom_plan_object *self = (mom_plan_object *)type->tp_alloc(type, 0);
    if (self)
        mom_arena_init(&self->arena, "routing plan");
    return self;
}

static void plan_dealloc(mom_plan_object *self) {
    PyTypeObject *type = Py_TYPE(self);
    mom_arena_free(&self->arena);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* A read-only view. */
static PyObject *view(mom_plan_object *self, int32_t *data, int ndim, const npy_intp *dims) {
    PyObject *array = mom_view_array(ndim, dims, NPY_INT32, data, (PyObject *)self); /* new reference */
    if (array)
        PyArray_CLEARFLAGS((PyArrayObject *)array, NPY_ARRAY_WRITEABLE);
    return array;
}

static PyObject *plan_offsets(mom_plan_object *self, void *Py_UNUSED(closure)) {
    return view(self, self->plan.offsets, 1, (npy_intp[]){(npy_intp)self->plan.M + 1});
}

static PyObject *plan_token(mom_plan_object *self, void *Py_UNUSED(closure)) {
    return view(self, self->plan.token, 1, (npy_intp[]){(npy_intp)self->plan.slots});
}

static PyObject *plan_choice(mom_plan_object *self, void *Py_UNUSED(closure)) {
    return view(self, self->plan.choice, 1, (npy_intp[]){(npy_intp)self->plan.slots});
}

static PyObject *plan_slot(mom_plan_object *self, void *Py_UNUSED(closure)) {
    return view(self, self->plan.slot, 2, (npy_intp[]){(npy_intp)self->plan.N, (npy_intp)self->plan.K});
}

static PyObject *plan_counts(mom_plan_object *self, void *Py_UNUSED(closure)) {
    const npy_intp dims[1] = {(npy_intp)self->plan.M};
    PyObject *array = PyArray_SimpleNew(1, dims, NPY_INT32); /* new reference */
    if (!array)
        return NULL;
    int32_t *counts = PyArray_DATA((PyArrayObject *)array);
    for (size_t m = 0; m < self->plan.M; m++)
        counts[m] = self->plan.offsets[m + 1] - self->plan.offsets[m];
    return array;
}

static PyObject *plan_repr(mom_plan_object *self) {
    return PyUnicode_FromFormat("RoutingPlan(num_tokens=%zu, num_choices=%zu, num_modules=%zu, num_slots=%zu)",
                                self->plan.N, self->plan.K, self->plan.M, self->plan.slots);
}

static PyGetSetDef plan_getset[] = {
    {"offsets", (getter)plan_offsets, NULL, "int32 (M + 1,): slots of module m are offsets[m] to offsets[m + 1]", NULL},
    {"counts", (getter)plan_counts, NULL, "int32 (M,): slots per module", NULL},
    {"token", (getter)plan_token, NULL, "int32 (num_slots,): token of a slot", NULL},
    {"choice", (getter)plan_choice, NULL, "int32 (num_slots,): which of the token's K choices a slot is", NULL},
    {"slot", (getter)plan_slot, NULL, "int32 (N, K): slot of a choice, -1 for SKIP", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMemberDef plan_members[] = {
    {"num_tokens", T_PYSSIZET, offsetof(mom_plan_object, plan.N), READONLY, "N"},
    {"num_choices", T_PYSSIZET, offsetof(mom_plan_object, plan.K), READONLY, "K"},
    {"num_modules", T_PYSSIZET, offsetof(mom_plan_object, plan.M), READONLY, "M"},
    {"num_slots", T_PYSSIZET, offsetof(mom_plan_object, plan.slots), READONLY, "number of choices that are modules"},
    {NULL, 0, 0, 0, NULL}};

static PyType_Slot plan_slots[] = {{Py_tp_dealloc, plan_dealloc},
                                   {Py_tp_getset, plan_getset},
                                   {Py_tp_members, plan_members},
                                   {Py_tp_repr, plan_repr},
                                   {Py_tp_doc, "Tokens sorted by module; see mom.ops.routing_plan."},
                                   {0, NULL}};

PyType_Spec mom_plan_spec = {.name = "mom._core.RoutingPlan",
                                .basicsize = sizeof(mom_plan_object),
                                .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                .slots = plan_slots};
