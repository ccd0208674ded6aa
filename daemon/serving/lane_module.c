/* sigd.daemon.serving._lane: lanes, models and members for Python. What a lane may still hold is kept until it is past it. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <errno.h>
#include <stdlib.h>

#include "given.h"
#include "lane.h"

struct retired {
    uint64_t mark;
    PyObject *object;
};

typedef struct {
    PyObject_HEAD
    struct lane *lane;
    struct retired *retired;
    size_t retired_count, retired_room;
    PyObject *members[LANE_MEMBERS_MAX]; /* those that are joined */
} Lane;

typedef struct {
    PyObject_HEAD
    PyObject *lane, *holder; /* holder: of the engine that is published */
    struct lane_model model;
    uint64_t fine_seen[KINDS][LANE_BINS], coarse_seen[KINDS][LANE_BINS];
    uint64_t coarse_sum_seen[KINDS], beyond_seen[KINDS], batches_seen[CHUNK_ROWS_MAX + 1];
} Model;

typedef struct {
    PyObject_HEAD
    PyObject *lane, *model;
    Py_buffer region;
    struct lane_member member;
} Member;

static PyTypeObject *lane_type, *model_type, *member_type;

static void free_object(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *raise_errno(int error, const char *what) {
    PyObject *arguments = Py_BuildValue("(iN)", error, PyUnicode_FromFormat("%s: %s", what, strerror(error)));
    if (arguments) PyErr_SetObject(PyExc_OSError, arguments);
    Py_XDECREF(arguments);
    return NULL;
}

/* -- lanes */

/* Keep `object`, whose reference is taken, until the lane is past what holds now. -1 without memory, and nothing is freed. */
static int retire(Lane *self, PyObject *object) {
    if (self->retired_count == self->retired_room) {
        const size_t room = self->retired_room ? 2 * self->retired_room : 16;
        struct retired *more = realloc(self->retired, room * sizeof *more);
        if (!more) {
            PyErr_NoMemory();
            return -1;
        }
        self->retired = more;
        self->retired_room = room;
    }
    self->retired[self->retired_count++] = (struct retired){lane_mark(self->lane), object};
    return 0;
}

static void let_go(Lane *self, int all) {
    size_t passed = 0;
    while (passed < self->retired_count && (all || lane_passed(self->lane, self->retired[passed].mark)))
        Py_DECREF(self->retired[passed++].object);
    self->retired_count -= passed;
    memmove(self->retired, self->retired + passed, self->retired_count * sizeof *self->retired);
}

static PyObject *new_lane(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"core", "spin_ns", "priority", "busy_ns_max", NULL};
    int core, priority = 0;
    unsigned long long busy_ns_max = 0;
    PyObject *spin;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "iO|iK", names, &core, &spin, &priority, &busy_ns_max)) return NULL;
    const uint64_t spin_ns = spin == Py_None ? LANE_SPIN_FOREVER : PyLong_AsUnsignedLongLong(spin);
    if (PyErr_Occurred()) return NULL;
    if (core < 0) return PyErr_Format(PyExc_ValueError, "core %d, expected 0 or more", core);
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Lane *self = (Lane *)allocate(type, 0);
    if (!self) return NULL;
    self->lane = aligned_alloc(64, (sizeof *self->lane + 63) / 64 * 64);
    if (!self->lane) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    const int failed = lane_open(self->lane, core, spin_ns, priority, busy_ns_max);
    if (failed) {
        Py_DECREF(self);
        return raise_errno(failed, "a lane cannot be opened");
    }
    return (PyObject *)self;
}

/* Let the thread end, and what it may have held go. */
static void end_lane(Lane *self) {
    lane_stop(self->lane);
    let_go(self, 1);
}

static void lane_dealloc(PyObject *object) {
    Lane *self = (Lane *)object;
    if (self->lane) {
        end_lane(self);
        lane_close(self->lane);
        free(self->lane);
    }
    free(self->retired);
    free_object(object);
}

static PyObject *start(PyObject *object, PyObject *nothing) {
    (void)nothing;
    const int failed = lane_start(((Lane *)object)->lane);
    if (failed) return raise_errno(failed, "a lane's thread cannot be started");
    Py_RETURN_NONE;
}

static PyObject *stop(PyObject *object, PyObject *nothing) {
    (void)nothing;
    end_lane((Lane *)object);
    Py_RETURN_NONE;
}

static PyObject *reclaim(PyObject *object, PyObject *nothing) {
    (void)nothing;
    let_go((Lane *)object, 0);
    return PyLong_FromSize_t(((Lane *)object)->retired_count);
}

static PyObject *join(PyObject *object, PyObject *argument) {
    Lane *self = (Lane *)object;
    if (Py_TYPE(argument) != member_type || ((Member *)argument)->lane != object)
        return PyErr_Format(PyExc_TypeError, "expected a Member of this lane");
    for (size_t i = 0; i < LANE_MEMBERS_MAX; i++)
        if (self->members[i] == argument) return PyErr_Format(PyExc_ValueError, "it has joined already");
    if (lane_join(self->lane, &((Member *)argument)->member)) Py_RETURN_FALSE;
    size_t place = 0;
    while (self->members[place]) place++;
    self->members[place] = Py_NewRef(argument);
    Py_RETURN_TRUE;
}

static PyObject *leave(PyObject *object, PyObject *argument) {
    Lane *self = (Lane *)object;
    for (size_t i = 0; i < LANE_MEMBERS_MAX; i++) {
        if (self->members[i] != argument) continue;
        lane_recall(&((Member *)argument)->member);
        lane_leave(self->lane, &((Member *)argument)->member);
        self->members[i] = NULL;
        if (retire(self, argument) < 0) return NULL;
        let_go(self, 0);
        Py_RETURN_NONE;
    }
    return PyErr_Format(PyExc_ValueError, "it has not joined");
}

static PyObject *lane_number(PyObject *self, void *which) {
    struct lane *lane = ((Lane *)self)->lane;
    if (which == (void *)0) return PyLong_FromLong(lane->handed_bell);
    if (which == (void *)1) return PyLong_FromLong(lane->core);
    if (which == (void *)2) return PyLong_FromUnsignedLongLong(atomic_load_explicit(&lane->round, memory_order_relaxed));
    if (which == (void *)3) return PyLong_FromUnsignedLongLong(atomic_load_explicit(&lane->answered, memory_order_relaxed));
    if (which == (void *)4) return PyLong_FromUnsignedLongLong(atomic_load_explicit(&lane->yields, memory_order_relaxed));
    return PyBool_FromLong((long)atomic_load_explicit(which == (void *)5 ? &lane->asleep : &lane->realtime, memory_order_relaxed));
}

static PyMethodDef lane_methods[] = {
    {"start", start, METH_NOARGS, "start(): the thread runs from now on. Raises OSError where it may not run on its core."},
    {"stop", stop, METH_NOARGS, "stop(): the thread has ended; members answer no more until they are recalled"},
    {"join", join, METH_O, "join(member) -> whether there was a place for it; it belongs to Python"},
    {"leave", leave, METH_O, "leave(member): it belongs to Python, and is in the lane no more"},
    {"reclaim", reclaim, METH_NOARGS, "reclaim() -> how much the lane may still hold of what it no longer needs"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef lane_attributes[] = {
    {"handed", lane_number, NULL, "an eventfd that rings when a member was handed to Python", (void *)0},
    {"core", lane_number, NULL, "the core of its thread", (void *)1},
    {"round", lane_number, NULL, "rises as long as the thread runs", (void *)2},
    {"answered", lane_number, NULL, "requests that it has answered", (void *)3},
    {"yields", lane_number, NULL, "how often it was busy for too long and gave up its priority", (void *)4},
    {"asleep", lane_number, NULL, "whether it waits for a bell", (void *)5},
    {"realtime", lane_number, NULL, "whether it has its real-time priority", (void *)6},
    {NULL, NULL, NULL, NULL, NULL},
};

/* -- models */

static void free_engine(PyObject *capsule) {
    struct lane_engine *engine = PyCapsule_GetPointer(capsule, NULL);
    Py_XDECREF((PyObject *)PyCapsule_GetContext(capsule));
    free(engine);
}

/* What holds an engine of the lane: a capsule of it that keeps the runner's. */
static PyObject *make_engine(const Model *self, PyObject *runner_capsule, uint64_t generation, struct lane_engine **made) {
    const struct sigd_runner *runner = PyCapsule_GetPointer(runner_capsule, SIGD_RUNNER_CAPSULE);
    if (!runner) return NULL;
    if (runner->version != SIGD_RUNNER_VERSION || runner->features != self->model.features || runner->outputs != self->model.outputs)
        return PyErr_Format(PyExc_ValueError, "the engine's runner is of another version or shape");
    struct lane_engine *engine = malloc(sizeof *engine);
    if (!engine) return PyErr_NoMemory();
    *engine = (struct lane_engine){runner, generation};
    PyObject *holder = PyCapsule_New(engine, NULL, free_engine);
    if (!holder || PyCapsule_SetContext(holder, runner_capsule)) {
        if (holder) Py_DECREF(holder);
        else free(engine);
        return NULL;
    }
    Py_INCREF(runner_capsule);
    *made = engine;
    return holder;
}

static int take_model(PyObject *given, struct lane_model *model) {
    uint64_t features, outputs, takes_nan;
    const struct named_number numbers[] = {
        {"features", &features}, {"outputs", &outputs}, {"takes_nan", &takes_nan}, {"request_header", &model->request_header},
        {"response_header", &model->response_header}, {"one_row_ok", &model->one_row_ok}, {"another_row", &model->another_row},
    };
    if (take_numbers(given, numbers, sizeof numbers / sizeof *numbers) < 0) return -1;
    if (!features || !outputs || features > LANE_FEATURES_MAX || outputs > LANE_OUTPUTS_MAX) {
        PyErr_Format(PyExc_ValueError, "%llu features and %llu outputs, expected at most %d and %d", (unsigned long long)features,
                     (unsigned long long)outputs, LANE_FEATURES_MAX, LANE_OUTPUTS_MAX);
        return -1;
    }
    model->features = (uint32_t)features;
    model->outputs = (uint32_t)outputs;
    model->takes_nan = takes_nan != 0;
    model->request_bytes = 8u * FEATURES + 4u * features;
    return 0;
}

/* Publish another engine; the one before it is kept until the lane is past it. */
static int publish(Model *self, PyObject *capsule, uint64_t generation) {
    struct lane_engine *engine;
    PyObject *made = make_engine(self, capsule, generation, &engine);
    if (!made) return -1;
    atomic_store_explicit(&self->model.engine, engine, memory_order_release);
    PyObject *before = self->holder;
    self->holder = made;
    return before ? retire((Lane *)self->lane, before) : 0;
}

static PyObject *new_model(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"lane", "runner", "generation", "given", NULL};
    PyObject *lane, *capsule, *given;
    unsigned long long generation;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!OKO!", names, lane_type, &lane, &capsule, &generation, &PyDict_Type, &given))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Model *self = (Model *)allocate(type, 0);
    if (!self) return NULL;
    self->lane = Py_NewRef(lane);
    if (take_model(given, &self->model) < 0 || publish(self, capsule, generation) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void model_dealloc(PyObject *object) {
    Py_XDECREF(((Model *)object)->holder);
    Py_XDECREF(((Model *)object)->lane);
    free_object(object);
}

static PyObject *swap(PyObject *object, PyObject *arguments) {
    PyObject *capsule;
    unsigned long long generation;
    if (!PyArg_ParseTuple(arguments, "OK", &capsule, &generation)) return NULL;
    if (publish((Model *)object, capsule, generation) < 0) return NULL;
    Py_RETURN_NONE;
}

/* Add to `to` how much of `counts` is new. */
static void drain_bins(const _Atomic uint64_t *counts, uint64_t *seen, uint64_t *to, uint64_t bins) {
    for (uint64_t i = 0; i < bins; i++) {
        const uint64_t now = atomic_load_explicit(&counts[i], memory_order_relaxed);
        to[i] += now - seen[i];
        seen[i] = now;
    }
}

static uint64_t drain_one(const _Atomic uint64_t *count, uint64_t *seen) {
    const uint64_t now = atomic_load_explicit(count, memory_order_relaxed), new = now - *seen;
    *seen = now;
    return new;
}

static PyObject *drain(PyObject *object, PyObject *arguments) {
    Model *self = (Model *)object;
    struct lane_counts *counts = &self->model.counts;
    int kind;
    Py_buffer fine = {0}, coarse = {0};
    if (!PyArg_ParseTuple(arguments, "iw*w*", &kind, &fine, &coarse)) return NULL;
    PyObject *result = NULL;
    if (kind < 0 || kind >= KINDS || fine.len != 8 * LANE_BINS || coarse.len != 8 * LANE_BINS) {
        PyErr_Format(PyExc_ValueError, "kind %d, %zd and %zd bytes, expected a kind below %d and %d bytes", kind, fine.len,
                     coarse.len, KINDS, 8 * LANE_BINS);
    } else {
        const uint64_t max_ns = atomic_load_explicit(&counts->max_ns[kind], memory_order_acquire);
        const uint64_t bins = (max_ns >> LANE_FINE_SHIFT) + 1;
        drain_bins(counts->fine[kind], self->fine_seen[kind], fine.buf, bins < LANE_BINS ? bins : LANE_BINS);
        if (bins > LANE_BINS) drain_bins(counts->coarse[kind], self->coarse_seen[kind], coarse.buf, LANE_BINS);
        result = Py_BuildValue("KKK", (unsigned long long)drain_one(&counts->coarse_sum_ns[kind], &self->coarse_sum_seen[kind]),
                               (unsigned long long)drain_one(&counts->beyond[kind], &self->beyond_seen[kind]),
                               (unsigned long long)max_ns);
    }
    PyBuffer_Release(&fine);
    PyBuffer_Release(&coarse);
    return result;
}

static PyObject *drain_batches(PyObject *object, PyObject *nothing) {
    (void)nothing;
    Model *self = (Model *)object;
    PyObject *list = PyList_New(CHUNK_ROWS_MAX + 1);
    for (Py_ssize_t i = 0; list && i <= CHUNK_ROWS_MAX; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(drain_one(&self->model.counts.batches[i], &self->batches_seen[i]));
        if (!number || PyList_SetItem(list, i, number) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyMethodDef model_methods[] = {
    {"swap", swap, METH_VARARGS, "swap(runner, generation): the lane runs this engine from the next run on"},
    {"drain", drain, METH_VARARGS,
     "drain(kind, fine, coarse) -> (coarse_sum_ns, beyond, max_ns): adds what was counted since the last call"},
    {"drain_batches", drain_batches, METH_NOARGS, "drain_batches() -> runs since the last call, by their rows"},
    {NULL, NULL, 0, NULL},
};

/* -- members */

static PyObject *new_member(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"model", "given", NULL};
    PyObject *model, *given;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!O!", names, model_type, &model, &PyDict_Type, &given)) return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Member *self = (Member *)allocate(type, 0);
    if (!self) return NULL;
    self->model = Py_NewRef(model);
    self->lane = Py_NewRef(((Model *)model)->lane);
    struct lane_member *member = &self->member;
    member->model = &((Model *)model)->model;
    uint64_t sleeping, daemon_bell, client_bell, conflate;
    const struct named_number numbers[] = {
        {"daemon_sleeping", &sleeping}, {"daemon_bell", &daemon_bell}, {"client_bell", &client_bell}, {"conflate", &conflate}};
    PyObject *region = PyDict_GetItemString(given, "region");
    if (!region || PyObject_GetBuffer(region, &self->region, PyBUF_WRITABLE) < 0 ||
        take_numbers(given, numbers, sizeof numbers / sizeof *numbers) < 0 ||
        take_ring(given, &self->region, member->model->request_bytes, member->model->outputs, &member->ring) < 0 || sleeping >= 1024) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "a region and its flags are needed");
        Py_DECREF(self);
        return NULL;
    }
    member->daemon_sleeping = (uint32_t *)self->region.buf + sleeping;
    member->daemon_bell = (int)daemon_bell;
    member->client_bell = (int)client_bell;
    member->conflate = conflate != 0;
    return (PyObject *)self;
}

static void member_dealloc(PyObject *object) {
    Member *self = (Member *)object;
    if (self->region.obj) PyBuffer_Release(&self->region);
    Py_XDECREF(self->model);
    Py_XDECREF(self->lane);
    free_object(object);
}

static PyObject *give(PyObject *object, PyObject *arguments) {
    Member *self = (Member *)object;
    struct lane_member *member = &self->member;
    unsigned long long taken, published, tail_seen;
    if (!PyArg_ParseTuple(arguments, "KKK", &taken, &published, &tail_seen)) return NULL;
    if (atomic_load_explicit(&member->owner, memory_order_acquire) != OWNER_PYTHON)
        return PyErr_Format(PyExc_ValueError, "the lane owns it already");
    atomic_store_explicit(&member->taken, taken, memory_order_relaxed);
    atomic_store_explicit(&member->published, published, memory_order_relaxed);
    atomic_store_explicit(&member->tail_seen, tail_seen, memory_order_relaxed);
    lane_give(((Lane *)self->lane)->lane, member);
    Py_RETURN_NONE;
}

static PyObject *recall(PyObject *object, PyObject *nothing) {
    (void)nothing;
    struct lane_member *member = &((Member *)object)->member;
    lane_recall(member);
    return Py_BuildValue("KKK", (unsigned long long)atomic_load_explicit(&member->taken, memory_order_relaxed),
                         (unsigned long long)atomic_load_explicit(&member->published, memory_order_relaxed),
                         (unsigned long long)atomic_load_explicit(&member->tail_seen, memory_order_relaxed));
}

static PyObject *member_number(PyObject *self, void *which) {
    struct lane_member *member = &((Member *)self)->member;
    if (which == (void *)0)
        return PyBool_FromLong(atomic_load_explicit(&member->owner, memory_order_acquire) != OWNER_PYTHON);
    return PyLong_FromUnsignedLong(atomic_load_explicit(&member->why, memory_order_relaxed));
}

static PyMethodDef member_methods[] = {
    {"give", give, METH_VARARGS, "give(taken, published, tail_seen): the lane owns its rings from now on"},
    {"recall", recall, METH_NOARGS, "recall() -> (taken, published, tail_seen): Python owns its rings from now on"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef member_attributes[] = {
    {"in_lane", member_number, NULL, "whether the lane owns it", (void *)0},
    {"why", member_number, NULL, "why the lane handed it over; 0 where it did not", (void *)1},
    {NULL, NULL, NULL, NULL, NULL},
};

/* -- the module */

#define TYPE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE)
static PyType_Slot lane_slots[] = {
    {Py_tp_new, new_lane}, {Py_tp_dealloc, lane_dealloc}, {Py_tp_methods, lane_methods}, {Py_tp_getset, lane_attributes},
    {Py_tp_doc, "Lane(core, spin_ns, priority=0, busy_ns_max=0): a thread on that core; spin_ns None never sleeps. With a"
                 " real-time priority, for busy_ns_max without sleep at most"}, {0, NULL}};
static PyType_Slot model_slots[] = {
    {Py_tp_new, new_model}, {Py_tp_dealloc, model_dealloc}, {Py_tp_methods, model_methods},
    {Py_tp_doc, "Model(lane, runner, generation, given): what a lane runs, and its counters"}, {0, NULL}};
static PyType_Slot member_slots[] = {
    {Py_tp_new, new_member}, {Py_tp_dealloc, member_dealloc}, {Py_tp_methods, member_methods}, {Py_tp_getset, member_attributes},
    {Py_tp_doc, "Member(model, given): the rings of one session"}, {0, NULL}};
static PyType_Spec lane_spec = {"sigd.daemon.serving._lane.Lane", sizeof(Lane), 0, TYPE_FLAGS, lane_slots};
static PyType_Spec model_spec = {"sigd.daemon.serving._lane.Model", sizeof(Model), 0, TYPE_FLAGS, model_slots};
static PyType_Spec member_spec = {"sigd.daemon.serving._lane.Member", sizeof(Member), 0, TYPE_FLAGS, member_slots};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_lane", "Native threads that answer without Python's lock.", -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__lane(void) {
    PyObject *module = PyModule_Create(&definition);
    lane_type = (PyTypeObject *)PyType_FromSpec(&lane_spec);
    model_type = (PyTypeObject *)PyType_FromSpec(&model_spec);
    member_type = (PyTypeObject *)PyType_FromSpec(&member_spec);
    if (!module || !lane_type || !model_type || !member_type || PyModule_AddType(module, lane_type) ||
        PyModule_AddType(module, model_type) || PyModule_AddType(module, member_type)) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
