/* What the fast path (fast_path.c) and the lane (lane.c) share: the words of a request and of its answer, the two rings of
 * a region, and what makes a row or an answer unusual. No Python. */
#pragma once
#include <stdint.h>
#include <string.h>

enum { HEADER, SEQUENCE, CLIENT_TIME, DEADLINE, INSTRUMENT, FEATURES }; /* words of a request */
enum { RECEIVE_TIME = 3, SEND_TIME, RESPONSE_INSTRUMENT, OUTCOME, OUTPUTS }; /* words of a response from 3 on */
#define U32 0xffffffffu
#define CHUNK_ROWS_MIN 4 /* below that they run one by one, as in the twin */
#define CHUNK_ROWS_MAX 6 /* the kernels take so many at once in half the time that they need one by one */

/* A client may write to all of it at any time: a request is copied out of its slot once, and only the copy is looked at. */
struct ring {
    uint64_t *head, *tail, *answer_head, *answer_tail;
    uint32_t *client_sleeping;
    uint8_t *request_slots, *response_slots;
    uint64_t request_stride, response_stride, slots;
};

static inline const uint8_t *request_slot(const struct ring *ring, uint64_t count) {
    return ring->request_slots + (count & (ring->slots - 1)) * ring->request_stride;
}

static inline uint64_t *response_slot(const struct ring *ring, uint64_t count) {
    return (uint64_t *)(ring->response_slots + (count & (ring->slots - 1)) * ring->response_stride);
}

static inline int late(uint64_t deadline_ns, uint64_t now_ns) { return deadline_ns && deadline_ns < now_ns; }

/* As the twin in Python: from 1.7e38 on, which Python then looks at closely. */
static inline int row_is_odd(const uint64_t *request, uint32_t features) {
    const uint32_t *bits = (const uint32_t *)(request + FEATURES);
    uint32_t odd = 0;
    for (uint32_t i = 0; i < features; i++) odd |= (bits[i] & 0x7f000000u) == 0x7f000000u;
    return odd != 0;
}

static inline int outputs_are_finite(const void *outputs, uint32_t count) {
    const uint8_t *at = outputs;
    uint32_t infinite = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, at + 4 * i, 4);
        infinite |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !infinite;
}

/* Words 1 to 6 of an answer, and its outputs. `generation`: in its place in the word. */
static inline void write_answer(uint64_t *answer, const uint64_t *request, uint64_t received, uint64_t sent,
                                uint64_t generation, uint64_t outcome, const void *outputs, uint32_t count) {
    answer[SEQUENCE] = request[SEQUENCE];
    answer[CLIENT_TIME] = request[CLIENT_TIME];
    answer[RECEIVE_TIME] = received;
    answer[SEND_TIME] = sent;
    answer[RESPONSE_INSTRUMENT] = (request[INSTRUMENT] & U32) | generation;
    answer[OUTCOME] = outcome;
    memcpy(answer + OUTPUTS, outputs, 4u * count);
}
