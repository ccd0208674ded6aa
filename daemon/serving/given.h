/* What Python gives to the fast path and to the lane: numbers and memory in a dict. */
#pragma once
#include "answer.h"

/* The number under `name`, 0 where it is not given; -1 where Python raised. */
static inline int take_number(PyObject *given, const char *name, uint64_t *value) {
    PyObject *object = PyDict_GetItemString(given, name);
    *value = object ? PyLong_AsUnsignedLongLong(object) : 0;
    return *value == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

struct named_number {
    const char *name;
    uint64_t *value;
};

static inline int take_numbers(PyObject *given, const struct named_number *numbers, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (take_number(given, numbers[i].name, numbers[i].value) < 0) return -1;
    return 0;
}

/* The rings in a region, for requests of `request_bytes` without padding. */
static inline int take_ring(PyObject *given, const Py_buffer *region, uint64_t request_bytes, uint64_t outputs,
                            struct ring *ring) {
    uint64_t head, tail, answer_head, answer_tail, sleeping, request_offset, response_offset;
    const struct named_number numbers[] = {
        {"head", &head}, {"tail", &tail}, {"answer_head", &answer_head}, {"answer_tail", &answer_tail},
        {"client_sleeping", &sleeping}, {"request_offset", &request_offset}, {"response_offset", &response_offset},
        {"request_stride", &ring->request_stride}, {"response_stride", &ring->response_stride}, {"slots", &ring->slots},
    };
    if (take_numbers(given, numbers, sizeof numbers / sizeof *numbers) < 0) return -1;
    uint64_t bytes = (uint64_t)region->len, slots = ring->slots;
    if (!slots || slots & (slots - 1) || slots > bytes || request_offset > bytes || response_offset > bytes ||
        ring->request_stride > bytes || ring->response_stride > bytes || request_offset + slots * ring->request_stride > bytes ||
        response_offset + slots * ring->response_stride > bytes || ring->request_stride < request_bytes ||
        ring->response_stride < 8u * OUTPUTS + 4u * outputs || head >= 512 || tail >= 512 || answer_head >= 512 ||
        answer_tail >= 512 || sleeping >= 1024 || bytes < 4096) {
        PyErr_SetString(PyExc_ValueError, "the region does not hold its rings");
        return -1;
    }
    uint8_t *memory = region->buf;
    uint64_t *words = (uint64_t *)memory;
    ring->head = words + head;
    ring->tail = words + tail;
    ring->answer_head = words + answer_head;
    ring->answer_tail = words + answer_tail;
    ring->client_sleeping = (uint32_t *)memory + sleeping;
    ring->request_slots = memory + request_offset;
    ring->response_slots = memory + response_offset;
    return 0;
}
