/* sigd.models.native._kernels: engines and runners for Python. */
#include "module.h"

#define STRING_(x) #x
#define STRING(x) STRING_(x)
/* From here on a batch takes some 20 us, beside which letting go of Python's lock costs nothing. */
#define UNLOCK_MACS (1u << 20)

typedef struct {
    PyObject_HEAD
    struct engine *engine;
} Engine;

typedef struct {
    PyObject_HEAD
    PyObject *owner; /* the Engine */
    struct runner *runner;
    Py_buffer inputs, outputs;
} Runner;

static PyTypeObject *engine_type, *runner_type;

void free_object(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* -- engines --------------------------------------------------------------------------------------------------- */

static PyObject *load(PyObject *module, PyObject *args, PyObject *keywords) {
    static char *names[] = {"plan", "instruction_set", NULL};
    Py_buffer plan;
    const char *name = NULL;
    char error[ERROR_BYTES] = "";
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*|z", names, &plan, &name)) return NULL;
    const struct isa *isa = isa_find(name);
    if (!isa) {
        PyBuffer_Release(&plan);
        return PyErr_Format(PyExc_LookupError, "this processor does not have the instruction set %s", name);
    }
    struct engine *made;
    Py_BEGIN_ALLOW_THREADS
    made = engine_load(plan.buf, (size_t)plan.len, isa, error, sizeof error);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&plan);
    if (!made) {
        PyErr_SetString(PyExc_ValueError, error);
        return NULL;
    }
    Engine *self = PyObject_New(Engine, engine_type);
    if (self) self->engine = made;
    else engine_free(made);
    return (PyObject *)self;
}

static void engine_dealloc(PyObject *self) {
    engine_free(((Engine *)self)->engine);
    free_object(self);
}

static PyObject *engine_number(PyObject *self, void *which) {
    const struct engine *e = ((Engine *)self)->engine;
    return PyLong_FromUnsignedLongLong(which == (void *)0 ? e->features : which == (void *)1 ? e->outputs : e->macs);
}

static PyObject *engine_instruction_set(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(((Engine *)self)->engine->isa->name);
}

static PyGetSetDef engine_members[] = {
    {"features", engine_number, NULL, "floats of a row", (void *)0},
    {"outputs", engine_number, NULL, "floats of an answer", (void *)1},
    {"macs", engine_number, NULL, "multiplications for a row, roughly", (void *)2},
    {"instruction_set", engine_instruction_set, NULL, "which build of the kernels runs it", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* -- runners --------------------------------------------------------------------------------------------------- */

static int bind(PyObject *array, Py_buffer *view, const char *what, uint32_t columns, Py_ssize_t *rows) {
    if (PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE | PyBUF_FORMAT)) return -1;
    if (view->itemsize == sizeof(float) && view->format && !strcmp(view->format, "f") && view->ndim == 2 &&
        view->shape[1] == (Py_ssize_t)columns && view->shape[0] >= 1 && view->shape[0] <= INT32_MAX) {
        *rows = view->shape[0];
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "%s: expected a float32 array of shape (rows, %u)", what, columns);
    return -1;
}

static PyObject *make_runner(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"inputs", "outputs", NULL};
    const struct engine *e = ((Engine *)self)->engine;
    PyObject *inputs, *outputs;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO", names, &inputs, &outputs)) return NULL;
    Runner *made = PyObject_New(Runner, runner_type);
    if (!made) return NULL;
    made->owner = Py_NewRef(self);
    made->runner = NULL;
    memset(&made->inputs, 0, sizeof made->inputs);
    memset(&made->outputs, 0, sizeof made->outputs);
    Py_ssize_t rows, answers;
    if (bind(inputs, &made->inputs, "inputs", e->features, &rows) || bind(outputs, &made->outputs, "outputs", e->outputs, &answers))
        goto failed;
    if (rows != answers) {
        PyErr_Format(PyExc_ValueError, "inputs has %zd rows and outputs %zd", rows, answers);
        goto failed;
    }
    made->runner = runner_new(e, (uint32_t)rows);
    if (made->runner) return (PyObject *)made;
    PyErr_NoMemory();
failed:
    Py_DECREF(made);
    return NULL;
}

static void runner_dealloc(PyObject *self) {
    Runner *r = (Runner *)self;
    runner_free(r->runner);
    PyBuffer_Release(&r->inputs);
    PyBuffer_Release(&r->outputs);
    Py_XDECREF(r->owner);
    free_object(self);
}

static PyObject *runner_run(PyObject *self, PyObject *argument) {
    const Runner *r = (Runner *)self;
    const struct sigd_runner *facts = &r->runner->facts;
    const long rows = PyLong_AsLong(argument);
    if (rows == -1 && PyErr_Occurred()) return NULL;
    if (rows < 1 || rows > (long)facts->rows_max)
        return PyErr_Format(PyExc_ValueError, "a batch of %ld rows, expected 1 to %u", rows, facts->rows_max);
    if (r->runner->engine->macs * (uint64_t)rows < UNLOCK_MACS) {
        facts->run(facts->engine, r->inputs.buf, r->outputs.buf, (int)rows);
    } else {
        Py_BEGIN_ALLOW_THREADS
        facts->run(facts->engine, r->inputs.buf, r->outputs.buf, (int)rows);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static void release_owner(PyObject *capsule) { Py_XDECREF((PyObject *)PyCapsule_GetContext(capsule)); }

PyObject *capsule_in(PyObject *owner, void *what, const char *name) {
    PyObject *capsule = PyCapsule_New(what, name, release_owner);
    if (capsule && PyCapsule_SetContext(capsule, owner)) {
        Py_DECREF(capsule);
        return NULL;
    }
    if (capsule) Py_INCREF(owner);
    return capsule;
}

static PyObject *runner_capsule(PyObject *self, void *unused) {
    (void)unused;
    return capsule_in(self, &((Runner *)self)->runner->facts, SIGD_RUNNER_CAPSULE);
}

static PyObject *engine_sliding(PyObject *self, PyObject *args, PyObject *keywords) {
    return make_sliding(self, ((Engine *)self)->engine, args, keywords);
}

static PyMethodDef engine_methods[] = {
    {"runner", (PyCFunction)(void (*)(void))make_runner, METH_VARARGS | METH_KEYWORDS,
     "runner(inputs, outputs): runs batches between two float32 arrays, (rows, features) and (rows, outputs)"},
    {"sliding", (PyCFunction)(void (*)(void))engine_sliding, METH_VARARGS | METH_KEYWORDS,
     "sliding(steps, time_axis=1): answers the newest of so many steps from what it kept. Raises ValueError where the model does"
     " not allow it."},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef runner_methods[] = {
    {"run", runner_run, METH_O, "run(rows): answer the first rows of its inputs"},
    {NULL, NULL, 0, NULL},
};

static PyObject *runner_engine(PyObject *self, void *unused) {
    (void)unused;
    return Py_NewRef(((Runner *)self)->owner);
}

static PyGetSetDef runner_members[] = {
    {"engine", runner_engine, NULL, "what it runs", NULL},
    {"capsule", runner_capsule, NULL, "what C code runs it by: see engine.h", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* -- the module ------------------------------------------------------------------------------------------------ */

static PyObject *instruction_sets(PyObject *module, PyObject *unused) {
    static const char *const names[] = {"avx512", "avx2", "plain"};
    (void)module;
    (void)unused;
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < sizeof names / sizeof *names; i++) {
        if (!isa_find(names[i])) continue;
        PyObject *name = PyUnicode_FromString(names[i]);
        if (!name || PyList_Append(list, name)) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

static PyMethodDef module_methods[] = {
    {"load", (PyCFunction)(void (*)(void))load, METH_VARARGS | METH_KEYWORDS,
     "load(plan, instruction_set=None): check a plan and make an engine of it. Raises ValueError where it is no good plan."},
    {"instruction_sets", instruction_sets, METH_NOARGS, "the builds of the kernels that this processor can run, best first"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_dealloc, engine_dealloc}, {Py_tp_methods, engine_methods}, {Py_tp_getset, engine_members}, {0, NULL}};
static PyType_Slot runner_slots[] = {
    {Py_tp_dealloc, runner_dealloc}, {Py_tp_methods, runner_methods}, {Py_tp_getset, runner_members}, {0, NULL}};
static PyType_Spec engine_spec = {"sigd.models.native._kernels.Engine", sizeof(Engine), 0, TYPE_FLAGS, engine_slots};
static PyType_Spec runner_spec = {"sigd.models.native._kernels.Runner", sizeof(Runner), 0, TYPE_FLAGS, runner_slots};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", "Native engines: plans that are data, run by kernels in C.", -1, module_methods,
    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) {
    PyObject *module = PyModule_Create(&definition);
    engine_type = (PyTypeObject *)PyType_FromSpec(&engine_spec);
    runner_type = (PyTypeObject *)PyType_FromSpec(&runner_spec);
    if (!module || !engine_type || !runner_type || PyModule_AddType(module, engine_type) || PyModule_AddType(module, runner_type) ||
        add_sliding_types(module) || PyModule_AddStringConstant(module, "__version__", STRING(PLAN_VERSION))) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
