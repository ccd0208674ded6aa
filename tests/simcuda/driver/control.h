/* What a test sees and sets of the simulated driver: one block of memory, in the file named by SIMCUDA_CONTROL (so that
 * another process can watch and disturb this one) or private to the process. tests/simcuda/control.py mirrors it field
 * by field; `bytes` tells the two apart when they differ. */
#pragma once

#include <stdint.h>

#define SIM_NAME_BYTES 40
#define SIM_FAULTS 8
#define SIM_CALLS_MAX 96

/* The `nth` call of `name` from now on answers `code`, and does nothing else. 1 is the next call; 0 is no fault. */
struct sim_fault {
    char name[SIM_NAME_BYTES];
    int64_t nth;
    int64_t code;
};

struct sim_call {
    char name[SIM_NAME_BYTES];
    int64_t made;
};

struct sim_control {
    int64_t bytes;               /* sizeof(struct sim_control), once the driver is loaded */

    /* The machine, read when it is asked for. */
    int64_t devices;
    int64_t driver_version;      /* 1000 * major + 10 * minor */
    int64_t compute_capability;  /* 10 * major + minor */
    int64_t total_bytes;         /* device memory of each device */
    int64_t cotenant_bytes;      /* of which other processes hold this much */

    /* Device time, in ns. */
    int64_t manual_clock;        /* 1: device time is now_ns, and stands still until it is written or waited for */
    int64_t now_ns;
    int64_t launch_ns;           /* from a launch to the start of what it launches */
    int64_t copy_ns;             /* one copy */
    int64_t kernel_ns;           /* one host function, which stands for a kernel */

    /* Trouble. */
    int64_t stall_ns;            /* the next piece of work takes this much longer; then 0 again */
    int64_t hang;                /* 1: no work finishes any more */
    int64_t kernel_fault;        /* the next kernel to run does not run and kills the context with this code; then 0 */
    int64_t sticky;              /* the code that every call answers from now on; 0 while the context lives */
    int64_t faults_armed;        /* how many entries of `faults` have a nth: 0 keeps the calls from looking */
    struct sim_fault faults[SIM_FAULTS];

    /* What has been. */
    int64_t eager_loading;       /* CUDA_MODULE_LOADING was EAGER when cuInit ran */
    int64_t device_bytes;        /* device memory that this process holds */
    int64_t pinned_bytes;        /* pinned host memory that it holds */
    int64_t streams;             /* streams, events and executable graphs that exist */
    int64_t events;
    int64_t graphs;
    int64_t calls_known;
    struct sim_call calls[SIM_CALLS_MAX];
};
