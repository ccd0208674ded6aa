/* Device memory, pinned memory and copies. Device memory is host memory that only copies and kernels may touch. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "sim.h"

struct allocation {
    uintptr_t address;
    size_t bytes, mapped;
    enum memory_kind kind;
    unsigned flags;
    struct allocation *next;
};

static struct allocation *allocations;
static const size_t PAGE = 4096;

static struct allocation *find(uintptr_t address) {
    for (struct allocation *a = allocations; a != NULL; a = a->next)
        if (address >= a->address && address < a->address + a->bytes) return a;
    return NULL;
}

int sim_inside(uintptr_t address, size_t bytes, enum memory_kind kind) {
    const struct allocation *a = find(address);
    return a != NULL && a->kind == kind && address + bytes <= a->address + a->bytes;
}

/* Fresh memory is filled with bytes that are no sensible number, so that reading it before it is written shows. */
static CUresult allocate(void **address, size_t bytes, enum memory_kind kind, unsigned flags) {
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    size_t mapped = (bytes + PAGE - 1) / PAGE * PAGE;
    CUresult result = CUDA_SUCCESS;
    sim_lock();
    if (kind == MEMORY_DEVICE && sim->device_bytes + sim->cotenant_bytes + (int64_t)mapped > sim->total_bytes) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
        void *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        struct allocation *a = calloc(1, sizeof *a);
        if (memory == MAP_FAILED || a == NULL) abort();
        memset(memory, 0xA5, bytes);
        *a = (struct allocation){(uintptr_t)memory, bytes, mapped, kind, flags, allocations};
        allocations = a;
        *(kind == MEMORY_DEVICE ? &sim->device_bytes : &sim->pinned_bytes) += (int64_t)mapped;
        *address = memory;
    }
    sim_unlock();
    return result;
}

static CUresult release(uintptr_t address, enum memory_kind kind) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    sim_lock();
    for (struct allocation **at = &allocations; *at != NULL; at = &(*at)->next) {
        struct allocation *a = *at;
        if (a->address != address || a->kind != kind) continue;
        *at = a->next;
        munmap((void *)a->address, a->mapped);
        *(kind == MEMORY_DEVICE ? &sim->device_bytes : &sim->pinned_bytes) -= (int64_t)a->mapped;
        free(a);
        result = CUDA_SUCCESS;
        break;
    }
    sim_unlock();
    return result;
}

EXPORT CUresult CUDAAPI cuMemGetInfo(size_t *available, size_t *total) {
    ENTER(cuMemGetInfo);
    NEED_CONTEXT();
    int64_t left = sim->total_bytes - sim->cotenant_bytes - sim->device_bytes;
    *available = left > 0 ? (size_t)left : 0;
    *total = (size_t)sim->total_bytes;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuMemAlloc(CUdeviceptr *pointer, size_t bytes) {
    ENTER(cuMemAlloc);
    NEED_CONTEXT();
    NOT_WHILE_CAPTURING();
    void *address;
    CUresult result = allocate(&address, bytes, MEMORY_DEVICE, 0);
    if (result == CUDA_SUCCESS) *pointer = (CUdeviceptr)address;
    return result;
}

/* Freeing waits for the device, as on a real one: on a device that hangs it never returns. */
EXPORT CUresult CUDAAPI cuMemFree(CUdeviceptr pointer) {
    ENTER(cuMemFree);
    NEED_CONTEXT();
    NOT_WHILE_CAPTURING();
    if (pointer == 0) return CUDA_SUCCESS;
    CUresult result = sim_wait(NULL);
    return result != CUDA_SUCCESS ? result : release((uintptr_t)pointer, MEMORY_DEVICE);
}

EXPORT CUresult CUDAAPI cuMemGetAddressRange(CUdeviceptr *base, size_t *bytes, CUdeviceptr pointer) {
    ENTER(cuMemGetAddressRange);
    sim_lock();
    const struct allocation *a = find((uintptr_t)pointer);
    if (a != NULL && base != NULL) *base = (CUdeviceptr)a->address;
    if (a != NULL && bytes != NULL) *bytes = a->bytes;
    sim_unlock();
    return a != NULL ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

EXPORT CUresult CUDAAPI cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    ENTER(cuMemHostAlloc);
    NEED_CONTEXT();
    NOT_WHILE_CAPTURING();
    return allocate(address, bytes, MEMORY_PINNED, flags);
}

EXPORT CUresult CUDAAPI cuMemFreeHost(void *address) {
    ENTER(cuMemFreeHost);
    NEED_CONTEXT();
    NOT_WHILE_CAPTURING();
    CUresult result = sim_wait(NULL);
    return result != CUDA_SUCCESS ? result : release((uintptr_t)address, MEMORY_PINNED);
}

EXPORT CUresult CUDAAPI cuMemHostGetDevicePointer(CUdeviceptr *pointer, void *address, unsigned flags) {
    ENTER(cuMemHostGetDevicePointer);
    (void)flags;
    sim_lock();
    const struct allocation *a = find((uintptr_t)address);
    int mapped = a != NULL && a->kind == MEMORY_PINNED && (a->flags & CU_MEMHOSTALLOC_DEVICEMAP);
    sim_unlock();
    if (!mapped) return CUDA_ERROR_INVALID_VALUE;
    *pointer = (CUdeviceptr)address;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuMemHostGetFlags(unsigned *flags, void *address) {
    ENTER(cuMemHostGetFlags);
    sim_lock();
    const struct allocation *a = find((uintptr_t)address);
    if (a != NULL) *flags = a->flags;
    sim_unlock();
    return a != NULL && a->kind == MEMORY_PINNED ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* -- copies -------------------------------------------------------------------------------------------------- */

/* Queue a copy. An asynchronous one wants pinned memory: from other memory a real driver stages or waits, which is
 * exactly what a hot path must not do, so here it is refused. */
static CUresult copy(void *to, const void *from, size_t bytes, CUstream handle, int to_device, int asynchronous) {
    NEED_CONTEXT();
    struct stream *stream = sim_stream(handle);
    if (stream == NULL) return CUDA_ERROR_INVALID_HANDLE;
    uintptr_t device = (uintptr_t)(to_device ? to : from), host = (uintptr_t)(to_device ? from : to);
    sim_lock();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (sim_inside(device, bytes, MEMORY_DEVICE)) {
        if (asynchronous && !sim_inside(host, bytes, MEMORY_PINNED)) {
            fprintf(stderr, "simcuda: an asynchronous copy of %zu bytes with host memory that is not pinned\n", bytes);
            result = CUDA_ERROR_NOT_SUPPORTED;
        } else {
            result = sim_queue(stream, (struct work){.kind = WORK_COPY, .to = to, .from = from, .bytes = bytes}, sim->copy_ns);
        }
    }
    sim_unlock();
    return result != CUDA_SUCCESS || asynchronous ? result : sim_wait(stream);
}

EXPORT CUresult CUDAAPI cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t bytes) {
    ENTER(cuMemcpyHtoD);
    NOT_WHILE_CAPTURING();
    return copy((void *)to, from, bytes, NULL, 1, 0);
}

EXPORT CUresult CUDAAPI cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes) {
    ENTER(cuMemcpyDtoH);
    NOT_WHILE_CAPTURING();
    return copy(to, (const void *)from, bytes, NULL, 0, 0);
}

EXPORT CUresult CUDAAPI cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    ENTER(cuMemcpyHtoDAsync);
    return copy((void *)to, from, bytes, stream, 1, 1);
}

EXPORT CUresult CUDAAPI cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(cuMemcpyDtoHAsync);
    return copy(to, (const void *)from, bytes, stream, 0, 1);
}

EXPORT CUresult CUDAAPI cuMemsetD8(CUdeviceptr to, unsigned char value, size_t bytes) {
    ENTER(cuMemsetD8);
    NEED_CONTEXT();
    NOT_WHILE_CAPTURING();
    struct stream *stream = sim_stream(NULL);
    sim_lock();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (sim_inside((uintptr_t)to, bytes, MEMORY_DEVICE))
        result = sim_queue(stream, (struct work){.kind = WORK_SET, .to = (void *)to, .value = value, .bytes = bytes}, 0);
    sim_unlock();
    return result != CUDA_SUCCESS ? result : sim_wait(stream);
}
