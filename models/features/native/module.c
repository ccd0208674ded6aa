/* The feature stream as a Python type. `sigd.models.features.native` wraps it; nothing else uses it. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "stream.h"

typedef struct {
    int64_t kind, receive_ns, id, previous_id, values[4];
} event_row;

typedef struct {
    PyObject_HEAD feature_stream stream;
    bool open;
    PyObject *wide_asymmetry; /* (bids, asks) -> float, for books whose sums do not fit */
    Py_buffer features;       /* float32[64], written by on_event */
    float lower[FEATURES], upper[FEATURES];
} Stream;

static PyObject *name_receive_ns, *name_bid_price, *name_bid_size, *name_ask_price, *name_ask_size,
    *name_price, *name_size, *name_aggressor, *name_previous, *name_last, *name_bids, *name_asks;
static PyObject *quote_type, *trade_type, *diff_type, *snapshot_type;

static bool int_attribute(PyObject *object, PyObject *name, int64_t *value) {
    PyObject *attribute = PyObject_GetAttr(object, name);
    if (attribute == NULL) return false;
    *value = PyLong_AsLongLong(attribute);
    Py_DECREF(attribute);
    return !(*value == -1 && PyErr_Occurred());
}

/* Append the levels of a tuple of (price, size) to `levels`, which has room. */
static bool read_levels(PyObject *side, level *levels) {
    for (Py_ssize_t number = 0; number < PyTuple_Size(side); number++) {
        PyObject *pair = PyTuple_GetItem(side, number);
        if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) {
            PyErr_SetString(PyExc_TypeError, "a level is a tuple of price_e8 and size_e8");
            return false;
        }
        levels[number].price = PyLong_AsLongLong(PyTuple_GetItem(pair, 0));
        levels[number].size = PyLong_AsLongLong(PyTuple_GetItem(pair, 1));
        if ((levels[number].price == -1 || levels[number].size == -1) && PyErr_Occurred()) return false;
    }
    return true;
}

static PyObject *list_of_best(const book_side *side) {
    PyObject *list = PyList_New(0);
    for (size_t number = 0; list != NULL && number < LEVELS && number < side->used; number++) {
        const level *best = side_best(side, number);
        PyObject *pair = Py_BuildValue("(LL)", (long long)best->price, (long long)best->size);
        if (pair == NULL || PyList_Append(list, pair) < 0) Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

/* The one feature of the book that may need more than 128 bits, in Python's integers. */
static bool ask_wide_asymmetry(Stream *self) {
    PyObject *bids = list_of_best(&self->stream.book.bids), *asks = list_of_best(&self->stream.book.asks);
    PyObject *answer =
        bids && asks ? PyObject_CallFunctionObjArgs(self->wide_asymmetry, bids, asks, NULL) : NULL;
    Py_XDECREF(bids);
    Py_XDECREF(asks);
    if (answer == NULL) return false;
    self->stream.book_row[5] = PyFloat_AsDouble(answer);
    Py_DECREF(answer);
    return !PyErr_Occurred();
}

/* 1: a sample, which is written to `features`; 0: none; -1: an exception is set. */
static int finish(Stream *self, stream_result result, float *features) {
    switch (result) {
        case TAKEN:
            return 0;
        case SAMPLED:
            if (stream_write(&self->stream, features, self->lower, self->upper)) return 1;
            break;
        case WIDE_BOOK:
            return ask_wide_asymmetry(self) ? 0 : -1;
        case NO_MEMORY:
            PyErr_NoMemory();
            return -1;
        case TOO_LARGE:
            break;
    }
    PyErr_SetString(
        PyExc_OverflowError,
        "a price or size is negative in the book or beyond 2**61 units of 1e-8, or a sum of them"
        " beyond 2**127: expected the market of one instrument");
    return -1;
}

static bool in_order(const Stream *self, int64_t receive_ns) {
    if (receive_ns >= self->stream.now_ns) return true;
    PyErr_Format(PyExc_ValueError,
                 "event received at %lld, before the last one at %lld; sort events by time",
                 (long long)receive_ns, (long long)self->stream.now_ns);
    return false;
}

static int take_depth(Stream *self, PyObject *event, int kind, int64_t receive_ns) {
    kept_diff depth = {0};
    PyObject *bids = PyObject_GetAttr(event, name_bids), *asks = PyObject_GetAttr(event, name_asks);
    int taken = -1;
    if (bids == NULL || asks == NULL || !int_attribute(event, name_last, &depth.last_id)) goto done;
    if (kind == DIFF && !int_attribute(event, name_previous, &depth.previous_id)) goto done;
    if (!PyTuple_Check(bids) || !PyTuple_Check(asks)) {
        PyErr_SetString(PyExc_TypeError, "bids and asks are tuples of levels");
        goto done;
    }
    depth.bids = (size_t)PyTuple_Size(bids);
    depth.asks = (size_t)PyTuple_Size(asks);
    depth.levels = PyMem_Calloc(depth.bids + depth.asks + 1, sizeof(level));
    if (depth.levels == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (read_levels(bids, depth.levels) && read_levels(asks, depth.levels + depth.bids))
        taken = finish(self, stream_on_depth(&self->stream, kind, receive_ns, &depth), NULL);
done:
    PyMem_Free(depth.levels);
    Py_XDECREF(bids);
    Py_XDECREF(asks);
    return taken;
}

static PyObject *on_event(PyObject *object, PyObject *event) {
    Stream *self = (Stream *)object;
    PyObject *type = (PyObject *)Py_TYPE(event);
    int64_t receive_ns, values[4];
    int taken;
    if (!int_attribute(event, name_receive_ns, &receive_ns) || !in_order(self, receive_ns)) return NULL;
    if (type == quote_type) {
        if (!int_attribute(event, name_bid_price, &values[0]) ||
            !int_attribute(event, name_bid_size, &values[1]) ||
            !int_attribute(event, name_ask_price, &values[2]) ||
            !int_attribute(event, name_ask_size, &values[3]))
            return NULL;
        taken = finish(self, stream_on_quote(&self->stream, receive_ns, values), self->features.buf);
    } else if (type == trade_type) {
        if (!int_attribute(event, name_price, &values[0]) || !int_attribute(event, name_size, &values[1]) ||
            !int_attribute(event, name_aggressor, &values[2]))
            return NULL;
        taken = finish(self, stream_on_trade(&self->stream, receive_ns, values), self->features.buf);
    } else if (type == diff_type || type == snapshot_type) {
        taken = take_depth(self, event, type == diff_type ? DIFF : SNAPSHOT, receive_ns);
    } else {
        return PyErr_Format(PyExc_TypeError, "%R is no market event", event);
    }
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

/* on_rows(events, levels, features, index, mids, converged_only) -> samples. The buffers hold event_row,
 * level, float32[64], int64 and float64; features, index and mids have room for one sample an event. */
static PyObject *on_rows(PyObject *object, PyObject *arguments) {
    Stream *self = (Stream *)object;
    Py_buffer events, levels, features, index, mids;
    int converged_only;
    if (!PyArg_ParseTuple(arguments, "y*y*w*w*w*p", &events, &levels, &features, &index, &mids,
                          &converged_only))
        return NULL;
    size_t count = (size_t)events.len / sizeof(event_row), level_count = (size_t)levels.len / sizeof(level);
    const event_row *rows = events.buf;
    level *all_levels = levels.buf;
    int64_t *at = index.buf;
    double *mid = mids.buf;
    Py_ssize_t samples = 0;
    if ((size_t)features.len < count * FEATURES * sizeof(float) ||
        (size_t)index.len < count * sizeof(int64_t) || (size_t)mids.len < count * sizeof(double)) {
        PyErr_SetString(PyExc_ValueError, "expected room for one sample an event");
        samples = -1;
    }
    for (size_t number = 0; samples >= 0 && number < count; number++) {
        const event_row *row = &rows[number];
        float *sample = (float *)features.buf + (size_t)samples * FEATURES;
        int taken = -1;
        if (!in_order(self, row->receive_ns)) {
            samples = -1;
            break;
        }
        if (row->kind == QUOTE) {
            taken = finish(self, stream_on_quote(&self->stream, row->receive_ns, row->values), sample);
        } else if (row->kind == TRADE) {
            taken = finish(self, stream_on_trade(&self->stream, row->receive_ns, row->values), sample);
        } else if (row->kind == DIFF || row->kind == SNAPSHOT) {
            /* values: first bid, first ask, end of the asks, in the array of levels */
            const int64_t *range = row->values;
            if (range[0] < 0 || range[1] < range[0] || range[2] < range[1] ||
                (size_t)range[2] > level_count) {
                PyErr_SetString(PyExc_ValueError, "an event's levels lie outside the array of levels");
            } else {
                kept_diff depth = {row->previous_id, row->id, all_levels + range[0],
                                   (size_t)(range[1] - range[0]), (size_t)(range[2] - range[1])};
                taken = finish(
                    self, stream_on_depth(&self->stream, (int)row->kind, row->receive_ns, &depth), NULL);
            }
        } else {
            PyErr_Format(PyExc_ValueError, "event kind %lld, expected 1 to 4", (long long)row->kind);
        }
        if (taken < 0) {
            samples = -1;
        } else if (taken && (!converged_only || stream_converged(&self->stream))) {
            at[samples] = (int64_t)number;
            mid[samples] = (double)log_newest(&self->stream.mids)->count / 2;
            samples++;
        }
    }
    PyBuffer_Release(&events);
    PyBuffer_Release(&levels);
    PyBuffer_Release(&features);
    PyBuffer_Release(&index);
    PyBuffer_Release(&mids);
    return samples < 0 ? NULL : PyLong_FromSsize_t(samples);
}

/* ---- the state, as bytes of the structures above ---- */

#define SCALARS 32

static void pack_scalars(const feature_stream *s, int64_t out[SCALARS]) {
    const int64_t values[SCALARS] = {s->tick,
                                     s->warmup_ns,
                                     s->begun_ns,
                                     s->warm_at_ns,
                                     s->now_ns,
                                     s->depth_ns,
                                     s->samples,
                                     s->book_breaks,
                                     s->events_ignored,
                                     s->book_ready,
                                     s->quote_seen,
                                     s->trade_seen,
                                     s->trade_aged,
                                     s->quote_ns,
                                     s->bid,
                                     s->bid_size,
                                     s->ask,
                                     s->ask_size,
                                     s->trade_ns,
                                     s->trade_price,
                                     s->aggressor,
                                     s->since_quote_ns,
                                     s->since_trade_ns,
                                     s->mid_move_sign,
                                     s->mid_move_ns,
                                     s->book.synchronised,
                                     s->book.at_snapshot,
                                     s->book.update_id,
                                     s->book.snapshot_levels,
                                     s->book.bids.known_rank,
                                     s->book.asks.known_rank,
                                     s->book.bids.whole | s->book.asks.whole << 1};
    memcpy(out, values, sizeof values);
}

static void unpack_scalars(feature_stream *s, const int64_t in[SCALARS]) {
    int64_t *plain[] = {&s->tick,     &s->warmup_ns, &s->begun_ns,    &s->warm_at_ns,    &s->now_ns,
                        &s->depth_ns, &s->samples,   &s->book_breaks, &s->events_ignored};
    for (size_t number = 0; number < 9; number++) *plain[number] = in[number];
    s->book_ready = in[9], s->quote_seen = in[10], s->trade_seen = in[11], s->trade_aged = in[12];
    int64_t *later[] = {&s->quote_ns,       &s->bid,
                        &s->bid_size,       &s->ask,
                        &s->ask_size,       &s->trade_ns,
                        &s->trade_price,    &s->aggressor,
                        &s->since_quote_ns, &s->since_trade_ns,
                        &s->mid_move_sign,  &s->mid_move_ns};
    for (size_t number = 0; number < 12; number++) *later[number] = in[13 + number];
    s->book.synchronised = in[25], s->book.at_snapshot = in[26];
    s->book.update_id = in[27], s->book.snapshot_levels = in[28];
    s->book.bids.known_rank = in[29], s->book.asks.known_rank = in[30];
    s->book.bids.whole = in[31] & 1, s->book.asks.whole = in[31] >> 1 & 1;
}

/* dump() -> (scalars, quotes, trades, mids, bids, asks, [(previous_id, last_id, bids, levels)]), all but
 * the list bytes */
static PyObject *dump(PyObject *object, PyObject *Py_UNUSED(arguments)) {
    feature_stream *s = &((Stream *)object)->stream;
    int64_t scalars[SCALARS];
    pack_scalars(s, scalars);
    PyObject *kept = PyList_New(0);
    for (size_t number = 0; kept != NULL && number < s->book.kept_used; number++) {
        const kept_diff *diff = book_kept(&s->book, number);
        PyObject *one = Py_BuildValue("(LLny#)", (long long)diff->previous_id, (long long)diff->last_id,
                                      (Py_ssize_t)diff->bids, (const char *)diff->levels,
                                      (Py_ssize_t)((diff->bids + diff->asks) * sizeof(level)));
        if (one == NULL || PyList_Append(kept, one) < 0) Py_CLEAR(kept);
        Py_XDECREF(one);
    }
    if (kept == NULL) return NULL;
    return Py_BuildValue("(y#y#y#y#y#y#N)", (const char *)scalars, (Py_ssize_t)sizeof scalars,
                         (const char *)s->quotes.entries, (Py_ssize_t)(s->quotes.used * sizeof(entry)),
                         (const char *)s->trades.entries, (Py_ssize_t)(s->trades.used * sizeof(entry)),
                         (const char *)s->mids.entries, (Py_ssize_t)(s->mids.used * sizeof(entry)),
                         (const char *)(s->book.bids.levels ? s->book.bids.levels : (level *)""),
                         (Py_ssize_t)(s->book.bids.used * sizeof(level)),
                         (const char *)(s->book.asks.levels ? s->book.asks.levels : (level *)""),
                         (Py_ssize_t)(s->book.asks.used * sizeof(level)), kept);
}

static bool load_log(window_log *log, const Py_buffer *content) {
    size_t count = (size_t)content->len / sizeof(entry);
    const entry *entries = content->buf;
    if (count == 0 || !log_begin(log, entries[0])) return false;
    for (size_t number = 1; number < count; number++)
        if (!log_append(log, &entries[number])) return false;
    return true;
}

static bool load_side(book_side *side, const Py_buffer *content) {
    side->used = 0;
    return side_apply(side, content->buf, (size_t)content->len / sizeof(level));
}

/* load(what dump returned), into a stream that is new */
static PyObject *load(PyObject *object, PyObject *state) {
    Stream *self = (Stream *)object;
    feature_stream *s = &self->stream;
    Py_buffer scalars = {0}, quotes = {0}, trades = {0}, mids = {0}, bids = {0}, asks = {0};
    PyObject *kept;
    if (!PyArg_ParseTuple(state, "y*y*y*y*y*y*O!", &scalars, &quotes, &trades, &mids, &bids, &asks,
                          &PyList_Type, &kept))
        return NULL;
    bool fine = scalars.len == SCALARS * sizeof(int64_t);
    if (fine) {
        unpack_scalars(s, scalars.buf);
        fine = load_log(&s->quotes, &quotes) && load_log(&s->trades, &trades) &&
               load_log(&s->mids, &mids) && load_side(&s->book.bids, &bids) &&
               load_side(&s->book.asks, &asks);
    }
    for (Py_ssize_t number = 0; fine && number < PyList_Size(kept); number++) {
        long long previous_id, last_id;
        Py_ssize_t bid_count;
        Py_buffer levels;
        if (!PyArg_ParseTuple(PyList_GetItem(kept, number), "LLny*", &previous_id, &last_id, &bid_count,
                              &levels))
            break;
        size_t count = (size_t)levels.len / sizeof(level);
        fine = bid_count >= 0 && (size_t)bid_count <= count;
        if (fine) {
            kept_diff diff = {previous_id, last_id, levels.buf, (size_t)bid_count,
                              count - (size_t)bid_count};
            fine = book_keep(&s->book, diff);
        }
        PyBuffer_Release(&levels);
    }
    PyBuffer_Release(&scalars);
    PyBuffer_Release(&quotes);
    PyBuffer_Release(&trades);
    PyBuffer_Release(&mids);
    PyBuffer_Release(&bids);
    PyBuffer_Release(&asks);
    if (PyErr_Occurred()) return NULL;
    if (!fine) return PyErr_Format(PyExc_ValueError, "the state is damaged or of another version");
    if (!stream_book_row(s) && !ask_wide_asymmetry(self)) return NULL;
    Py_RETURN_NONE;
}

/* ---- the type ---- */

/* Stream(features, lower, upper, wide_asymmetry, tick_size_e8, warmup_ns, snapshot_levels) */
static int init(PyObject *object, PyObject *arguments, PyObject *Py_UNUSED(keywords)) {
    Stream *self = (Stream *)object;
    Py_buffer features, lower, upper;
    PyObject *wide_asymmetry;
    long long tick, warmup_ns, snapshot_levels;
    if (self->open) {
        PyErr_SetString(PyExc_RuntimeError, "a stream is made once");
        return -1;
    }
    if (!PyArg_ParseTuple(arguments, "w*y*y*OLLL", &features, &lower, &upper, &wide_asymmetry, &tick,
                          &warmup_ns, &snapshot_levels))
        return -1;
    bool fine = features.len == FEATURES * sizeof(float) && lower.len == features.len &&
                upper.len == features.len && tick >= 0 && tick < UNITS_MAX;
    if (fine) {
        memcpy(self->lower, lower.buf, sizeof self->lower);
        memcpy(self->upper, upper.buf, sizeof self->upper);
    }
    PyBuffer_Release(&lower);
    PyBuffer_Release(&upper);
    if (!fine || !stream_open(&self->stream, tick, warmup_ns, snapshot_levels)) {
        PyBuffer_Release(&features);
        PyErr_SetString(fine ? PyExc_MemoryError : PyExc_ValueError,
                        "expected 64 float32 each, and a tick of 0 or more");
        return -1;
    }
    self->features = features;
    self->wide_asymmetry = Py_NewRef(wide_asymmetry);
    self->open = true;
    return 0;
}

static void dealloc(PyObject *object) {
    Stream *self = (Stream *)object;
    PyTypeObject *type = Py_TYPE(object);
    stream_free(&self->stream);
    if (self->open) PyBuffer_Release(&self->features);
    Py_XDECREF(self->wide_asymmetry);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

#define INT_GETTER(name, field)                                       \
    static PyObject *name(PyObject *object, void *Py_UNUSED(none)) {  \
        return PyLong_FromLongLong(((Stream *)object)->stream.field); \
    }
INT_GETTER(get_tick, tick)
INT_GETTER(get_samples, samples)
INT_GETTER(get_breaks, book_breaks)
INT_GETTER(get_ignored, events_ignored)

static PyObject *get_mid(PyObject *object, void *Py_UNUSED(none)) {
    const feature_stream *stream = &((Stream *)object)->stream;
    return PyFloat_FromDouble(stream->quote_seen ? (double)log_newest(&stream->mids)->count / 2 : 0.0);
}

/* The kind of the book's last break and its facts; the kind is 0 before the first. */
static PyObject *get_break(PyObject *object, void *Py_UNUSED(none)) {
    const order_book *book = &((Stream *)object)->stream.book;
    return Py_BuildValue("(iLLL)", (int)book->broken_by, (long long)book->break_facts[0],
                         (long long)book->break_facts[1], (long long)book->break_facts[2]);
}

static PyObject *get_warm(PyObject *object, void *Py_UNUSED(none)) {
    return PyBool_FromLong(stream_warm(&((Stream *)object)->stream));
}

static PyObject *get_converged(PyObject *object, void *Py_UNUSED(none)) {
    return PyBool_FromLong(stream_converged(&((Stream *)object)->stream));
}

static PyMethodDef methods[] = {{"on_event", on_event, METH_O, NULL},
                                {"on_rows", on_rows, METH_VARARGS, NULL},
                                {"dump", dump, METH_NOARGS, NULL},
                                {"load", load, METH_O, NULL},
                                {NULL, NULL, 0, NULL}};

static PyGetSetDef getters[] = {{"tick_size_e8", get_tick, NULL, NULL, NULL},
                                {"samples", get_samples, NULL, NULL, NULL},
                                {"book_breaks", get_breaks, NULL, NULL, NULL},
                                {"events_ignored", get_ignored, NULL, NULL, NULL},
                                {"mid_e8", get_mid, NULL, NULL, NULL},
                                {"last_break", get_break, NULL, NULL, NULL},
                                {"warm", get_warm, NULL, NULL, NULL},
                                {"converged", get_converged, NULL, NULL, NULL},
                                {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot slots[] = {
    {Py_tp_init, init},       {Py_tp_dealloc, dealloc}, {Py_tp_new, PyType_GenericNew},
    {Py_tp_methods, methods}, {Py_tp_getset, getters},  {0, NULL}};

static PyType_Spec spec = {.name = "sigd.models.features.native._stream.Stream",
                           .basicsize = sizeof(Stream),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                           .slots = slots};

/* functions() of some numbers, so that the importer can compare them with Python's own */
static PyObject *functions(PyObject *Py_UNUSED(module), PyObject *argument) {
    double value = PyFloat_AsDouble(argument);
    if (value == -1.0 && PyErr_Occurred()) return NULL;
    return Py_BuildValue("(dddd)", log(value), log1p(value), asinh(value), sqrt(value));
}

/* quotient(high, low, high, low): the quotient of two integers of 128 bits, each in two words */
static PyObject *quotient(PyObject *Py_UNUSED(module), PyObject *arguments) {
    long long high[2];
    unsigned long long low[2];
    if (!PyArg_ParseTuple(arguments, "LKLK", &high[0], &low[0], &high[1], &low[1])) return NULL;
    return PyFloat_FromDouble(
        quotient_of((wide)(((uwide)high[0] << 64) | low[0]), (wide)(((uwide)high[1] << 64) | low[1])));
}

static PyMethodDef module_methods[] = {{"functions", functions, METH_O, NULL},
                                       {"quotient", quotient, METH_VARARGS, NULL},
                                       {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_stream", NULL, -1, module_methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__stream(void) {
    static const struct {
        PyObject **object;
        const char *name;
    } NAMES[] = {{&name_receive_ns, "receive_ns"},
                 {&name_bid_price, "bid_price_e8"},
                 {&name_bid_size, "bid_size_e8"},
                 {&name_ask_price, "ask_price_e8"},
                 {&name_ask_size, "ask_size_e8"},
                 {&name_price, "price_e8"},
                 {&name_size, "size_e8"},
                 {&name_aggressor, "aggressor"},
                 {&name_previous, "previous_update_id"},
                 {&name_last, "last_update_id"},
                 {&name_bids, "bids"},
                 {&name_asks, "asks"}};
    for (size_t number = 0; number < sizeof NAMES / sizeof *NAMES; number++)
        if ((*NAMES[number].object = PyUnicode_InternFromString(NAMES[number].name)) == NULL) return NULL;
    PyObject *events = PyImport_ImportModule("sigd.models.market.events");
    if (events == NULL) return NULL;
    quote_type = PyObject_GetAttrString(events, "BestQuote");
    trade_type = PyObject_GetAttrString(events, "Trade");
    diff_type = PyObject_GetAttrString(events, "DepthDiff");
    snapshot_type = PyObject_GetAttrString(events, "DepthSnapshot");
    Py_DECREF(events);
    if (!quote_type || !trade_type || !diff_type || !snapshot_type) return NULL;
    PyObject *made = PyModule_Create(&module), *type = made ? PyType_FromSpec(&spec) : NULL;
    if (type == NULL || PyModule_AddObjectRef(made, "Stream", type) < 0) Py_CLEAR(made);
    Py_XDECREF(type);
    return made;
}
