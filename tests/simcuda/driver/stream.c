/* Streams: queues of work that takes effect when it is due. Events. The device's clock. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sim.h"

static const uint32_t STREAM_MAGIC = 0x53545231, EVENT_MAGIC = 0x45565431;

struct event {
    uint32_t magic;
    unsigned flags;
    int captured;
    uint64_t recorded, done;    /* how many times it was recorded, and which record took effect last */
    int64_t done_ns;
};

static struct stream default_stream = {.magic = 0x53545231};
static struct stream *streams = &default_stream;

static int64_t now_ns(void) {
    if (sim->manual_clock) return sim->now_ns;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

struct stream *sim_stream(CUstream handle) {
    if (handle == NULL || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD) return &default_stream;
    struct stream *stream = (struct stream *)handle;
    return stream->magic == STREAM_MAGIC ? stream : NULL;
}

static struct event *event_of(CUevent handle) {
    struct event *event = (struct event *)handle;
    return event != NULL && event->magic == EVENT_MAGIC ? event : NULL;
}

/* -- the queue ----------------------------------------------------------------------------------------------- */

int64_t sim_kernel_cost_ns(const struct work *work) {
    return work->kind == WORK_KERNEL ? sim->kernel_ns : work->kind == WORK_COPY ? sim->copy_ns : 0;
}

static void take_effect(const struct work *work) {
    switch (work->kind) {
        case WORK_COPY: memcpy(work->to, work->from, work->bytes); break;
        case WORK_SET: memset(work->to, work->value, work->bytes); break;
        case WORK_RECORD:
            work->event->done = work->record;
            work->event->done_ns = work->due_ns;
            break;
        case WORK_KERNEL:
        case WORK_WAIT: break;
    }
}

/* Returns whether anything took effect. */
static int advance_stream(struct stream *stream, int64_t now) {
    int moved = 0;
    while (!stream->running && stream->first != stream->last && !sim->hang && !sim->sticky) {
        struct work work = stream->work[stream->first % STREAM_WORK_MAX];
        if (work.due_ns > now || (work.kind == WORK_WAIT && work.event->done < work.record)) break;
        if (work.kind == WORK_KERNEL && sim->kernel_fault) {
            sim->sticky = sim->kernel_fault;
            sim->kernel_fault = 0;
            break;
        }
        if (work.kind == WORK_KERNEL) {
            stream->running = 1;
            sim_unlock();
            work.function(work.argument);
            sim_lock();
            stream->running = 0;
        } else {
            take_effect(&work);
        }
        stream->first++;
        moved = 1;
    }
    return moved;
}

void sim_advance(void) {
    int64_t now = now_ns();
    int moved;
    do {
        moved = 0;
        for (struct stream *stream = streams; stream != NULL; stream = stream->next) moved |= advance_stream(stream, now);
    } while (moved);
}

void sim_drop_work(void) {
    sim_lock();
    for (struct stream *stream = streams; stream != NULL; stream = stream->next)
        if (!stream->running) stream->first = stream->last;
    sim_unlock();
}

static void sleep_ns(int64_t ns) {
    struct timespec pause = {ns / 1000000000, ns % 1000000000};
    nanosleep(&pause, NULL);
}

/* Let time pass until the oldest work of `stream` is due. Call it locked. */
static void pass_time(const struct stream *stream) {
    int64_t left_ns = 10000;
    if (!sim->hang && !stream->running && stream->first != stream->last)
        left_ns = stream->work[stream->first % STREAM_WORK_MAX].due_ns - now_ns();
    if (sim->manual_clock && !sim->hang) {
        if (left_ns > 0) sim->now_ns += left_ns;
        return;
    }
    sim_unlock();
    if (left_ns > 0) sleep_ns(left_ns < 1000000 ? left_ns : 1000000);
    sim_lock();
}

CUresult sim_wait(struct stream *stream) {
    sim_lock();
    for (struct stream *one = stream != NULL ? stream : streams; one != NULL; one = stream != NULL ? NULL : one->next)
        for (sim_advance(); one->first != one->last && !sim->sticky; sim_advance()) pass_time(one);
    CUresult result = (CUresult)sim->sticky;
    sim_unlock();
    return result;
}

CUresult sim_queue(struct stream *stream, struct work work, int64_t cost_ns) {
    if (stream->capture != NULL) return sim_capture(stream, work);
    while (stream->last - stream->first == STREAM_WORK_MAX) {   /* full: the call waits for room, as a driver does */
        sim_advance();
        if (stream->last - stream->first == STREAM_WORK_MAX) pass_time(stream);
    }
    int64_t now = now_ns();
    if (stream->last_due_ns < now) stream->last_due_ns = now;
    stream->last_due_ns += cost_ns + sim->stall_ns;
    sim->stall_ns = 0;
    work.due_ns = stream->last_due_ns;
    if (work.kind == WORK_RECORD) work.record = ++work.event->recorded;
    stream->work[stream->last++ % STREAM_WORK_MAX] = work;
    return CUDA_SUCCESS;
}

/* -- streams ------------------------------------------------------------------------------------------------- */

static CUresult create(CUstream *handle, unsigned flags, int priority) {
    NEED_CONTEXT();
    struct stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) abort();
    stream->magic = STREAM_MAGIC;
    stream->flags = flags;
    stream->priority = priority;
    sim_lock();
    stream->next = default_stream.next;
    default_stream.next = stream;
    sim->streams++;
    sim_unlock();
    *handle = (CUstream)stream;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuStreamCreate(CUstream *stream, unsigned flags) {
    ENTER(cuStreamCreate);
    return create(stream, flags, 0);
}

EXPORT CUresult CUDAAPI cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int priority) {
    ENTER(cuStreamCreateWithPriority);
    return create(stream, flags, priority);
}

/* The memory of a destroyed stream is kept, so that a handle used after its end is recognised. */
EXPORT CUresult CUDAAPI cuStreamDestroy(CUstream handle) {
    ENTER(cuStreamDestroy);
    NEED_CONTEXT();
    struct stream *stream = sim_stream(handle);
    if (stream == NULL || stream == &default_stream) return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = sim_wait(stream);
    if (result != CUDA_SUCCESS) return result;
    sim_lock();
    for (struct stream *before = &default_stream; before != NULL; before = before->next)
        if (before->next == stream) before->next = stream->next;
    stream->magic = 0;
    sim->streams--;
    sim_unlock();
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuStreamQuery(CUstream handle) {
    ENTER(cuStreamQuery);
    NEED_CONTEXT();
    NOT_WHILE_CAPTURING();
    struct stream *stream = sim_stream(handle);
    if (stream == NULL) return CUDA_ERROR_INVALID_HANDLE;
    sim_lock();
    sim_advance();
    CUresult result = sim->sticky ? (CUresult)sim->sticky : stream->first != stream->last ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
    sim_unlock();
    return result;
}

EXPORT CUresult CUDAAPI cuStreamSynchronize(CUstream handle) {
    ENTER(cuStreamSynchronize);
    NEED_CONTEXT();
    NOT_WHILE_CAPTURING();
    struct stream *stream = sim_stream(handle);
    return stream == NULL ? CUDA_ERROR_INVALID_HANDLE : sim_wait(stream);
}

EXPORT CUresult CUDAAPI cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags) {
    ENTER(cuStreamWaitEvent);
    NEED_CONTEXT();
    (void)flags;
    struct stream *stream = sim_stream(handle);
    struct event *event = event_of(event_handle);
    if (stream == NULL || event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    sim_lock();
    CUresult result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture == NULL)
        result = sim_queue(stream, (struct work){.kind = WORK_WAIT, .event = event, .record = event->recorded}, 0);
    sim_unlock();
    return result;
}

EXPORT CUresult CUDAAPI cuStreamGetPriority(CUstream handle, int *priority) {
    ENTER(cuStreamGetPriority);
    struct stream *stream = sim_stream(handle);
    if (stream == NULL) return CUDA_ERROR_INVALID_HANDLE;
    *priority = stream->priority;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuStreamGetFlags(CUstream handle, unsigned *flags) {
    ENTER(cuStreamGetFlags);
    struct stream *stream = sim_stream(handle);
    if (stream == NULL) return CUDA_ERROR_INVALID_HANDLE;
    *flags = stream->flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuLaunchHostFunc(CUstream handle, CUhostFn function, void *argument) {
    ENTER(cuLaunchHostFunc);
    NEED_CONTEXT();
    struct stream *stream = sim_stream(handle);
    if (stream == NULL || function == NULL) return CUDA_ERROR_INVALID_HANDLE;
    sim_lock();
    struct work work = {.kind = WORK_KERNEL, .function = function, .argument = argument};
    CUresult result = sim_queue(stream, work, sim->launch_ns + sim->kernel_ns);
    sim_unlock();
    return result;
}

/* -- events -------------------------------------------------------------------------------------------------- */

EXPORT CUresult CUDAAPI cuEventCreate(CUevent *handle, unsigned flags) {
    ENTER(cuEventCreate);
    NEED_CONTEXT();
    struct event *event = calloc(1, sizeof *event);
    if (event == NULL) abort();
    event->magic = EVENT_MAGIC;
    event->flags = flags;
    sim_lock();
    sim->events++;
    sim_unlock();
    *handle = (CUevent)event;
    return CUDA_SUCCESS;
}

/* Its memory is kept: work that is queued may still name it. */
EXPORT CUresult CUDAAPI cuEventDestroy(CUevent handle) {
    ENTER(cuEventDestroy);
    NEED_CONTEXT();
    struct event *event = event_of(handle);
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    sim_lock();
    event->magic = 0;
    sim->events--;
    sim_unlock();
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuEventRecord(CUevent handle, CUstream stream_handle) {
    ENTER(cuEventRecord);
    NEED_CONTEXT();
    struct stream *stream = sim_stream(stream_handle);
    struct event *event = event_of(handle);
    if (stream == NULL || event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    sim_lock();
    CUresult result = CUDA_SUCCESS;
    event->captured = stream->capture != NULL;
    if (!event->captured) result = sim_queue(stream, (struct work){.kind = WORK_RECORD, .event = event}, 0);
    sim_unlock();
    return result;
}

EXPORT CUresult CUDAAPI cuEventQuery(CUevent handle) {
    ENTER(cuEventQuery);
    NEED_CONTEXT();
    NOT_WHILE_CAPTURING();
    struct event *event = event_of(handle);
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    if (event->captured) return CUDA_ERROR_CAPTURED_EVENT;
    sim_lock();
    sim_advance();
    CUresult result = sim->sticky ? (CUresult)sim->sticky : event->done < event->recorded ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
    sim_unlock();
    return result;
}

EXPORT CUresult CUDAAPI cuEventSynchronize(CUevent handle) {
    ENTER(cuEventSynchronize);
    NEED_CONTEXT();
    NOT_WHILE_CAPTURING();
    struct event *event = event_of(handle);
    if (event == NULL) return CUDA_ERROR_INVALID_HANDLE;
    /* An event waits for its stream's work up to the record; waiting for all that is queued waits for no less. */
    return sim_wait(NULL);
}

EXPORT CUresult CUDAAPI cuEventElapsedTime(float *ms, CUevent start_handle, CUevent end_handle) {
    ENTER(cuEventElapsedTime);
    struct event *start = event_of(start_handle), *end = event_of(end_handle);
    if (start == NULL || end == NULL || ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING)) return CUDA_ERROR_INVALID_HANDLE;
    if (start->done < start->recorded || end->done < end->recorded) return CUDA_ERROR_NOT_READY;
    *ms = (float)((double)(end->done_ns - start->done_ns) * 1e-6);
    return CUDA_SUCCESS;
}
