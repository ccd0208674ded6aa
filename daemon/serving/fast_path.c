/* The fast path in C: the twin of daemon/serving/fast_path.py and fast_path_ring.py, to the bit.
 *
 * An object of type Path serves one connection for as long as it has one model, as the closures of the twins do. It holds
 * the interpreter's lock throughout, and keeps no state of its own: counters, ring positions and the owner of the fast
 * path are the attributes of the same Python objects. What is unusual is left to Python, which decides anew.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "answer.h"
#include "engine.h"
#include "given.h"

enum { EMPTY, HANDED_OVER, ANSWERED, FAILED = -1 };
enum { REFUSED, DONE, UNDER_WAY };
#define FINE_SHIFT 7

typedef struct {
    PyObject_HEAD
    /* Python's side; every one of them may be None but where it says so. */
    PyObject *session, *batcher, *inbox, *counters; /* never None */
    PyObject *total, *queue, *model;                /* lists of counts, never None */
    PyObject *clock;                                /* None: CLOCK_MONOTONIC */
    PyObject *capsule;                              /* of the engine's runner of CHUNK_ROWS_MAX, or `run` is called */
    PyObject *steps, *places;                       /* of kept histories: what answers steps; the place of each instrument */
    PyObject *run, *under_way;                      /* run() is `under_way` where it has not finished */
    PyObject *odd_values, *integers;                /* () -> whether the row may run; integers may be None */
    PyObject *record;                               /* may be None */
    PyObject *adopt;   /* ring: (now) -> found; stream: (bytes, now, start) */
    PyObject *send, *single; /* stream: send(single), where `frame` lies in the memory of `single` */
    PyObject *took;          /* stream: (bytes, now), the batch path */
    PyObject *wake;          /* stream: () where a step leaves work for later */
    PyObject *requests, *responses, *take, *wake_client; /* ring */
    /* memory, held through buffers */
    Py_buffer row, input, output, frame, region, storage, chunk;
    int descriptor; /* stream: where `receive` reads and writes; -1 outside of it, and once Python has sent */
    const struct sigd_runner *runner;
    const struct sigd_steps *stepped;
    uint32_t place; /* of the step that was answered */
    uint32_t features, outputs;
    uint64_t request_header, response_header, generation, one_row_ok, another_row;
    struct ring ring;
    float *chunk_rows, *chunk_outputs; /* in `chunk`, behind the frames */
} Path;

static PyObject *str_fast_path_owner, *str_fast_path_open, *str_serving, *str_tail, *str_taken, *str_published, *str_tail_seen,
    *str_one_by_one_rows_max, *str_last_batch_ns, *str_slow_ns, *str_count_single, *str_fast_path_failed, *str_frame_bytes, *str_header,
    *str_in_flight_max, *str_count_together;

/* -- small things */

static int get_u64(PyObject *object, PyObject *name, uint64_t *value) {
    PyObject *number = PyObject_GetAttr(object, name);
    if (!number) return -1;
    *value = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    return *value == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

static int set_u64(PyObject *object, PyObject *name, uint64_t value) {
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    if (!number) return -1;
    int failed = PyObject_SetAttr(object, name, number);
    Py_DECREF(number);
    return failed;
}

static int now(Path *self, uint64_t *value) {
    if (self->clock == Py_None) {
        struct timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        *value = (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
        return 0;
    }
    PyObject *number = PyObject_CallNoArgs(self->clock);
    if (!number) return -1;
    *value = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    return *value == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

/* 1, 0, or -1 where Python raised; `result` is taken. */
static int truth(PyObject *result) {
    if (!result) return -1;
    int yes = PyObject_IsTrue(result);
    Py_DECREF(result);
    return yes;
}

static int add_one(PyObject *list, uint64_t bin) {
    PyObject *count = PyList_GetItem(list, (Py_ssize_t)bin);
    if (!count) return -1;
    PyObject *more = PyLong_FromLongLong(PyLong_AsLongLong(count) + 1);
    return more ? PyList_SetItem(list, (Py_ssize_t)bin, more) : -1;
}

/* -- what both transports share */

/* As Batcher.may_run_at_once. */
static int may_run(Path *self) {
    PyObject *owner = PyObject_GetAttr(self->batcher, str_fast_path_owner);
    if (!owner) return -1;
    Py_DECREF(owner);
    if (owner == self->session) return 1;
    int open = truth(PyObject_GetAttr(self->batcher, str_fast_path_open));
    return open > 0 ? truth(PyObject_GetAttr(self->session, str_serving)) : open;
}

/* Whether the row's values may run: finite, or what the model takes besides. */
static int row_is_good(Path *self, const uint64_t *request) {
    if (row_is_odd(request, self->features)) {
        int good = truth(PyObject_CallNoArgs(self->odd_values));
        if (good <= 0) return good;
    }
    return self->integers == Py_None ? 1 : truth(PyObject_CallNoArgs(self->integers));
}

/* The batch path says what failed; 0, or -1 where it is no Exception. */
static int note_failure(Path *self) {
    PyObject *type, *error, *trace;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return -1;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace) PyException_SetTraceback(error, trace);
    PyObject *noted = PyObject_CallMethodObjArgs(self->batcher, str_fast_path_failed, error, NULL);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    Py_XDECREF(noted);
    return noted ? 0 : -1;
}

/* Answer the step of `request`, which is not stored yet. What its flags ask for, and an instrument that is new or warming
 * up, is the batch path's. */
static int run_step(Path *self, const uint64_t *request) {
    if (request[INSTRUMENT] >> 32 & 0xffffu) return REFUSED;
    PyObject *instrument = PyLong_FromUnsignedLongLong(request[INSTRUMENT] & U32);
    if (!instrument) return FAILED;
    PyObject *place = PyDict_GetItemWithError(self->places, instrument);
    Py_DECREF(instrument);
    if (!place) return PyErr_Occurred() ? FAILED : REFUSED;
    self->place = (uint32_t)PyLong_AsUnsignedLong(place);
    const float *row = (const float *)(request + FEATURES);
    return self->stepped->answer(self->stepped->steps, self->place, row, self->output.buf) == 0 ? DONE : REFUSED;
}

/* The answer is on its way: the step is the newest of its instrument. */
static void keep_step(const Path *self, const uint64_t *request) {
    if (self->stepped) self->stepped->store(self->stepped->steps, self->place, (const float *)(request + FEATURES));
}

/* Once nothing waits for it: where answers outrun the windows under way, let those take steps. */
static void catch_up(const Path *self) {
    if (self->stepped) self->stepped->catch_up(self->stepped->steps, self->place);
}

/* Run the model on the row of `request`. */
static int run_model(Path *self, const uint64_t *request) {
    if (self->stepped) return run_step(self, request);
    if (self->runner)
        return self->runner->run(self->runner->engine, (const float *)(request + FEATURES), self->output.buf, 1) == 0
                   ? DONE
                   : REFUSED;
    memcpy(self->input.buf, request + FEATURES, 4u * self->features);
    PyObject *result = PyObject_CallNoArgs(self->run);
    if (!result) return note_failure(self) < 0 ? FAILED : REFUSED;
    int done = result == self->under_way ? UNDER_WAY : DONE;
    Py_DECREF(result);
    return done;
}

/* Call a method of Python's with two numbers. 0, or -1 with an exception set. */
static int tell(PyObject *whom, PyObject *method, uint64_t first, uint64_t second) {
    PyObject *one = PyLong_FromUnsignedLongLong(first), *other = PyLong_FromUnsignedLongLong(second);
    PyObject *done = one && other ? PyObject_CallMethodObjArgs(whom, method, one, other, NULL) : NULL;
    Py_XDECREF(one);
    Py_XDECREF(other);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static int count(Path *self, uint64_t end_ns, uint64_t total_ns, uint64_t infer_ns) {
    uint64_t slow_ns;
    if (set_u64(self->batcher, str_last_batch_ns, end_ns) < 0 || get_u64(self->counters, str_slow_ns, &slow_ns) < 0) return -1;
    if (total_ns < slow_ns) {
        if (add_one(self->total, total_ns >> FINE_SHIFT) < 0 || add_one(self->queue, (total_ns - infer_ns) >> FINE_SHIFT) < 0)
            return -1;
        return add_one(self->model, infer_ns >> FINE_SHIFT);
    }
    return tell(self->counters, str_count_single, total_ns, infer_ns);
}

/* -- a stream */

/* Send what lies in `frame`: by Python, or straight to the descriptor as far as the kernel takes it at once. */
static int send_frame(Path *self) {
    PyObject *rest = self->single;
    if (self->descriptor >= 0) {
        ssize_t written = send(self->descriptor, self->frame.buf, (size_t)self->frame.len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (written == self->frame.len) return 0;
        if (written < 0) written = 0; /* Python meets the error again, and acts on it */
        rest = PyMemoryView_FromMemory((char *)self->frame.buf + written, self->frame.len - written, PyBUF_READ);
        if (!rest) return FAILED;
        self->descriptor = -1;
    } else {
        Py_INCREF(rest);
    }
    PyObject *sent = PyObject_CallFunctionObjArgs(self->send, rest, NULL);
    Py_DECREF(rest);
    Py_XDECREF(sent);
    return sent ? 0 : FAILED;
}

/* 1 answered or under way, 0 nothing was done, -1 Python raised */
static int answer_stream(Path *self, uint64_t count_bytes, uint64_t now_ns) {
    const uint64_t *request = self->row.buf;
    uint64_t tail, frame_bytes, header, start_ns, end_ns;
    int may = may_run(self);
    if (may <= 0) return may;
    /* The inbox learns the header of a newer version, with its longer frames. */
    if (get_u64(self->inbox, str_tail, &tail) < 0 || get_u64(self->inbox, str_frame_bytes, &frame_bytes) < 0 ||
        get_u64(self->inbox, str_header, &header) < 0)
        return FAILED;
    if (tail || count_bytes != frame_bytes || request[HEADER] != header) return 0;
    if (late(request[DEADLINE], now_ns)) return 0;
    int good = row_is_good(self, request);
    if (good <= 0) return good;
    if (now(self, &start_ns) < 0) return FAILED;
    int done = run_model(self, request);
    if (done == UNDER_WAY) {
        PyObject *adopted = PyObject_CallFunction(self->adopt, "KKK", (unsigned long long)count_bytes,
                                                  (unsigned long long)now_ns, (unsigned long long)start_ns);
        Py_XDECREF(adopted);
        return adopted ? 1 : FAILED;
    }
    if (done != DONE) return done == FAILED ? FAILED : 0;
    if (now(self, &end_ns) < 0) return FAILED;
    uint64_t infer_ns = end_ns - start_ns;
    if (!outputs_are_finite(self->output.buf, self->outputs) || late(request[DEADLINE], end_ns) || infer_ns > U32) return 0;
    write_answer(self->frame.buf, request, now_ns, end_ns, self->generation, self->one_row_ok | infer_ns, self->output.buf,
                 self->outputs);
    if (send_frame(self) < 0) return FAILED;
    keep_step(self, request);
    if (count(self, end_ns, end_ns - now_ns, infer_ns) < 0) return FAILED;
    if (self->record != Py_None) {
        PyObject *recorded = PyObject_CallNoArgs(self->record);
        if (!recorded) return FAILED;
        Py_DECREF(recorded);
    }
    if (!self->stepped) return 1;
    catch_up(self);
    PyObject *woken = PyObject_CallNoArgs(self->wake);
    Py_XDECREF(woken);
    return woken ? 1 : FAILED;
}

static PyObject *answer(Path *self, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 2) return PyErr_Format(PyExc_TypeError, "answer(count_bytes, now_ns), got %zd arguments", given);
    uint64_t count_bytes = PyLong_AsUnsignedLongLong(arguments[0]), now_ns = PyLong_AsUnsignedLongLong(arguments[1]);
    if (PyErr_Occurred()) return NULL;
    int answered = answer_stream(self, count_bytes, now_ns);
    return answered < 0 ? NULL : PyBool_FromLong(answered);
}

/* As fast_path.run_one_by_one; how many bytes are left at the start of the inbox, or -1. */
static int64_t run_one_by_one(Path *self, uint64_t count_bytes, uint64_t now_ns) {
    uint64_t most, in_flight_max, frame_bytes;
    if (get_u64(self->batcher, str_one_by_one_rows_max, &most) < 0 ||
        get_u64(self->session, str_in_flight_max, &in_flight_max) < 0 ||
        get_u64(self->inbox, str_frame_bytes, &frame_bytes) < 0)
        return -1;
    if (most > in_flight_max) most = in_flight_max;
    if (count_bytes / frame_bytes > most) return (int64_t)count_bytes;
    uint8_t *storage = self->storage.buf;
    uint64_t done_bytes = 0, tail = 0; /* tail: of one that is under way */
    while (count_bytes - done_bytes >= frame_bytes && self->descriptor >= 0 && !tail) {
        if (done_bytes) memcpy(storage, storage + done_bytes, frame_bytes);
        int answered = answer_stream(self, frame_bytes, now_ns);
        if (answered < 0) return -1;
        if (!answered) break;
        done_bytes += frame_bytes;
        if (get_u64(self->inbox, str_tail, &tail) < 0) return -1;
    }
    memmove(storage + tail, storage + done_bytes, count_bytes - done_bytes);
    return (int64_t)(count_bytes - done_bytes);
}

/* One poll of the descriptor. */
static int receive_once(Path *self) {
    uint64_t tail, now_ns;
    if (get_u64(self->inbox, str_tail, &tail) < 0) return FAILED;
    if (tail) {
        self->descriptor = -1; /* the loop reads what belongs behind it */
        return EMPTY;
    }
    ssize_t got = recv(self->descriptor, self->storage.buf, (size_t)self->storage.len, MSG_DONTWAIT);
    if (got <= 0) {
        /* The loop finds out by itself that the client is gone. */
        if (got == 0 || (errno != EAGAIN && errno != EINTR)) self->descriptor = -1;
        return EMPTY;
    }
    if (now(self, &now_ns) < 0) return FAILED;
    int64_t left = run_one_by_one(self, (uint64_t)got, now_ns);
    if (left <= 0) return left < 0 ? FAILED : ANSWERED;
    PyObject *taken = PyObject_CallFunction(self->took, "KK", (unsigned long long)left, (unsigned long long)now_ns);
    Py_XDECREF(taken);
    return taken ? HANDED_OVER : FAILED;
}

/* receive(descriptor, polls, answered_max): reads the socket as the loop would, and answers at once what can be; how many
 * times something came. */
static PyObject *receive(Path *self, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 3)
        return PyErr_Format(PyExc_TypeError, "receive(descriptor, polls, answered_max), got %zd arguments", given);
    long descriptor = PyLong_AsLong(arguments[0]), polls = PyLong_AsLong(arguments[1]), most = PyLong_AsLong(arguments[2]);
    if (PyErr_Occurred()) return NULL;
    if (!self->storage.obj) return PyErr_Format(PyExc_TypeError, "this path serves no stream");
    long answered = 0;
    self->descriptor = (int)descriptor;
    while (polls-- > 0 && answered < most && self->descriptor >= 0) {
        int found = receive_once(self);
        if (found < 0) {
            answered = -1;
            break;
        }
        if (found == EMPTY) continue;
        answered++;
        if (found == HANDED_OVER) break;
    }
    self->descriptor = -1;
    return answered < 0 ? NULL : PyLong_FromLong(answered);
}

/* -- a ring */

static int batch_path(Path *self, uint64_t now_ns, uint64_t rows) {
    PyObject *result = PyObject_CallFunction(self->take, "KK", (unsigned long long)now_ns,
                                             (unsigned long long)(rows > INT64_MAX ? 0 : rows));
    int waits = truth(result);
    return waits < 0 ? FAILED : waits ? HANDED_OVER : EMPTY;
}

static int batch_path_now(Path *self, uint64_t rows) {
    uint64_t now_ns;
    return now(self, &now_ns) < 0 ? FAILED : batch_path(self, now_ns, rows);
}

/* As RingProducer.room() == 0, or its counter broke the rules: 1; -1 where Python raised. */
static int is_full(Path *self, uint64_t published) {
    uint64_t seen, tail = __atomic_load_n(self->ring.answer_tail, __ATOMIC_ACQUIRE);
    if (get_u64(self->responses, str_tail_seen, &seen) < 0) return -1;
    if (tail < seen || tail > published) return 1;
    if (tail != seen && set_u64(self->responses, str_tail_seen, tail) < 0) return -1;
    return published - tail == self->ring.slots;
}

/* Whether so many requests, more than one, may run one by one. */
static int few_enough(Path *self, uint64_t rows, uint64_t published) {
    uint64_t most;
    if (get_u64(self->batcher, str_one_by_one_rows_max, &most) < 0) return -1;
    if (rows > most || rows > self->ring.slots) return 0;
    int full = is_full(self, published);
    return full < 0 ? -1 : !full;
}

/* Answers are there: what follows delays no client, as long as it is shorter than a client's turn. */
static int published_answers(Path *self, uint64_t taken, uint64_t published) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    int asleep = __atomic_load_n(self->ring.client_sleeping, __ATOMIC_RELAXED) != 0;
    if (set_u64(self->requests, str_taken, taken) < 0 || set_u64(self->responses, str_published, published) < 0) return -1;
    if (asleep) {
        PyObject *woken = PyObject_CallNoArgs(self->wake_client);
        if (!woken) return -1;
        Py_DECREF(woken);
    }
    return 0;
}

/* The row and its outputs lie in `row` and `output`. */
static int record_in_ring(Path *self, const uint64_t *request, uint64_t now_ns, uint64_t end_ns, uint64_t outcome) {
    if (self->record == Py_None) return 0;
    PyObject *recorded =
        PyObject_CallFunction(self->record, "KKKKKK", (unsigned long long)request[SEQUENCE],
                              (unsigned long long)request[CLIENT_TIME], (unsigned long long)now_ns, (unsigned long long)end_ns,
                              (unsigned long long)request[INSTRUMENT], (unsigned long long)outcome);
    Py_XDECREF(recorded);
    return recorded ? 0 : -1;
}

/* -- several rows in one run */

static uint64_t *chunk_frame(const Path *self, uint32_t row) {
    return (uint64_t *)((uint8_t *)self->chunk.buf + row * self->row.len);
}

/* Copy the usual requests from `taken` on, at most `rows`, into the chunk; how many there are before the first other. */
static uint32_t gather(Path *self, uint64_t taken, uint32_t rows, uint64_t *now_ns, int *failed) {
    for (uint32_t i = 0; i < rows; i++)
        memcpy(chunk_frame(self, i), request_slot(&self->ring, taken + i), (size_t)self->row.len);
    *failed = now(self, now_ns) < 0;
    uint32_t good = 0;
    for (; good < rows && !*failed; good++) {
        const uint64_t *request = chunk_frame(self, good);
        if (request[HEADER] != self->request_header || late(request[DEADLINE], *now_ns) || row_is_odd(request, self->features)) break;
        memcpy(self->chunk_rows + (size_t)good * self->features, request + FEATURES, 4u * self->features);
    }
    return good;
}

static int count_together(Path *self, uint32_t rows, uint64_t end_ns, uint64_t infer_ns) {
    if (set_u64(self->batcher, str_last_batch_ns, end_ns) < 0) return -1;
    return tell(self->counters, str_count_together, rows, infer_ns);
}

static int record_together(Path *self, uint32_t rows, uint64_t now_ns, uint64_t end_ns, uint64_t outcome) {
    if (self->record == Py_None) return 0;
    for (uint32_t i = 0; i < rows; i++) {
        memcpy(self->row.buf, chunk_frame(self, i), (size_t)self->row.len);
        memcpy(self->output.buf, self->chunk_outputs + (size_t)i * self->outputs, 4u * self->outputs);
        if (record_in_ring(self, self->row.buf, now_ns, end_ns, outcome) < 0) return -1;
    }
    return 0;
}

/* Run the oldest of `rows` requests together, and answer them; EMPTY where the first is unusual, and nothing was done. */
static int poll_together(Path *self, uint64_t taken, uint64_t published, uint64_t rows) {
    uint64_t now_ns, end_ns, answer_tail = __atomic_load_n(self->ring.answer_tail, __ATOMIC_ACQUIRE);
    int failed;
    /* Its counter was found to be within its bounds for this poll; now it may be any. */
    if (published - answer_tail >= self->ring.slots) return EMPTY;
    if (rows > CHUNK_ROWS_MAX) rows = CHUNK_ROWS_MAX;
    if (rows > self->ring.slots - (published - answer_tail)) rows = self->ring.slots - (published - answer_tail);
    uint32_t run = gather(self, taken, (uint32_t)rows, &now_ns, &failed), good = 0;
    if (failed) return FAILED;
    if (!run || self->runner->run(self->runner->engine, self->chunk_rows, self->chunk_outputs, (int)run) != 0) return EMPTY;
    if (now(self, &end_ns) < 0) return FAILED;
    uint64_t infer_ns = end_ns - now_ns, outcome = self->one_row_ok + (run - 1) * self->another_row + infer_ns;
    if (infer_ns > U32) return EMPTY;
    for (; good < run; good++) {
        const uint64_t *request = chunk_frame(self, good);
        const float *outputs = self->chunk_outputs + (size_t)good * self->outputs;
        if (!outputs_are_finite(outputs, self->outputs) || late(request[DEADLINE], end_ns)) break;
        uint64_t *answer = response_slot(&self->ring, published + good);
        answer[HEADER] = self->response_header;
        write_answer(answer, request, now_ns, end_ns, self->generation, outcome, outputs, self->outputs);
    }
    if (!good) return EMPTY;
    __atomic_store_n(self->ring.tail, taken + good, __ATOMIC_RELEASE);
    __atomic_store_n(self->ring.answer_head, published + good, __ATOMIC_RELEASE);
    if (published_answers(self, taken + good, published + good) < 0 || count_together(self, good, end_ns, infer_ns) < 0 ||
        record_together(self, good, now_ns, end_ns, outcome) < 0)
        return FAILED;
    return ANSWERED;
}

static int poll_once(Path *self) {
    uint64_t taken, head, published, seen, tail, now_ns, end_ns;
    if (get_u64(self->requests, str_taken, &taken) < 0) return FAILED;
    head = __atomic_load_n(self->ring.head, __ATOMIC_ACQUIRE);
    if (head == taken) return EMPTY;
    uint64_t rows = head - taken;
    if (get_u64(self->responses, str_published, &published) < 0) return FAILED;
    int fit = rows == 1 ? 1 : few_enough(self, rows, published);
    if (fit > 0) fit = may_run(self);
    if (fit > 0) {
        if (get_u64(self->inbox, str_tail, &tail) < 0 || get_u64(self->responses, str_tail_seen, &seen) < 0) return FAILED;
        fit = !tail;
        if (fit && published - seen >= self->ring.slots) {
            int full = is_full(self, published);
            fit = full < 0 ? -1 : !full;
        }
    }
    if (fit <= 0) return fit < 0 ? FAILED : batch_path_now(self, rows);
    if (rows >= CHUNK_ROWS_MIN && self->chunk_rows) {
        int found = poll_together(self, taken, published, rows);
        if (found != EMPTY) return found;
    }
    uint64_t *request = self->row.buf;
    memcpy(request, request_slot(&self->ring, taken), (size_t)self->row.len);
    if (now(self, &now_ns) < 0) return FAILED;
    if (request[HEADER] != self->request_header || late(request[DEADLINE], now_ns)) return batch_path(self, now_ns, rows);
    int good = row_is_good(self, request);
    if (good <= 0) return good < 0 ? FAILED : batch_path(self, now_ns, rows);
    int done = run_model(self, request);
    if (done == UNDER_WAY) {
        PyObject *found = PyObject_CallFunction(self->adopt, "K", (unsigned long long)now_ns);
        if (!found) return FAILED;
        int value = (int)PyLong_AsLong(found);
        Py_DECREF(found);
        return value;
    }
    if (done != DONE) return done == FAILED ? FAILED : batch_path(self, now_ns, rows);
    if (now(self, &end_ns) < 0) return FAILED;
    uint64_t infer_ns = end_ns - now_ns;
    if (!outputs_are_finite(self->output.buf, self->outputs) || late(request[DEADLINE], end_ns) || infer_ns > U32)
        return batch_path(self, now_ns, rows);
    /* The slot is free before the answer is there: a client that sees the answer may send the next request at once. */
    __atomic_store_n(self->ring.tail, taken + 1, __ATOMIC_RELEASE);
    uint64_t *answer = response_slot(&self->ring, published);
    answer[HEADER] = self->response_header;
    write_answer(answer, request, now_ns, end_ns, self->generation, self->one_row_ok | infer_ns, self->output.buf,
                 self->outputs);
    __atomic_store_n(self->ring.answer_head, published + 1, __ATOMIC_RELEASE);
    keep_step(self, request);
    if (published_answers(self, taken + 1, published + 1) < 0 || count(self, end_ns, infer_ns, infer_ns) < 0 ||
        record_in_ring(self, request, now_ns, end_ns, self->one_row_ok | infer_ns) < 0)
        return FAILED;
    catch_up(self);
    return ANSWERED;
}

static PyObject *poll(Path *self, PyObject *nothing) {
    (void)nothing;
    int found = poll_once(self);
    return found < 0 ? NULL : PyLong_FromLong(found);
}

/* poll_round(polls, answered_max): as RingHost's loop over poll(); how many were answered or handed over. */
static PyObject *poll_round(Path *self, PyObject *const *arguments, Py_ssize_t given) {
    if (given != 2) return PyErr_Format(PyExc_TypeError, "poll_round(polls, answered_max), got %zd arguments", given);
    long polls = PyLong_AsLong(arguments[0]), most = PyLong_AsLong(arguments[1]), answered = 0;
    if (PyErr_Occurred()) return NULL;
    while (polls-- > 0 && answered < most) {
        int found = poll_once(self);
        if (found < 0) return NULL;
        if (found == EMPTY) continue;
        answered++;
        if (found == HANDED_OVER) break;
    }
    return PyLong_FromLong(answered);
}

/* -- the type */

#define OBJECTS(X)                                                                                                        \
    X(session) X(batcher) X(inbox) X(counters) X(total) X(queue) X(model) X(clock) X(capsule) X(steps) X(places) X(run) X(under_way) \
    X(odd_values) X(integers) X(record) X(adopt) X(send) X(single) X(took) X(wake) X(requests) X(responses) X(take) X(wake_client)

static int traverse(Path *self, visitproc visit, void *arg) {
#define VISIT(name) Py_VISIT(self->name);
    OBJECTS(VISIT)
    Py_VISIT(Py_TYPE((PyObject *)self));
    return 0;
}

static int clear(Path *self) {
#define CLEAR(name) Py_CLEAR(self->name);
    OBJECTS(CLEAR)
    return 0;
}

static void dealloc(Path *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    Py_buffer *buffers[] = {&self->row, &self->input, &self->output, &self->frame, &self->region, &self->storage, &self->chunk};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        if (buffers[i]->obj) PyBuffer_Release(buffers[i]);
    clear(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* Writable bytes under `name`; none where it is not given. -1 where there are fewer than `least`. */
static int take_buffer(PyObject *given, const char *name, Py_buffer *buffer, uint64_t least) {
    PyObject *object = PyDict_GetItemString(given, name);
    if (!object) return 0;
    if (PyObject_GetBuffer(object, buffer, PyBUF_WRITABLE) < 0) return -1;
    if ((uint64_t)buffer->len < least) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes, expected %llu", name, buffer->len, (unsigned long long)least);
        return -1;
    }
    return 0;
}

/* Memory for several rows in one run, where that may be. */
static int take_chunk(Path *self, PyObject *given) {
    size_t frames = CHUNK_ROWS_MAX * (size_t)self->row.len, rows = CHUNK_ROWS_MAX * 4u * (size_t)self->features;
    if (take_buffer(given, "chunk", &self->chunk, frames + rows + CHUNK_ROWS_MAX * 4u * (size_t)self->outputs) < 0) return -1;
    /* Whether integers are integers only Python can tell, one row at a time. */
    if (!self->chunk.obj || self->integers != Py_None || self->runner->rows_max < CHUNK_ROWS_MAX) return 0;
    self->chunk_rows = (float *)((uint8_t *)self->chunk.buf + frames);
    self->chunk_outputs = (float *)((uint8_t *)self->chunk.buf + frames + rows);
    return 0;
}

static int take_steps(Path *self) {
    self->stepped = PyCapsule_GetPointer(self->steps, SIGD_STEPS_CAPSULE);
    if (!self->stepped) return -1;
    if (PyDict_Check(self->places) && self->stepped->version == SIGD_STEPS_VERSION &&
        self->stepped->features == self->features && self->stepped->outputs == self->outputs)
        return 0;
    self->stepped = NULL;
    PyErr_SetString(PyExc_ValueError, "what answers steps is of another version or shape, or there are no places");
    return -1;
}

/* Path(given): a dict with what the struct names. */
static int init(Path *self, PyObject *arguments, PyObject *keywords) {
    (void)keywords;
    PyObject *given;
    if (!PyArg_ParseTuple(arguments, "O!", &PyDict_Type, &given)) return -1;
    if (self->session) {
        PyErr_SetString(PyExc_TypeError, "a Path is made once");
        return -1;
    }
#define TAKE(name)                                                                                                        \
    {                                                                                                                     \
        PyObject *object = PyDict_GetItemString(given, #name);                                                            \
        self->name = object ? object : Py_None;                                                                           \
        Py_INCREF(self->name);                                                                                            \
    }
    OBJECTS(TAKE)
    uint64_t features, outputs;
    if (take_number(given, "features", &features) < 0 || take_number(given, "outputs", &outputs) < 0 ||
        take_number(given, "request_header", &self->request_header) < 0 ||
        take_number(given, "response_header", &self->response_header) < 0 ||
        take_number(given, "generation", &self->generation) < 0 || take_number(given, "one_row_ok", &self->one_row_ok) < 0 ||
        take_number(given, "another_row", &self->another_row) < 0)
        return -1;
    if (!features || !outputs || features > U32 / 8 || outputs > U32 / 8) {
        PyErr_SetString(PyExc_ValueError, "no features or no outputs");
        return -1;
    }
    self->features = (uint32_t)features;
    self->outputs = (uint32_t)outputs;
    if (take_buffer(given, "row", &self->row, 8u * FEATURES + 4 * features) < 0 ||
        take_buffer(given, "input", &self->input, 4 * features) < 0 ||
        take_buffer(given, "output", &self->output, 4 * outputs) < 0 ||
        take_buffer(given, "frame", &self->frame, 8u * OUTPUTS + 4 * outputs) < 0 ||
        take_buffer(given, "storage", &self->storage, 8u * FEATURES + 4 * features) < 0 ||
        take_buffer(given, "region", &self->region, 4096) < 0)
        return -1;
    self->descriptor = -1;
    if (!self->row.obj || !self->input.obj || !self->output.obj || !(self->frame.obj || self->region.obj)) {
        PyErr_SetString(PyExc_ValueError, "row, input, output, and frame or region are needed");
        return -1;
    }
    if (self->region.obj && take_ring(given, &self->region, (uint64_t)self->row.len, outputs, &self->ring) < 0) return -1;
    if (self->capsule != Py_None) {
        self->runner = PyCapsule_GetPointer(self->capsule, SIGD_RUNNER_CAPSULE);
        if (!self->runner) return -1;
        if (self->runner->version != SIGD_RUNNER_VERSION || self->runner->features != features ||
            self->runner->outputs != outputs) {
            PyErr_SetString(PyExc_ValueError, "the engine's runner is of another version or shape");
            return -1;
        }
        return take_chunk(self, given);
    }
    return self->steps == Py_None ? 0 : take_steps(self);
}

static PyMethodDef methods[] = {
    {"answer", (PyCFunction)(void (*)(void))answer, METH_FASTCALL, "answer(count_bytes, now_ns) -> bool"},
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, "receive(descriptor, polls, answered_max) -> int"},
    {"poll", (PyCFunction)poll, METH_NOARGS, "poll() -> what was found"},
    {"poll_round", (PyCFunction)(void (*)(void))poll_round, METH_FASTCALL, "poll_round(polls, answered_max) -> int"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_init, init}, {Py_tp_dealloc, dealloc}, {Py_tp_traverse, traverse}, {Py_tp_clear, clear},
    {Py_tp_methods, methods}, {Py_tp_doc, "The fast path of one connection."}, {0, NULL},
};

static PyType_Spec spec = {"sigd.daemon.serving._fast_path.Path", sizeof(Path), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                           slots};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fast_path", "The fast path in C.", -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast_path(void) {
    struct {
        PyObject **place;
        const char *text;
    } names[] = {
        {&str_fast_path_owner, "fast_path_owner"}, {&str_fast_path_open, "fast_path_open"}, {&str_serving, "serving"},
        {&str_tail, "tail"}, {&str_taken, "taken"}, {&str_published, "published"}, {&str_tail_seen, "tail_seen"},
        {&str_one_by_one_rows_max, "one_by_one_rows_max"}, {&str_last_batch_ns, "last_batch_ns"}, {&str_slow_ns, "slow_ns"},
        {&str_count_single, "count_single"}, {&str_fast_path_failed, "fast_path_failed"},
        {&str_frame_bytes, "frame_bytes"}, {&str_header, "header"},
        {&str_in_flight_max, "in_flight_max"},
        {&str_count_together, "count_together"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!(*names[i].place = PyUnicode_InternFromString(names[i].text))) return NULL;
    PyObject *made = PyModule_Create(&module);
    PyObject *type = made ? PyType_FromSpec(&spec) : NULL;
    if (!type || PyModule_AddObject(made, "Path", type) < 0) {
        Py_XDECREF(type);
        Py_XDECREF(made);
        return NULL;
    }
    return made;
}
