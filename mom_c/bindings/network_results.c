#include "bindings/network_results.h"

#include "bindings/convert.h"
#include "bindings/errors.h"
#include "bindings/routes.h"

PyObject *mom_logits(mom_network *self, const int32_t *rows, size_t count) {
    mom_gpt *gpt = &self->gpt;
    const npy_intp dims[2] = {(npy_intp)(rows ? count : gpt->last.pass.N), (npy_intp)gpt->config.V};
    PyObject *out = PyArray_SimpleNew(2, dims, NPY_FLOAT32); /* new reference */
    if (!out)
        return NULL;
    const mom_exec exec = mom_network_exec(self);
    float *data = PyArray_DATA((PyArrayObject *)out);
    mom_error err;
    mom_status status;
    Py_BEGIN_ALLOW_THREADS
    status = mom_gpt_logits(gpt, &exec, data, rows, (size_t)dims[0], &err);
    Py_END_ALLOW_THREADS
    if (status == MOM_OK)
        return out;
    Py_DECREF(out);
    return mom_raise((PyObject *)Py_TYPE(self), &err);
}

PyObject *mom_pooled_logits(mom_network *self) {
    const mom_gpt *gpt = &self->gpt;
    const npy_intp dims[2] = {(npy_intp)gpt->last.pass.B, (npy_intp)gpt->config.num_labels};
    return mom_copy_array(2, dims, NPY_FLOAT32, gpt->last.pooled_logits);
}

/* Adds the entry of one half-round, if it has a router. */
static int add_route(PyObject *dict, const mom_gpt *gpt, size_t place, size_t round, int half) {
    const mom_pool *pool = mom_place_pool(&gpt->params.places[place], half);
    if (!pool->routed)
        return 0;
    const mom_route *r = &gpt->last.halves[place][2 * round + (size_t)half].route;
    PyObject *key = Py_BuildValue("(nni)", (Py_ssize_t)place, (Py_ssize_t)round, half);    /* new reference */
    PyObject *entry = mom_copy_route(pool, gpt->last.pass.N, r->K, r->scores, r->index, r->kept); /* new reference */
    const int failed = !key || !entry || PyDict_SetItem(dict, key, entry) < 0;
    Py_XDECREF(key);
    Py_XDECREF(entry);
    return failed ? -1 : 0;
}

PyObject *mom_routes(mom_network *self) {
    const mom_gpt *gpt = &self->gpt;
    PyObject *dict = PyDict_New(); /* new reference */
    for (size_t place = 0; dict && place < gpt->params.num_places; place++)
        for (size_t entry = 0; dict && entry < 2 * gpt->params.places[place].rounds; entry++)
            if (add_route(dict, gpt, place, entry / 2, (int)(entry % 2)) < 0)
                Py_CLEAR(dict);
    return dict;
}
