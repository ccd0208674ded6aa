/* Sliding windows for Python: see sliding.h. */
#include "columns.h"
#include "module.h"

typedef struct {
    PyObject_HEAD
    PyObject *owner; /* the Engine */
    struct sliding sliding;
} Sliding;

enum { ROWS, STORED, BEGIN, STATES, VIEWS };

typedef struct {
    PyObject_HEAD
    PyObject *owner; /* the Sliding */
    struct windows windows;
    Py_buffer views[VIEWS];
} Windows;

static PyTypeObject *sliding_type, *windows_type;

static int is_recurrent(const struct engine *e) {
    for (uint32_t i = 0; i < e->ops; i++)
        if (e->op[i].plan.kind == PLAN_LSTM || e->op[i].plan.kind == PLAN_GRU) return 1;
    return 0;
}

/* The view of steps, or of columns; -1 with the reason in `error`. Without Python's lock, for it looks at every value of
 * the window. */
static int make_views(const struct engine *engine, uint32_t steps, uint32_t axis, struct sliding *into, char *error) {
    struct step_view *view = NULL;
    struct column_view *columns = NULL;
    int failed = -1;
    char why_no_columns[ERROR_BYTES] = "";
    PyThreadState *python = PyEval_SaveThread();
    if (axis == 1) view = step_view_new(engine, steps, error, ERROR_BYTES);
    if (view) failed = sliding_begin(into, view);
    else columns = column_view_new(engine, steps, axis, why_no_columns, sizeof why_no_columns);
    if (columns) failed = columns_begin(into, columns, engine);
    PyEval_RestoreThread(python);
    if (view || columns) return failed ? (PyErr_NoMemory(), -1) : 0;
    const char *why = axis == 1 && is_recurrent(engine) ? error : why_no_columns;
    PyErr_Format(PyExc_ValueError, "%s", why);
    return -1;
}

PyObject *make_sliding(PyObject *owner, const struct engine *engine, PyObject *args, PyObject *keywords) {
    static char *names[] = {"steps", "time_axis", NULL};
    char error[ERROR_BYTES] = "";
    unsigned long long steps;
    unsigned int axis = 1;
    PyObject *given;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|I", names, &given, &axis)) return NULL;
    steps = PyLong_AsUnsignedLongLong(given);
    if (steps == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
    if (steps > UINT32_MAX || axis < 1 || axis > 2)
        return PyErr_Format(PyExc_ValueError, "a window of %llu steps along axis %u", steps, axis);
    Sliding *made = PyObject_New(Sliding, sliding_type);
    if (!made) return NULL;
    made->owner = Py_NewRef(owner);
    memset(&made->sliding, 0, sizeof made->sliding);
    if (!make_views(engine, (uint32_t)steps, axis, &made->sliding, error)) return (PyObject *)made;
    Py_DECREF(made);
    return NULL;
}

static void sliding_dealloc(PyObject *self) {
    sliding_end(&((Sliding *)self)->sliding);
    Py_XDECREF(((Sliding *)self)->owner);
    free_object(self);
}

static PyObject *advance(PyObject *self, PyObject *nothing) {
    (void)nothing;
    return PyBool_FromLong(sliding_advance(&((Sliding *)self)->sliding));
}

static PyObject *place_floats(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(((Sliding *)self)->sliding.place_floats);
}

static PyObject *keeps_columns(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(((Sliding *)self)->sliding.columns != NULL);
}

/* Take an array of `count` elements of that format. */
static int bind(PyObject *given, Py_buffer *view, const char *name, const char *format, size_t count) {
    if (PyObject_GetBuffer(given, view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE | PyBUF_FORMAT)) return -1;
    const int whole = *format == 'L' && view->format && !strcmp(view->format, "Q"); /* the same on some platforms */
    if (view->format && (whole || !strcmp(view->format, format)) && (size_t)view->len == count * (size_t)view->itemsize &&
        !((uintptr_t)view->buf % (size_t)view->itemsize))
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected %zu elements of the format %s", name, count, format);
    return -1;
}

static PyObject *make_windows(PyObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"rows", "stored", "begin", "states", NULL};
    struct sliding *sliding = &((Sliding *)self)->sliding;
    PyObject *rows, *stored, *begin, *states;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOO", names, &rows, &stored, &begin, &states)) return NULL;
    const Py_ssize_t places = PyObject_Size(stored);
    if (places < 0) return NULL;
    if (places < 1 || places > INT32_MAX) return PyErr_Format(PyExc_ValueError, "windows of %zd instruments", places);
    Windows *made = PyObject_New(Windows, windows_type);
    if (!made) return NULL;
    made->owner = Py_NewRef(self);
    memset(&made->windows, 0, sizeof made->windows);
    memset(made->views, 0, sizeof made->views);
    const size_t count = (size_t)places;
    if (bind(rows, &made->views[ROWS], "rows", "f", count * 2 * sliding->steps * sliding->features) ||
        bind(stored, &made->views[STORED], "stored", "L", count) || bind(begin, &made->views[BEGIN], "begin", "L", count) ||
        bind(states, &made->views[STATES], "states", "f", count * sliding->place_floats))
        goto failed;
    struct windows *w = &made->windows;
    w->sliding = sliding;
    w->places = (uint32_t)count;
    w->rows = made->views[ROWS].buf;
    w->stored = made->views[STORED].buf;
    w->begin = made->views[BEGIN].buf;
    w->states = made->views[STATES].buf;
    if (!windows_begin(w)) return (PyObject *)made;
    PyErr_NoMemory();
failed:
    Py_DECREF(made);
    return NULL;
}

static void windows_dealloc(PyObject *self) {
    Windows *w = (Windows *)self;
    windows_end(&w->windows);
    for (int i = 0; i < VIEWS; i++) PyBuffer_Release(&w->views[i]);
    Py_XDECREF(w->owner);
    free_object(self);
}

/* The number of an instrument's place; -1 with an exception where there is no such one. */
static long place_of(const Windows *w, PyObject *argument) {
    const long place = PyLong_AsLong(argument);
    if (place == -1 && PyErr_Occurred()) return -1;
    if (place >= 0 && place < (long)w->windows.places) return place;
    PyErr_Format(PyExc_IndexError, "place %ld, expected 0 to %u", place, w->windows.places - 1);
    return -1;
}

static PyObject *behind(PyObject *self, PyObject *argument) {
    Windows *w = (Windows *)self;
    const long place = place_of(w, argument);
    if (place < 0) return NULL;
    windows_behind(&w->windows, (uint32_t)place);
    Py_RETURN_NONE;
}

static PyObject *answer(PyObject *self, PyObject *args) {
    Windows *w = (Windows *)self;
    const struct sigd_steps *facts = &w->windows.facts;
    PyObject *number, *into;
    Py_buffer out = {0};
    if (!PyArg_ParseTuple(args, "OO", &number, &into)) return NULL;
    const long place = place_of(w, number);
    if (place < 0) return NULL;
    if (bind(into, &out, "the answer", "f", facts->outputs)) {
        PyBuffer_Release(&out);
        return NULL;
    }
    const int failed = facts->answer(facts->steps, (uint32_t)place, NULL, out.buf);
    PyBuffer_Release(&out);
    return PyBool_FromLong(!failed);
}

static PyObject *windows_capsule(PyObject *self, void *unused) {
    (void)unused;
    return capsule_in(self, &((Windows *)self)->windows.facts, SIGD_STEPS_CAPSULE);
}

static PyMethodDef sliding_methods[] = {
    {"advance", advance, METH_NOARGS, "advance() -> whether anything was left to do: windows that are behind, the next answer's preparation"},
    {"windows", (PyCFunction)(void (*)(void))make_windows, METH_VARARGS | METH_KEYWORDS,
     "windows(rows, stored, begin, states): the windows of one client's instruments"},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef sliding_members[] = {
    {"place_floats", place_floats, NULL, "floats that are kept of one instrument", NULL},
    {"keeps_columns", keeps_columns, NULL, "whether columns are kept, else states", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef windows_methods[] = {
    {"behind", behind, METH_O, "behind(place): its newest step was stored, and its windows have to take it"},
    {"answer", answer, METH_VARARGS, "answer(place, into) -> whether its window is whole, and into has the answer"},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef windows_members[] = {
    {"capsule", windows_capsule, NULL, "what C code answers steps by: see engine.h", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot sliding_slots[] = {
    {Py_tp_dealloc, sliding_dealloc}, {Py_tp_methods, sliding_methods}, {Py_tp_getset, sliding_members}, {0, NULL}};
static PyType_Slot windows_slots[] = {
    {Py_tp_dealloc, windows_dealloc}, {Py_tp_methods, windows_methods}, {Py_tp_getset, windows_members}, {0, NULL}};
static PyType_Spec sliding_spec = {"sigd.models.native._kernels.Sliding", sizeof(Sliding), 0, TYPE_FLAGS, sliding_slots};
static PyType_Spec windows_spec = {"sigd.models.native._kernels.SlidingWindows", sizeof(Windows), 0, TYPE_FLAGS, windows_slots};

int add_sliding_types(PyObject *module) {
    sliding_type = (PyTypeObject *)PyType_FromSpec(&sliding_spec);
    windows_type = (PyTypeObject *)PyType_FromSpec(&windows_spec);
    if (!sliding_type || !windows_type) return -1;
    return PyModule_AddType(module, sliding_type) || PyModule_AddType(module, windows_type) ? -1 : 0;
}
