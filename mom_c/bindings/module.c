/* The module mom._core: its state and its parts. No other file calls this one. */
#define MOM_IMPORT_NUMPY
#include "bindings/numpy_api.h"

#include "bindings/decoder_type.h"
#include "bindings/errors.h"
#include "bindings/model_type.h"
#include "bindings/operators.h"
#include "bindings/optimizer_type.h"
#include "bindings/plan_type.h"
#include "bindings/ranks.h"
#include "bindings/runtime.h"
#include "bindings/state.h"

/* Makes a type and adds it to the module. If `kept` is not NULL, the module's state keeps a reference. */
static int add_type(PyObject *module, const char *name, PyType_Spec *spec, PyObject **kept) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL); /* new reference */
    const int failed = !type || PyModule_AddObjectRef(module, name, type) < 0;
    if (kept)
        *kept = Py_XNewRef(type);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static int module_exec(PyObject *module) {
    import_array1(-1);
    mom_state *state = mom_get_state(module);
    mom_init_exceptions(state);
    if (add_type(module, "RoutingPlan", &mom_plan_spec, &state->plan_type) < 0 ||
        add_type(module, "Network", &mom_network_spec, &state->network_type) < 0 ||
        add_type(module, "AdamW", &mom_optimizer_spec, NULL) < 0 ||
        add_type(module, "Decoder", &mom_decoder_spec, NULL) < 0)
        return -1;
    int (*const parts[])(PyObject *) = {
        mom_add_runtime,         mom_add_layer_functions,     mom_add_linear_functions, mom_add_attention_functions,
        mom_add_loss_functions,  mom_add_optimizer_functions, mom_add_router_functions, mom_add_routed_functions,
        mom_add_test_functions,  mom_add_clipping,            mom_add_rank_functions};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i](module) < 0)
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
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&module_def); }
