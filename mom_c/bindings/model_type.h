/* The Python type of a network, and what the optimizer's type needs of it. */
#ifndef MOM_BINDINGS_MODEL_TYPE_H
#define MOM_BINDINGS_MODEL_TYPE_H

#include "bindings/numpy_api.h"

#include "bindings/network_interventions.h"
#include "bindings/runtime.h"
#include "model/gpt.h"

typedef struct {
    PyObject_HEAD
    mom_gpt gpt;
    mom_held_interventions *held; /* of the last forward pass, which backward reads; or NULL */
    mom_counts counts; /* while `counting`, of all calls */
    int counting;
    _Atomic int owner; /* id of the process with the thread that has claimed the network, 0: none */
} mom_network;

extern PyType_Spec mom_network_spec;

/* Claims the network for the calling thread. Returns -1 with a RuntimeError set if another thread has claimed it. After
 * a fork the claims of the parent's threads do not count. */
int mom_network_enter(mom_network *self);
void mom_network_leave(mom_network *self);

/* Kernels and threads for a call, and the network's counters if it counts. */
static inline mom_exec mom_network_exec(mom_network *self) {
    mom_exec exec = mom_current_exec(NULL);
    exec.counts = self->counting ? &self->counts : NULL;
    return exec;
}

/* A view of parameter i in `block`, an array laid out like the parameters. The view keeps `owner` alive. */
PyObject *mom_network_view(mom_network *self, PyObject *owner, Py_ssize_t i, float *block);

#endif
