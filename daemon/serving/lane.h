/* A lane: a native thread that answers requests from shared-memory rings without Python's lock.
 *
 * Who may touch what:
 * - A member is one session. Its `owner` is OWNER_PYTHON, OWNER_LANE or OWNER_BUSY (the lane works on it now), and changes
 *   by compare-and-swap where both sides could change it. Ring positions and the region belong to the owner. The lane peeks
 *   at a ring's head without owning it, so the region stays mapped until the lane is past the member.
 * - An engine is immutable and stands behind one pointer of its model, which the lane loads once for each run.
 * - What is taken out of a lane (a member) or replaced (an engine) is freed when the lane is past it: `lane_mark` after the
 *   change, and `lane_passed` later. A round that began before the change may hold it; none of two rounds after it does.
 *   The mark is a barrier on all threads: without it the lane's own stores of `round` may still be on their way, any
 *   number of them.
 * - A lane that sleeps holds no engine; it counts a round when it wakes up, which it does by itself every 50 ms.
 */
#pragma once
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "answer.h"
#include "engine.h"

#define LANE_MEMBERS_MAX 64
#define LANE_ROUND_ROWS 32       /* of one member in a row, before the others have their turn */
#define LANE_CONFLATE_ROWS 32    /* so many waiting requests of a client that conflates are Python's to thin out */
#define LANE_FEATURES_MAX 1024
#define LANE_OUTPUTS_MAX 1024
#define LANE_BINS 8192           /* as daemon/serving/counters.py */
#define LANE_FINE_SHIFT 7
#define LANE_COARSE_SHIFT 17
#define LANE_SPIN_FOREVER UINT64_MAX
#define LANE_REFUND 10           /* real-time use that a sleep of the same length takes back, see lane.c */

enum { OWNER_PYTHON, OWNER_LANE, OWNER_BUSY };

/* Why a member was handed to Python; daemon/transport/lanes.py names them. */
enum { WHY_NONE, WHY_HEADER, WHY_DEADLINE, WHY_FEATURES, WHY_RING, WHY_OUTPUTS, WHY_LATE, WHY_CONFLATED, WHY_BELL };

enum { KIND_TOTAL, KIND_QUEUE, KIND_MODEL, KINDS };

struct lane_engine {
    const struct sigd_runner *runner; /* of this lane alone */
    uint64_t generation;              /* in its place in an answer's word */
};

/* Written by the lane, read by Python. */
struct lane_counts {
    _Atomic uint64_t fine[KINDS][LANE_BINS], coarse[KINDS][LANE_BINS];
    _Atomic uint64_t coarse_sum_ns[KINDS], beyond[KINDS], max_ns[KINDS];
    _Atomic uint64_t batches[CHUNK_ROWS_MAX + 1];
};

struct lane_model {
    _Atomic(struct lane_engine *) engine;
    uint32_t features, outputs, takes_nan;
    uint64_t request_bytes, request_header, response_header, one_row_ok, another_row;
    struct lane_counts counts;
};

struct lane_member {
    _Atomic uint32_t owner, wanted, why;
    _Atomic uint32_t full; /* its client takes no answers */
    _Atomic uint64_t taken, published, tail_seen, gives;
    struct lane_model *model;
    struct ring ring;
    uint32_t *daemon_sleeping;
    int daemon_bell, client_bell;
    uint32_t conflate;
    uint64_t armed; /* the lane's own: the `gives` under which its bell is waited for; 0 where it is not */
};

struct lane {
    _Atomic(struct lane_member *) members[LANE_MEMBERS_MAX];
    _Atomic uint64_t round, answered;
    _Atomic uint64_t yields; /* how often it was busy for too long and gave up its priority */
    _Atomic uint32_t stop, asleep, places; /* places: of `members` that are looked at, from the first */
    _Atomic uint32_t realtime; /* it has its priority just now */
    int core, wake_bell, handed_bell, null, priority;
    uint64_t spin_ns, busy_ns_max;
    pthread_t thread;
    int running;
    /* the lane's own */
    aio_context_t aio;
    uint32_t unread;
    uint8_t nothing;
    uint64_t charged_ns, used_ns; /* when its use of real time was counted last, and how much it has used */
    uint64_t frames[CHUNK_ROWS_MAX * (FEATURES + LANE_FEATURES_MAX / 2 + 1)];
    float rows[CHUNK_ROWS_MAX * LANE_FEATURES_MAX], outputs[CHUNK_ROWS_MAX * LANE_OUTPUTS_MAX];
};

/* All of them return 0, or an errno, unless they say otherwise; Python's thread calls them, one at a time. */

/* Bells and the kernel's asynchronous I/O; `lane_close` gives them back. `priority`: SCHED_FIFO, or 0 for an ordinary
 * thread; for `busy_ns_max` without sleep at most. EINVAL for one that never sleeps. */
int lane_open(struct lane *, int core, uint64_t spin_ns, int priority, uint64_t busy_ns_max);
void lane_close(struct lane *);
/* EINVAL where the process may not run on `core`, EPERM where it may not have the priority. */
int lane_start(struct lane *);
/* Waits for the request under way, if any. */
void lane_stop(struct lane *);

/* ENOSPC where there is no place; the member belongs to Python. */
int lane_join(struct lane *, struct lane_member *);
/* The member belongs to Python. */
void lane_leave(struct lane *, struct lane_member *);
/* From now on the lane owns it. */
void lane_give(struct lane *, struct lane_member *);
/* From now on Python owns it; waits for the run under way, if any. */
void lane_recall(struct lane_member *);

/* The round to pass, for what was taken away before the call. */
uint64_t lane_mark(struct lane *);
/* Whether the lane is past it. */
int lane_passed(struct lane *, uint64_t mark);
