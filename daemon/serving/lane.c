/* The lane's thread, and what Python's thread does with it: see lane.h for who owns what. No Python. */
#define _GNU_SOURCE
#include "lane.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define AIO_EVENTS 64       /* completions that may lie unread in the kernel */
#define STACK_BYTES (1 << 20) /* all of it may be locked in memory */
#define SLEEP_MS 50         /* a bell that a client has broken is not waited for any longer */
#define CLOCK_ROUNDS 256    /* empty rounds between two looks at the clock */

#define RELAXED memory_order_relaxed
#define LOAD(place) atomic_load_explicit(place, RELAXED)
#define STORE(place, value) atomic_store_explicit(place, value, RELAXED)
#define ACQUIRE(place) atomic_load_explicit(place, memory_order_acquire)
#define RELEASE(place, value) atomic_store_explicit(place, value, memory_order_release)

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline void rest_a_cycle(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void add(int bell) {
    const uint64_t one = 1;
    /* It is ours alone: full means that it rings. */
    if (write(bell, &one, sizeof one) < 0) return;
}

/* -- counting */

static void bump(_Atomic uint64_t *count, uint64_t by) { STORE(count, LOAD(count) + by); }

static void count_durations(struct lane_counts *counts, int kind, uint64_t ns, uint64_t times) {
    if (ns >> LANE_FINE_SHIFT < LANE_BINS) {
        bump(&counts->fine[kind][ns >> LANE_FINE_SHIFT], times);
    } else {
        bump(&counts->coarse_sum_ns[kind], ns * times);
        const uint64_t bin = ns >> LANE_COARSE_SHIFT;
        bump(bin < LANE_BINS ? &counts->coarse[kind][bin] : &counts->beyond[kind], times);
    }
    if (ns > LOAD(&counts->max_ns[kind])) STORE(&counts->max_ns[kind], ns);
}

/* A run's time begins with the model's: none of it is spent in a queue. */
static void count_run(struct lane_counts *counts, uint32_t run, uint32_t good, uint64_t infer_ns) {
    bump(&counts->batches[run], 1);
    count_durations(counts, KIND_MODEL, infer_ns, 1);
    count_durations(counts, KIND_TOTAL, infer_ns, good);
    count_durations(counts, KIND_QUEUE, 0, good);
}

/* -- bells, see daemon/transport/doorbell.py: no call on what a client holds too may wait */

static int ring_bell(struct lane *lane, int bell) {
    if (lane->unread == AIO_EVENTS) {
        struct io_event events[AIO_EVENTS];
        syscall(SYS_io_getevents, lane->aio, 0L, (long)AIO_EVENTS, events, NULL);
        lane->unread = 0;
    }
    struct iocb read = {
        .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)lane->null, .aio_buf = (uint64_t)(uintptr_t)&lane->nothing,
        .aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (uint32_t)bell,
    };
    struct iocb *reads[1] = {&read};
    if (syscall(SYS_io_submit, lane->aio, 1L, reads) != 1) return -1;
    lane->unread++;
    return 0;
}

static void silence(int bell) {
    uint64_t counter;
    struct iovec into = {&counter, sizeof counter};
    if (preadv2(bell, &into, 1, -1, RWF_NOWAIT) < 0) return; /* its other holder was first */
}

/* -- answering; the lane owns the member */

static uint32_t why_unusual(const struct lane_model *model, const uint64_t *request, uint64_t now_ns) {
    if (request[HEADER] != model->request_header) return WHY_HEADER;
    if (late(request[DEADLINE], now_ns)) return WHY_DEADLINE;
    if (!row_is_odd(request, model->features)) return WHY_NONE;
    if (!model->takes_nan) return WHY_FEATURES;
    const uint32_t *bits = (const uint32_t *)(request + FEATURES);
    for (uint32_t i = 0; i < model->features; i++)
        if ((bits[i] & 0x7fffffffu) == 0x7f800000u) return WHY_FEATURES;
    return WHY_NONE;
}

/* A private copy of a request. */
static uint64_t *frame(struct lane *lane, const struct lane_model *model, uint32_t row) {
    return lane->frames + row * ((model->request_bytes + 7) / 8);
}

/* Copy the oldest requests, `rows` of them, and find the first that is unusual; how many are before it. `rows_at` is where
 * the features of those lie side by side. */
static uint32_t gather(struct lane *lane, struct lane_member *member, uint64_t taken, uint32_t rows, uint64_t *now_ns,
                       const float **rows_at, uint32_t *why) {
    const struct lane_model *model = member->model;
    for (uint32_t i = 0; i < rows; i++)
        memcpy(frame(lane, model, i), request_slot(&member->ring, taken + i), model->request_bytes);
    *now_ns = now();
    *why = WHY_NONE;
    *rows_at = rows == 1 ? (const float *)(lane->frames + FEATURES) : lane->rows;
    for (uint32_t good = 0; good < rows; good++) {
        const uint64_t *request = frame(lane, model, good);
        if ((*why = why_unusual(model, request, *now_ns))) return good;
        if (rows > 1) memcpy(lane->rows + (size_t)good * model->features, request + FEATURES, 4u * model->features);
    }
    return rows;
}

/* Answer the oldest requests, at most `rows`, in one run; how many, or 0 with `why`. */
static uint32_t answer(struct lane *lane, struct lane_member *member, const struct lane_engine *engine, uint32_t rows,
                       uint32_t *why) {
    struct lane_model *model = member->model;
    const uint64_t taken = LOAD(&member->taken), published = LOAD(&member->published);
    const float *features;
    uint64_t now_ns;
    const uint32_t run = gather(lane, member, taken, rows, &now_ns, &features, why);
    if (!run) return 0;
    const int refused = engine->runner->run(engine->runner->engine, features, lane->outputs, (int)run);
    const uint64_t end_ns = now(), infer_ns = end_ns - now_ns;
    const uint64_t outcome = model->one_row_ok + (run - 1) * model->another_row + infer_ns;
    *why = refused ? WHY_OUTPUTS : infer_ns > U32 ? WHY_LATE : WHY_NONE;
    uint32_t good = 0;
    for (; good < run && !*why; good++) {
        const uint64_t *request = frame(lane, model, good);
        const float *outputs = lane->outputs + (size_t)good * model->outputs;
        *why = !outputs_are_finite(outputs, model->outputs) ? WHY_OUTPUTS : late(request[DEADLINE], end_ns) ? WHY_LATE : WHY_NONE;
        if (*why) break;
        uint64_t *response = response_slot(&member->ring, published + good);
        response[HEADER] = model->response_header;
        write_answer(response, request, now_ns, end_ns, engine->generation, outcome, outputs, model->outputs);
    }
    if (!good) return 0;
    /* The slots are free before the answers are there: a client that sees an answer may send the next request at once. */
    __atomic_store_n(member->ring.tail, taken + good, __ATOMIC_RELEASE);
    __atomic_store_n(member->ring.answer_head, published + good, __ATOMIC_RELEASE);
    STORE(&member->taken, taken + good);
    STORE(&member->published, published + good);
    atomic_thread_fence(memory_order_seq_cst);
    if (__atomic_load_n(member->ring.client_sleeping, __ATOMIC_RELAXED) && ring_bell(lane, member->client_bell) < 0) *why = WHY_BELL;
    count_run(&model->counts, run, good, infer_ns);
    return good;
}

/* Slots for answers; -1 where the client's counter broke the rules. */
static int64_t room(struct lane_member *member, uint64_t wanted) {
    const uint64_t published = LOAD(&member->published), slots = member->ring.slots;
    uint64_t seen = LOAD(&member->tail_seen);
    if (published - seen + wanted > slots) {
        const uint64_t tail = __atomic_load_n(member->ring.answer_tail, __ATOMIC_ACQUIRE);
        if (tail < seen || tail > published) return -1;
        STORE(&member->tail_seen, seen = tail);
    }
    return published - seen > slots ? -1 : (int64_t)(slots - (published - seen));
}

/* Answer what waits, in turn with the others; why Python must have the member, or WHY_NONE. */
static uint32_t serve(struct lane *lane, struct lane_member *member, uint32_t *answered) {
    uint32_t why = WHY_NONE;
    while (*answered < LANE_ROUND_ROWS && !why && !LOAD(&member->wanted)) {
        const uint64_t waiting = __atomic_load_n(member->ring.head, __ATOMIC_ACQUIRE) - LOAD(&member->taken);
        if (!waiting) break;
        if (waiting > member->ring.slots) return WHY_RING;
        if (member->conflate && waiting > LANE_CONFLATE_ROWS) return WHY_CONFLATED;
        const struct lane_engine *engine = ACQUIRE(&member->model->engine); /* once: weights and generation belong together */
        uint64_t rows = 1;
        if (waiting >= CHUNK_ROWS_MIN && engine->runner->rows_max >= CHUNK_ROWS_MAX)
            rows = waiting < CHUNK_ROWS_MAX ? waiting : CHUNK_ROWS_MAX;
        const int64_t places = room(member, rows);
        if (places < 0) return WHY_RING;
        STORE(&member->full, places == 0);
        if (!places) break;
        *answered += answer(lane, member, engine, (uint64_t)places < rows ? (uint32_t)places : (uint32_t)rows, &why);
    }
    return why;
}

static int has_work(const struct lane_member *member) {
    return __atomic_load_n(member->ring.head, __ATOMIC_ACQUIRE) != LOAD(&member->taken);
}

static int own(struct lane_member *member) {
    uint32_t owner = OWNER_LANE;
    return atomic_compare_exchange_strong_explicit(&member->owner, &owner, OWNER_BUSY, memory_order_acquire, RELAXED);
}

static void disown(struct lane_member *member) { RELEASE(&member->owner, LOAD(&member->wanted) ? OWNER_PYTHON : OWNER_LANE); }

/* A member's turn; whether anything was done. */
static int look(struct lane *lane, struct lane_member *member) {
    if (ACQUIRE(&member->owner) != OWNER_LANE || !has_work(member) || !own(member)) return 0;
    uint32_t answered = 0;
    const uint32_t why = serve(lane, member, &answered);
    bump(&lane->answered, answered);
    if (!why) {
        disown(member);
        return answered != 0;
    }
    STORE(&member->why, why);
    RELEASE(&member->owner, OWNER_PYTHON);
    add(lane->handed_bell);
    return 1;
}

/* -- sleeping */

/* Say on every ring that its bell is needed; how many are waited for, in `polled` and `members`. */
static uint32_t arm(struct lane *lane, struct pollfd *polled, struct lane_member **members) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < ACQUIRE(&lane->places); i++) {
        struct lane_member *member = ACQUIRE(&lane->members[i]);
        if (!member || !own(member)) continue;
        __atomic_store_n(member->daemon_sleeping, 1, __ATOMIC_RELAXED);
        member->armed = LOAD(&member->gives);
        polled[count] = (struct pollfd){.fd = member->daemon_bell, .events = POLLIN};
        members[count++] = member;
        disown(member);
    }
    return count;
}

/* Whether there is anything that no bell will tell of: requests, or a member that was given meanwhile. */
static int something_came(struct lane *lane) {
    for (uint32_t i = 0; i < ACQUIRE(&lane->places); i++) {
        struct lane_member *member = ACQUIRE(&lane->members[i]);
        if (!member || ACQUIRE(&member->owner) != OWNER_LANE) continue;
        if (member->armed != LOAD(&member->gives) || (has_work(member) && !LOAD(&member->full))) return 1;
    }
    return LOAD(&lane->stop);
}

static void sleep_until_rung(struct lane *lane) {
    struct pollfd polled[LANE_MEMBERS_MAX + 1];
    struct lane_member *members[LANE_MEMBERS_MAX];
    const uint32_t count = arm(lane, polled, members);
    polled[count] = (struct pollfd){.fd = lane->wake_bell, .events = POLLIN};
    STORE(&lane->asleep, 1);
    atomic_thread_fence(memory_order_seq_cst);
    if (something_came(lane) || poll(polled, count + 1, SLEEP_MS) < 0)
        for (uint32_t i = 0; i <= count; i++) polled[i].revents = 0;
    STORE(&lane->asleep, 0);
    if (polled[count].revents & POLLIN) silence(lane->wake_bell);
    /* A bell of one that Python has taken back meanwhile may be another file by now: it is Python's to silence. */
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t armed = members[i]->armed;
        members[i]->armed = 0;
        if (!own(members[i])) continue;
        __atomic_store_n(members[i]->daemon_sleeping, 0, __ATOMIC_RELAXED);
        if (polled[i].revents & POLLIN && armed == LOAD(&members[i]->gives)) silence(members[i]->daemon_bell);
        disown(members[i]);
    }
}

/* -- real-time priority, which may not keep the kernel's own threads off the core: what the lane uses of it while it
 * is awake adds up, and sleep takes LANE_REFUND times as much back. Past the limit the lane goes on as an ordinary
 * thread until the same time has passed, or it has slept. */

static void set_realtime(struct lane *lane, int wanted) {
    const struct sched_param parameter = {.sched_priority = wanted ? lane->priority : 0};
    /* Of the calling thread. A right that was taken away meanwhile is asked for again after the next wait. */
    if (sched_setscheduler(0, wanted ? SCHED_FIFO : SCHED_OTHER, &parameter)) lane->used_ns = lane->busy_ns_max;
    else STORE(&lane->realtime, wanted);
}

static uint64_t since_charged(struct lane *lane) {
    const uint64_t now_ns = now(), passed_ns = now_ns - lane->charged_ns;
    lane->charged_ns = now_ns;
    return passed_ns;
}

static void give_back(struct lane *lane, uint64_t ns) {
    lane->used_ns -= ns < lane->used_ns ? ns : lane->used_ns;
    if (!lane->used_ns && !LOAD(&lane->realtime)) set_realtime(lane, 1);
}

/* The lane was awake since the last call. */
static void charge(struct lane *lane) {
    if (!lane->priority) return;
    const uint64_t awake_ns = since_charged(lane);
    if (!LOAD(&lane->realtime)) {
        give_back(lane, awake_ns);
    } else if ((lane->used_ns += awake_ns) > lane->busy_ns_max) {
        lane->used_ns = lane->busy_ns_max;
        set_realtime(lane, 0);
        bump(&lane->yields, 1);
    }
}

/* It slept since then. */
static void refund(struct lane *lane) {
    if (lane->priority) give_back(lane, LANE_REFUND * since_charged(lane));
}

/* -- the thread */

static void *run_lane(void *argument) {
    struct lane *lane = argument;
    prctl(PR_SET_NAME, "sigd-lane");
    uint64_t round = 0, empty = 0, idle_since_ns = 0;
    lane->charged_ns = now();
    while (!LOAD(&lane->stop)) {
        RELEASE(&lane->round, ++round); /* nothing that was loaded in an earlier round is held any more */
        int busy = 0;
        for (uint32_t i = 0; i < ACQUIRE(&lane->places); i++) {
            struct lane_member *member = ACQUIRE(&lane->members[i]);
            if (!member || !look(lane, member)) continue;
            busy = 1;
            charge(lane);
        }
        if (busy) {
            empty = 0;
            continue;
        }
        rest_a_cycle();
        if (lane->spin_ns == LANE_SPIN_FOREVER || ++empty % CLOCK_ROUNDS) continue;
        const uint64_t now_ns = now();
        charge(lane);
        if (empty == CLOCK_ROUNDS) idle_since_ns = now_ns;
        if (now_ns - idle_since_ns < lane->spin_ns) continue;
        sleep_until_rung(lane);
        refund(lane);
        empty = 0;
    }
    STORE(&lane->realtime, 0);
    return NULL;
}

/* -- Python's side */

int lane_open(struct lane *lane, int core, uint64_t spin_ns, int priority, uint64_t busy_ns_max) {
    *lane = (struct lane){.core = core, .spin_ns = spin_ns, .priority = priority, .busy_ns_max = busy_ns_max, .wake_bell = -1,
                          .handed_bell = -1, .null = -1};
    if (priority && (spin_ns == LANE_SPIN_FOREVER || !busy_ns_max)) return EINVAL;
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) < 0) return errno;
    if ((lane->wake_bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) return errno;
    if ((lane->handed_bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) return errno;
    if ((lane->null = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) return errno;
    return syscall(SYS_io_setup, AIO_EVENTS, &lane->aio) < 0 ? errno : 0;
}

void lane_close(struct lane *lane) {
    lane_stop(lane);
    if (lane->aio) syscall(SYS_io_destroy, lane->aio);
    lane->aio = 0;
    int *descriptors[] = {&lane->wake_bell, &lane->handed_bell, &lane->null};
    for (size_t i = 0; i < sizeof descriptors / sizeof *descriptors; i++) {
        if (*descriptors[i] >= 0) close(*descriptors[i]);
        *descriptors[i] = -1;
    }
}

int lane_start(struct lane *lane) {
    pthread_attr_t attributes;
    cpu_set_t cores;
    sigset_t all, before;
    if (lane->running) return EALREADY;
    if (lane->core >= CPU_SETSIZE) return EINVAL;
    CPU_ZERO(&cores);
    CPU_SET((size_t)lane->core, &cores);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setaffinity_np(&attributes, sizeof cores, &cores);
    /* Not the loop's: if that is real-time, the kernel would stop a lane that spins for 50 ms of every second. */
    const struct sched_param parameter = {.sched_priority = lane->priority};
    pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
    pthread_attr_setschedpolicy(&attributes, lane->priority ? SCHED_FIFO : SCHED_OTHER);
    pthread_attr_setschedparam(&attributes, &parameter);
    lane->used_ns = 0;
    STORE(&lane->realtime, lane->priority != 0);
    STORE(&lane->stop, 0);
    sigfillset(&all); /* signals are the loop's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&lane->thread, &attributes, run_lane, lane);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    lane->running = !failed;
    return failed;
}

static void wake(struct lane *lane) {
    atomic_thread_fence(memory_order_seq_cst);
    if (LOAD(&lane->asleep)) add(lane->wake_bell);
}

void lane_stop(struct lane *lane) {
    if (!lane->running) return;
    STORE(&lane->stop, 1);
    wake(lane);
    pthread_join(lane->thread, NULL);
    lane->running = 0;
}

int lane_join(struct lane *lane, struct lane_member *member) {
    for (uint32_t i = 0; i < LANE_MEMBERS_MAX; i++) {
        if (LOAD(&lane->members[i])) continue;
        RELEASE(&lane->members[i], member);
        if (i >= LOAD(&lane->places)) RELEASE(&lane->places, i + 1);
        return 0;
    }
    return ENOSPC;
}

void lane_leave(struct lane *lane, struct lane_member *member) {
    for (uint32_t i = 0; i < LOAD(&lane->places); i++)
        if (LOAD(&lane->members[i]) == member) STORE(&lane->members[i], NULL);
    while (LOAD(&lane->places) && !LOAD(&lane->members[LOAD(&lane->places) - 1])) STORE(&lane->places, LOAD(&lane->places) - 1);
}

void lane_give(struct lane *lane, struct lane_member *member) {
    STORE(&member->wanted, 0);
    STORE(&member->why, WHY_NONE);
    STORE(&member->full, 0);
    bump(&member->gives, 1);
    RELEASE(&member->owner, OWNER_LANE);
    wake(lane);
}

void lane_recall(struct lane_member *member) {
    const struct timespec pause = {0, 20000};
    STORE(&member->wanted, 1);
    for (uint32_t tries = 0;; tries++) {
        uint32_t owner = OWNER_LANE;
        if (atomic_compare_exchange_strong_explicit(&member->owner, &owner, OWNER_PYTHON, memory_order_acquire, memory_order_acquire) ||
            owner == OWNER_PYTHON)
            return;
        if (tries < 1000) rest_a_cycle();
        else nanosleep(&pause, NULL); /* it may be waiting for this very core */
    }
}

uint64_t lane_mark(struct lane *lane) {
    syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
    return ACQUIRE(&lane->round) + 2;
}

int lane_passed(struct lane *lane, uint64_t mark) { return !lane->running || ACQUIRE(&lane->round) >= mark; }
