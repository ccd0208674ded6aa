/* The control block, counting, faults. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sim.h"

struct sim_control *sim;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void sim_lock(void) { pthread_mutex_lock(&lock); }
void sim_unlock(void) { pthread_mutex_unlock(&lock); }

static const char *const call_names[CALLS] = {
#define CALL(name) #name,
#include "calls.def"
#undef CALL
};
_Static_assert((int)CALLS <= SIM_CALLS_MAX, "control.h has room for fewer calls than calls.def names");

static int64_t setting(const char *name, int64_t otherwise) {
    const char *text = getenv(name);
    return text != NULL && *text != '\0' ? strtoll(text, NULL, 0) : otherwise;
}

static void *map_control(void) {
    const char *path = getenv("SIMCUDA_CONTROL");
    int file = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if (path != NULL && *path != '\0') {
        file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (file < 0 || ftruncate(file, sizeof *sim) != 0) {
            perror("simcuda: SIMCUDA_CONTROL");
            abort();
        }
        flags = MAP_SHARED;
    }
    void *block = mmap(NULL, sizeof *sim, PROT_READ | PROT_WRITE, flags, file, 0);
    if (block == MAP_FAILED) abort();
    if (file >= 0) close(file);
    return block;
}

__attribute__((constructor)) static void load(void) {
    sim = map_control();
    memset(sim, 0, sizeof *sim);
    sim->devices = setting("SIMCUDA_DEVICES", 1);
    sim->driver_version = setting("SIMCUDA_DRIVER_VERSION", 13000);
    sim->compute_capability = setting("SIMCUDA_COMPUTE_CAPABILITY", 86);
    sim->total_bytes = setting("SIMCUDA_TOTAL_MIB", 24576) << 20;
    sim->cotenant_bytes = setting("SIMCUDA_COTENANT_MIB", 0) << 20;
    sim->launch_ns = setting("SIMCUDA_LAUNCH_NS", 0);
    sim->copy_ns = setting("SIMCUDA_COPY_NS", 0);
    sim->kernel_ns = setting("SIMCUDA_KERNEL_NS", 0);
    sim->kernel_fault = setting("SIMCUDA_KERNEL_FAULT", 0);
    sim->hang = setting("SIMCUDA_HANG", 0);
    sim->calls_known = CALLS;
    for (int i = 0; i < CALLS; i++) snprintf(sim->calls[i].name, SIM_NAME_BYTES, "%s", call_names[i]);
    __atomic_store_n(&sim->bytes, (int64_t)sizeof *sim, __ATOMIC_RELEASE);
}

/* A device that hangs holds up the end of a process that lets the driver finish. */
__attribute__((destructor)) static void unload(void) {
    while (sim->hang) sleep(1);
}

/* For tests in this process: where the block is. */
EXPORT struct sim_control *simcuda_control(void) { return sim; }

static CUresult fault_of(enum sim_call_number number) {
    CUresult code = CUDA_SUCCESS;
    sim_lock();
    for (int i = 0; i < SIM_FAULTS; i++) {
        struct sim_fault *fault = &sim->faults[i];
        if (fault->nth > 0 && strcmp(fault->name, call_names[number]) == 0 && --fault->nth == 0) {
            code = (CUresult)fault->code;
            sim->faults_armed--;
        }
    }
    sim_unlock();
    return code;
}

/* The codes after which cuda.h says that the process must be terminated. */
static int kills_context(CUresult code) {
    return code == CUDA_ERROR_ECC_UNCORRECTABLE || code == CUDA_ERROR_ILLEGAL_ADDRESS || code == CUDA_ERROR_LAUNCH_TIMEOUT ||
           code == CUDA_ERROR_ASSERT || (code >= CUDA_ERROR_HARDWARE_STACK_ERROR && code <= CUDA_ERROR_LAUNCH_FAILED) ||
           code == CUDA_ERROR_MPS_CLIENT_TERMINATED || code == CUDA_ERROR_UNKNOWN;
}

CUresult sim_enter(enum sim_call_number number) {
    __atomic_add_fetch(&sim->calls[number].made, 1, __ATOMIC_RELAXED);
    CUresult code = (CUresult)__atomic_load_n(&sim->sticky, __ATOMIC_RELAXED);
    if (code == CUDA_SUCCESS && __atomic_load_n(&sim->faults_armed, __ATOMIC_ACQUIRE) > 0) {
        code = fault_of(number);
        if (kills_context(code)) sim->sticky = code;
    }
    if (sim->sticky) sim_drop_work();
    return code;
}

/* A kernel that does nothing, for measuring what everything else costs. */
EXPORT void simcuda_nothing(void *argument) { (void)argument; }
