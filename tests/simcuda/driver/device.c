/* Devices, their primary contexts, the names of errors. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim.h"

enum { DEVICES_MAX = 8, CONTEXT_DEPTH_MAX = 16 };

struct context {
    CUdevice device;
    unsigned flags;
    int retained;
};

static int initialised;
static struct context primary[DEVICES_MAX];
static __thread struct context *stack[CONTEXT_DEPTH_MAX];
static __thread int depth;

struct context *sim_context(void) { return depth > 0 ? stack[depth - 1] : NULL; }

static CUresult check_device(CUdevice device) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    return device >= 0 && device < sim->devices && device < DEVICES_MAX ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
#define NEED_DEVICE(device)                                  \
    do {                                                     \
        CUresult wrong_ = check_device(device);              \
        if (wrong_ != CUDA_SUCCESS) return wrong_;           \
    } while (0)

EXPORT CUresult CUDAAPI cuInit(unsigned flags) {
    ENTER(cuInit);
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (sim->devices < 1) return CUDA_ERROR_NO_DEVICE;
    if (!initialised) {
        const char *loading = getenv("CUDA_MODULE_LOADING");
        sim->eager_loading = loading != NULL && strcmp(loading, "EAGER") == 0;
        for (int i = 0; i < DEVICES_MAX; i++) primary[i].device = i;
        initialised = 1;
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDriverGetVersion(int *version) {
    ENTER(cuDriverGetVersion);
    *version = (int)sim->driver_version;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDeviceGetCount(int *count) {
    ENTER(cuDeviceGetCount);
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    *count = (int)sim->devices;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(cuDeviceGet);
    NEED_DEVICE(ordinal);
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDeviceGetName(char *name, int bytes, CUdevice device) {
    ENTER(cuDeviceGetName);
    NEED_DEVICE(device);
    snprintf(name, (size_t)bytes, "Simulated GPU");
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    ENTER(cuDeviceGetUuid);
    NEED_DEVICE(device);
    memset(uuid, 0, sizeof *uuid);
    uuid->bytes[15] = (char)device;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDeviceTotalMem(size_t *bytes, CUdevice device) {
    ENTER(cuDeviceTotalMem);
    NEED_DEVICE(device);
    *bytes = (size_t)sim->total_bytes;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    ENTER(cuDeviceComputeCapability);
    NEED_DEVICE(device);
    *major = (int)(sim->compute_capability / 10);
    *minor = (int)(sim->compute_capability % 10);
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDeviceGetPCIBusId(char *id, int bytes, CUdevice device) {
    ENTER(cuDeviceGetPCIBusId);
    NEED_DEVICE(device);
    snprintf(id, (size_t)bytes, "0000:%02X:00.0", device + 1);
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    ENTER(cuDeviceGetAttribute);
    NEED_DEVICE(device);
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = (int)(sim->compute_capability / 10); break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = (int)(sim->compute_capability % 10); break;
        case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: *value = 1; break;
        case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: *value = 1; break;
        case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED: *value = 1; break;
        default: *value = 0;
    }
    return CUDA_SUCCESS;
}

/* -- contexts ------------------------------------------------------------------------------------------------ */

EXPORT CUresult CUDAAPI cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned flags) {
    ENTER(cuDevicePrimaryCtxSetFlags);
    NEED_DEVICE(device);
    /* A real one refuses this flag here, although cuCtxCreate() takes it: all contexts map host memory. */
    if (flags & CU_CTX_MAP_HOST) return CUDA_ERROR_INVALID_VALUE;
    primary[device].flags = flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    ENTER(cuDevicePrimaryCtxGetState);
    NEED_DEVICE(device);
    *flags = primary[device].flags;
    *active = primary[device].retained > 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER(cuDevicePrimaryCtxRetain);
    NEED_DEVICE(device);
    sim_lock();
    primary[device].retained++;
    sim_unlock();
    *context = (CUcontext)&primary[device];
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuDevicePrimaryCtxRelease(CUdevice device) {
    ENTER(cuDevicePrimaryCtxRelease);
    NEED_DEVICE(device);
    sim_lock();
    int was = primary[device].retained;
    if (was > 0) primary[device].retained--;
    sim_unlock();
    return was > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static int alive(const struct context *context) {
    return context != NULL && context->retained > 0;
}

EXPORT CUresult CUDAAPI cuCtxPushCurrent(CUcontext context) {
    ENTER(cuCtxPushCurrent);
    if (!alive((struct context *)context)) return CUDA_ERROR_INVALID_CONTEXT;
    if (depth == CONTEXT_DEPTH_MAX) return CUDA_ERROR_INVALID_VALUE;
    stack[depth++] = (struct context *)context;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuCtxPopCurrent(CUcontext *context) {
    ENTER(cuCtxPopCurrent);
    NEED_CONTEXT();
    depth--;
    if (context != NULL) *context = (CUcontext)stack[depth];
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) {
    ENTER(cuCtxSetCurrent);
    if (context == NULL) {
        if (depth > 0) depth--;
        return CUDA_SUCCESS;
    }
    if (!alive((struct context *)context)) return CUDA_ERROR_INVALID_CONTEXT;
    if (depth == 0) depth = 1;
    stack[depth - 1] = (struct context *)context;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuCtxGetCurrent(CUcontext *context) {
    ENTER(cuCtxGetCurrent);
    *context = (CUcontext)sim_context();
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuCtxGetDevice(CUdevice *device) {
    ENTER(cuCtxGetDevice);
    NEED_CONTEXT();
    *device = sim_context()->device;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuCtxGetFlags(unsigned *flags) {
    ENTER(cuCtxGetFlags);
    NEED_CONTEXT();
    *flags = sim_context()->flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuCtxGetApiVersion(CUcontext context, unsigned *version) {
    ENTER(cuCtxGetApiVersion);
    (void)context;
    *version = (unsigned)sim->driver_version;
    return CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuCtxSynchronize(void) {
    ENTER(cuCtxSynchronize);
    NEED_CONTEXT();
    NOT_WHILE_CAPTURING();
    return sim_wait(NULL);
}

EXPORT CUresult CUDAAPI cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    ENTER(cuCtxGetStreamPriorityRange);
    NEED_CONTEXT();
    if (least != NULL) *least = 0;
    if (greatest != NULL) *greatest = -5;
    return CUDA_SUCCESS;
}

/* -- errors -------------------------------------------------------------------------------------------------- */

static const struct {
    CUresult code;
    const char *name, *text;
} errors[] = {
#define ERROR(code, text) {code, #code, text}
    ERROR(CUDA_SUCCESS, "no error"),
    ERROR(CUDA_ERROR_INVALID_VALUE, "an argument is out of its range"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not run"),
    ERROR(CUDA_ERROR_DEINITIALIZED, "the driver is shutting down"),
    ERROR(CUDA_ERROR_NO_DEVICE, "no device"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "no device has that number"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "no context is current, or a dead one"),
    ERROR(CUDA_ERROR_ECC_UNCORRECTABLE, "an ECC error that cannot be corrected"),
    ERROR(CUDA_ERROR_NVLINK_UNCORRECTABLE, "an NVLink error that cannot be corrected"),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "a handle of nothing that exists"),
    ERROR(CUDA_ERROR_ILLEGAL_STATE, "not possible in this state"),
    ERROR(CUDA_ERROR_NOT_FOUND, "not found"),
    ERROR(CUDA_ERROR_NOT_READY, "not finished yet"),
    ERROR(CUDA_ERROR_ILLEGAL_ADDRESS, "a kernel used an address that is not its own"),
    ERROR(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too few resources for the launch"),
    ERROR(CUDA_ERROR_LAUNCH_TIMEOUT, "a kernel ran for too long"),
    ERROR(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context does not exist any more"),
    ERROR(CUDA_ERROR_ASSERT, "an assertion failed in a kernel"),
    ERROR(CUDA_ERROR_HARDWARE_STACK_ERROR, "the stack of a kernel is broken"),
    ERROR(CUDA_ERROR_ILLEGAL_INSTRUCTION, "a kernel has an instruction that is none"),
    ERROR(CUDA_ERROR_MISALIGNED_ADDRESS, "a kernel used an address that is not aligned"),
    ERROR(CUDA_ERROR_INVALID_ADDRESS_SPACE, "a kernel used an address of another space"),
    ERROR(CUDA_ERROR_INVALID_PC, "a kernel ran where no code is"),
    ERROR(CUDA_ERROR_LAUNCH_FAILED, "a kernel failed"),
    ERROR(CUDA_ERROR_NOT_SUPPORTED, "not supported"),
    ERROR(CUDA_ERROR_MPS_CLIENT_TERMINATED, "the MPS server ended this client"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "not allowed while a stream is being captured"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "an earlier error broke the capture"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "another thread began the capture"),
    ERROR(CUDA_ERROR_CAPTURED_EVENT, "the event was recorded in a capture"),
    ERROR(CUDA_ERROR_UNKNOWN, "unknown error"),
#undef ERROR
};

static int find_error(CUresult code) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) return (int)i;
    return -1;
}

/* Both answer under every circumstance: they are what an error is reported with. */
EXPORT CUresult CUDAAPI cuGetErrorName(CUresult code, const char **name) {
    int i = find_error(code);
    *name = i < 0 ? NULL : errors[i].name;
    return i < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

EXPORT CUresult CUDAAPI cuGetErrorString(CUresult code, const char **text) {
    int i = find_error(code);
    *text = i < 0 ? NULL : errors[i].text;
    return i < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
