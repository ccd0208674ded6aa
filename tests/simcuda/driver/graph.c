/* Capture of a stream into a graph, and executable graphs. A graph here is a chain: what one stream did, in order. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

enum { NODES_MAX = 64 };
static const uint32_t GRAPH_MAGIC = 0x47524631, EXECUTABLE_MAGIC = 0x45584531;

/* A graph and an executable graph differ in their magic alone. */
struct graph {
    uint32_t magic;
    int nodes;
    struct work work[NODES_MAX];
};

/* Streams under capture; guarded by the lock. */
static struct stream *capturing[8];
enum { CAPTURES_MAX = sizeof capturing / sizeof *capturing };

uint64_t sim_thread(void) { return (uint64_t)pthread_self(); }

CUresult sim_capture(struct stream *stream, struct work work) {
    if (stream->capture_broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream->capture->nodes == NODES_MAX) return CUDA_ERROR_NOT_SUPPORTED;
    stream->capture->work[stream->capture->nodes++] = work;
    return CUDA_SUCCESS;
}

/* A capture in global mode forbids such calls to every thread; one in thread-local mode, to its own thread. That is how
 * a model that is being loaded can break another that is being served. */
CUresult sim_capture_forbids(void) {
    CUresult result = CUDA_SUCCESS;
    sim_lock();
    for (int i = 0; i < CAPTURES_MAX; i++) {
        struct stream *stream = capturing[i];
        if (stream == NULL || stream->capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        if (stream->capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL || stream->capture_thread == sim_thread()) {
            stream->capture_broken = 1;
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    sim_unlock();
    return result;
}

EXPORT CUresult CUDAAPI cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
    ENTER(cuStreamBeginCapture);
    NEED_CONTEXT();
    struct stream *stream = sim_stream(handle);
    if (stream == NULL) return CUDA_ERROR_INVALID_HANDLE;
    if (stream == sim_stream(NULL)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    CUresult result = CUDA_ERROR_ILLEGAL_STATE;
    sim_lock();
    for (int i = 0; i < CAPTURES_MAX && stream->capture == NULL; i++) {
        if (capturing[i] != NULL) continue;
        struct graph *graph = calloc(1, sizeof *graph);
        if (graph == NULL) abort();
        graph->magic = GRAPH_MAGIC;
        stream->capture = graph;
        stream->capture_mode = mode;
        stream->capture_thread = sim_thread();
        stream->capture_broken = 0;
        capturing[i] = stream;
        result = CUDA_SUCCESS;
    }
    sim_unlock();
    return result;
}

EXPORT CUresult CUDAAPI cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    ENTER(cuStreamEndCapture);
    NEED_CONTEXT();
    struct stream *stream = sim_stream(handle);
    *graph = NULL;
    if (stream == NULL) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture == NULL) return CUDA_ERROR_ILLEGAL_STATE;
    if (stream->capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED && stream->capture_thread != sim_thread())
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    sim_lock();
    for (int i = 0; i < CAPTURES_MAX; i++)
        if (capturing[i] == stream) capturing[i] = NULL;
    struct graph *captured = stream->capture;
    stream->capture = NULL;
    sim_unlock();
    if (stream->capture_broken) {
        free(captured);
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    *graph = (CUgraph)captured;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus *status) {
    ENTER(cuStreamIsCapturing);
    struct stream *stream = sim_stream(handle);
    if (stream == NULL) return CUDA_ERROR_INVALID_HANDLE;
    *status = stream->capture == NULL    ? CU_STREAM_CAPTURE_STATUS_NONE
              : stream->capture_broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                       : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    ENTER(cuThreadExchangeStreamCaptureMode);
    *mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuGraphInstantiate(CUgraphExec *executable, CUgraph handle, unsigned long long flags) {
    ENTER(cuGraphInstantiate);
    NEED_CONTEXT();
    (void)flags;
    const struct graph *graph = (struct graph *)handle;
    if (graph == NULL || graph->magic != GRAPH_MAGIC) return CUDA_ERROR_INVALID_VALUE;
    struct graph *copy = malloc(sizeof *copy);
    if (copy == NULL) abort();
    *copy = *graph;
    copy->magic = EXECUTABLE_MAGIC;
    sim_lock();
    sim->graphs++;
    sim_unlock();
    *executable = (CUgraphExec)copy;
    return CUDA_SUCCESS;
}

static struct graph *executable_of(CUgraphExec handle) {
    struct graph *graph = (struct graph *)handle;
    return graph != NULL && graph->magic == EXECUTABLE_MAGIC ? graph : NULL;
}

EXPORT CUresult CUDAAPI cuGraphUpload(CUgraphExec executable, CUstream stream) {
    ENTER(cuGraphUpload);
    NEED_CONTEXT();
    return executable_of(executable) != NULL && sim_stream(stream) != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

EXPORT CUresult CUDAAPI cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
    ENTER(cuGraphLaunch);
    NEED_CONTEXT();
    const struct graph *graph = executable_of(handle);
    struct stream *stream = sim_stream(stream_handle);
    if (graph == NULL || stream == NULL) return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = CUDA_SUCCESS;
    sim_lock();
    int64_t start_ns = sim->launch_ns;
    for (int i = 0; i < graph->nodes && result == CUDA_SUCCESS; i++) {
        result = sim_queue(stream, graph->work[i], start_ns + sim_kernel_cost_ns(&graph->work[i]));
        start_ns = 0;
    }
    sim_unlock();
    return result;
}

/* An executable graph may be destroyed while it runs: its work was copied when it was launched. Its memory, like that of
 * a graph, is kept, so that a handle used after its end is recognised. */
EXPORT CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec handle) {
    ENTER(cuGraphExecDestroy);
    struct graph *graph = executable_of(handle);
    if (graph == NULL) return CUDA_ERROR_INVALID_HANDLE;
    graph->magic = 0;
    sim_lock();
    sim->graphs--;
    sim_unlock();
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuGraphDestroy(CUgraph handle) {
    ENTER(cuGraphDestroy);
    struct graph *graph = (struct graph *)handle;
    if (graph == NULL || graph->magic != GRAPH_MAGIC) return CUDA_ERROR_INVALID_HANDLE;
    graph->magic = 0;
    return CUDA_SUCCESS;
}
