/* simcuda: a CUDA driver (libcuda.so.1) on host memory, for running real PyCUDA and cuda-bindings without a GPU.
 *
 * Written from the public prototypes in cuda.h. It runs no GPU code. What it is faithful about is order and time:
 * work is queued on its stream with the device time at which it is due, and takes effect no earlier; a host that
 * writes an input or reads an output too early sees what it would see on a device. It takes effect when the host
 * next calls in (a query, a wait), on the calling thread.
 *
 *   control  the block that tests read and write; counting of calls and faults
 *   device   devices, primary contexts, error names
 *   memory   device memory (host memory with another name), pinned memory, copies
 *   stream   queues of work, events, the device's clock
 *   graph    capture, executable graphs
 *   lookup   cuGetProcAddress
 *   absent   what PyCUDA links but sigd never calls: answers "not supported" and says so
 *
 * One lock guards everything. It is never held while a host function runs, for that may need Python's lock, which
 * another thread may hold while it waits for this one.
 */
#pragma once

#include <cuda.h>
#include <stddef.h>
#include <stdint.h>

#include "control.h"

#define EXPORT __attribute__((visibility("default")))

enum sim_call_number {
#define CALL(name) CALL_##name,
#include "calls.def"
#undef CALL
    CALLS
};

/* -- control.c ----------------------------------------------------------------------------------------------- */
extern struct sim_control *sim;

/* Counts a call; not 0: the code that it has to answer at once. */
CUresult sim_enter(enum sim_call_number number);
#define ENTER(name)                                   \
    do {                                              \
        CUresult fault_ = sim_enter(CALL_##name);     \
        if (fault_ != CUDA_SUCCESS) return fault_;    \
    } while (0)

void sim_lock(void);
void sim_unlock(void);

/* -- device.c ------------------------------------------------------------------------------------------------ */
struct context;
/* The calling thread's context, NULL without one: every call on a stream, an event or memory needs one. */
struct context *sim_context(void);
#define NEED_CONTEXT()                                              \
    do {                                                            \
        if (sim_context() == NULL) return CUDA_ERROR_INVALID_CONTEXT; \
    } while (0)

/* -- memory.c ------------------------------------------------------------------------------------------------ */
enum memory_kind { MEMORY_DEVICE, MEMORY_PINNED };
/* Whether [address, address + bytes) lies inside one allocation of that kind. Call it locked. */
int sim_inside(uintptr_t address, size_t bytes, enum memory_kind kind);

/* -- stream.c ------------------------------------------------------------------------------------------------ */
struct event;

enum work_kind { WORK_COPY, WORK_SET, WORK_KERNEL, WORK_RECORD, WORK_WAIT };
struct work {
    enum work_kind kind;
    int value;              /* WORK_SET */
    void *to;               /* WORK_COPY, WORK_SET */
    const void *from;       /* WORK_COPY */
    size_t bytes;
    CUhostFn function;      /* WORK_KERNEL */
    void *argument;
    struct event *event;    /* WORK_RECORD, WORK_WAIT */
    uint64_t record;        /* which of the event's records */
    int64_t due_ns;
};

struct graph;
enum { STREAM_WORK_MAX = 1024 };
struct stream {
    uint32_t magic;
    unsigned flags;
    int priority;
    struct stream *next;
    int64_t last_due_ns;
    int running;                /* a host function of this stream is running, outside the lock */
    uint32_t first, last;       /* work[first % STREAM_WORK_MAX] is the oldest; first == last: idle */
    struct work work[STREAM_WORK_MAX];
    /* capture */
    struct graph *capture;      /* not NULL: what is queued becomes nodes of this graph */
    CUstreamCaptureMode capture_mode;
    uint64_t capture_thread;
    int capture_broken;
};

/* The stream behind a handle; NULL where there is none (any more). The default stream is one like the others. */
struct stream *sim_stream(CUstream handle);
/* Queue work, or capture it. `cost_ns` is device time. Call it locked. */
CUresult sim_queue(struct stream *stream, struct work work, int64_t cost_ns);
/* Let everything that is due take effect. Call it locked; host functions run unlocked. */
void sim_advance(void);
/* The context is dead: what is queued never runs. Call it unlocked. */
void sim_drop_work(void);
/* Wait for all work of a stream (NULL: of all streams). Call it unlocked. Never returns while the device hangs. */
CUresult sim_wait(struct stream *stream);
int64_t sim_kernel_cost_ns(const struct work *work);

/* -- graph.c ------------------------------------------------------------------------------------------------- */
CUresult sim_capture(struct stream *stream, struct work work);
/* Not 0: this call must not be made now, because a stream is being captured; that capture is broken from here on. */
CUresult sim_capture_forbids(void);
#define NOT_WHILE_CAPTURING()                              \
    do {                                                   \
        CUresult forbidden_ = sim_capture_forbids();       \
        if (forbidden_ != CUDA_SUCCESS) return forbidden_; \
    } while (0)
uint64_t sim_thread(void);
