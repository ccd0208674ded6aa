/* A lane, "Python" (this thread), and clients in a process of their own, for the sanitizers: sessions are recalled and given,
 * leave and join, engines are swapped and overwritten once the lane is past them, and some requests are unusual.
 *
 *     lane_stress SECONDS SPIN_NS    SPIN_NS -1 never sleeps
 *
 * Every answer says which engine gave it: its outputs are the engine's number and the request's. 0 where all are right. */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lane.h"

enum { SESSIONS = 3, SLOTS = 8, ENGINES = 4, WEIGHTS = 64, FEATURES_N = 4, OUTPUTS_N = 2, STRIDE = 128 };
enum { HEAD = 16, TAIL = 32, ANSWER_HEAD = 48, ANSWER_TAIL = 64, DAEMON_SLEEPS = 160, CLIENT_SLEEPS = 192, STOP = 112, DONE = 128 };
#define HEADER_WORD 7u
#define REGION_BYTES (4096 + 2 * SLOTS * STRIDE)

static void fail(const char *what) {
    printf("%s\n", what);
    fflush(stdout);
    _exit(1);
}

static uint64_t clock_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* -- engines: weights are plain memory, all of one number while the engine may run */

static uint64_t weights[ENGINES][WEIGHTS];

static int run_rows(void *engine, const float *rows, float *out, int n) {
    const uint64_t *own = engine;
    for (int row = 0; row < n; row++) {
        uint64_t number = own[0];
        for (int i = 1; i < WEIGHTS; i++)
            if (own[i] != number) number = UINT64_MAX;
        out[row * OUTPUTS_N] = (float)(number & 0xffff);
        out[row * OUTPUTS_N + 1] = rows[row * FEATURES_N];
    }
    return 0;
}

/* -- clients */

struct client {
    uint64_t *words;
    uint8_t *memory;
    int request_bell;
    uint64_t asked, answered, generation;
};

static void ask(struct client *client, uint32_t in_flight) {
    if (client->asked - client->answered >= in_flight) return;
    uint64_t *request = (uint64_t *)(client->memory + 4096 + (client->asked & (SLOTS - 1)) * STRIDE);
    float features[FEATURES_N] = {(float)(client->asked & 0xffff)};
    if (client->asked % 500 == 499) features[1] = __builtin_nanf("");
    request[HEADER] = HEADER_WORD;
    request[SEQUENCE] = client->asked;
    request[CLIENT_TIME] = request[DEADLINE] = request[INSTRUMENT] = 0;
    memcpy(request + FEATURES, features, sizeof features);
    __atomic_store_n(client->words + HEAD, ++client->asked, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n((uint32_t *)client->words + DAEMON_SLEEPS, __ATOMIC_RELAXED)) {
        const uint64_t one = 1;
        if (write(client->request_bell, &one, sizeof one) < 0) return;
    }
}

static void take(struct client *client) {
    if (__atomic_load_n(client->words + ANSWER_HEAD, __ATOMIC_ACQUIRE) == client->answered) return;
    const uint8_t *slots = client->memory + 4096 + SLOTS * STRIDE;
    const uint64_t *answer = (const uint64_t *)(slots + (client->answered & (SLOTS - 1)) * STRIDE);
    float outputs[OUTPUTS_N];
    memcpy(outputs, answer + OUTPUTS, sizeof outputs);
    const uint64_t generation = answer[RESPONSE_INSTRUMENT] >> 32;
    if (answer[SEQUENCE] != client->answered) fail("an answer is out of order");
    if (generation < client->generation) fail("an older engine answers after a newer one");
    if (outputs[0] != (float)(generation & 0xffff)) fail("the weights are not the generation's");
    if (outputs[1] != (float)(client->answered & 0xffff)) fail("the answer is to another request");
    client->generation = generation;
    __atomic_store_n(client->words + ANSWER_TAIL, ++client->answered, __ATOMIC_RELEASE);
}

static void run_clients(uint8_t **memories, const int *bells) {
    struct client clients[SESSIONS];
    for (uint32_t i = 0; i < SESSIONS; i++)
        clients[i] = (struct client){(uint64_t *)memories[i], memories[i], bells[i], 0, 0, 0};
    for (uint32_t turn = 0;; turn++) {
        uint32_t done = 0;
        for (uint32_t i = 0; i < SESSIONS; i++) {
            const int stop = __atomic_load_n(clients[i].words + STOP, __ATOMIC_ACQUIRE) != 0;
            if (!stop && (turn / 4096) % 4 != i) ask(&clients[i], 1 + 3 * i);
            take(&clients[i]);
            if (stop && clients[i].asked == clients[i].answered) done++;
        }
        if (done == SESSIONS) break;
        if (turn % 4096 == 0) usleep(300); /* long enough for a lane to fall asleep */
    }
    for (uint32_t i = 0; i < SESSIONS; i++) __atomic_store_n(clients[i].words + DONE, clients[i].answered, __ATOMIC_RELEASE);
    _exit(0);
}

/* -- Python's part */

static struct lane lane;
static struct lane_model model;
static struct lane_member *members[SESSIONS];
static struct sigd_runner runners[ENGINES];
static struct lane_engine engines[ENGINES];

static void make_engine(uint32_t place, uint64_t generation) {
    for (int i = 0; i < WEIGHTS; i++) weights[place][i] = generation;
    runners[place] = (struct sigd_runner){SIGD_RUNNER_VERSION, FEATURES_N, OUTPUTS_N, CHUNK_ROWS_MAX, weights[place], run_rows};
    engines[place] = (struct lane_engine){&runners[place], generation << 32};
}

static void wait_past(uint64_t mark) {
    const struct timespec pause = {0, 100000};
    while (!lane_passed(&lane, mark)) nanosleep(&pause, NULL);
}

static struct lane_member *make_member(uint8_t *memory, int daemon_bell, int client_bell) {
    struct lane_member *member = calloc(1, sizeof *member);
    uint64_t *words = (uint64_t *)memory;
    if (!member) fail("no memory");
    member->model = &model;
    member->ring = (struct ring){words + HEAD, words + TAIL, words + ANSWER_HEAD, words + ANSWER_TAIL, (uint32_t *)memory + CLIENT_SLEEPS,
                                 memory + 4096, memory + 4096 + SLOTS * STRIDE, STRIDE, STRIDE, SLOTS};
    member->daemon_sleeping = (uint32_t *)memory + DAEMON_SLEEPS;
    member->daemon_bell = daemon_bell;
    member->client_bell = client_bell;
    return member;
}

/* What Python does with a session of its own: the oldest request, whatever is in it. */
static void serve_one(struct lane_member *member) {
    const uint64_t taken = member->taken, published = member->published;
    __atomic_store_n(member->daemon_sleeping, 0, __ATOMIC_RELAXED);
    if (__atomic_load_n(member->ring.head, __ATOMIC_ACQUIRE) == taken) return;
    uint64_t request[STRIDE / 8];
    memcpy(request, request_slot(&member->ring, taken), model.request_bytes);
    const struct lane_engine *engine = model.engine;
    float outputs[OUTPUTS_N];
    run_rows(engine->runner->engine, (const float *)(request + FEATURES), outputs, 1);
    uint64_t *answer = response_slot(&member->ring, published);
    answer[HEADER] = HEADER_WORD;
    write_answer(answer, request, 0, 0, engine->generation, 0, outputs, OUTPUTS_N);
    __atomic_store_n(member->ring.tail, taken + 1, __ATOMIC_RELEASE);
    __atomic_store_n(member->ring.answer_head, published + 1, __ATOMIC_RELEASE);
    member->taken = taken + 1;
    member->published = published + 1;
}

/* Leave, and join again as another member of the same session; the old one is freed when the lane is past it. */
static void move(uint32_t i) {
    struct lane_member *old = members[i], *fresh = calloc(1, sizeof *fresh);
    if (!fresh) fail("no memory");
    lane_recall(old);
    lane_leave(&lane, old);
    const uint64_t mark = lane_mark(&lane);
    memcpy(&fresh->ring, &old->ring, sizeof old->ring);
    fresh->model = old->model;
    fresh->daemon_sleeping = old->daemon_sleeping;
    fresh->daemon_bell = old->daemon_bell;
    fresh->client_bell = old->client_bell;
    fresh->taken = old->taken;
    fresh->published = old->published;
    fresh->tail_seen = old->tail_seen;
    serve_one(fresh);
    if (lane_join(&lane, fresh)) fail("there is no place in the lane");
    members[i] = fresh;
    lane_give(&lane, fresh);
    wait_past(mark);
    free(old);
}

int main(int count, char **arguments) {
    if (count != 3) fail("usage: lane_stress SECONDS SPIN_NS");
    uint8_t *memories[SESSIONS];
    int bells[SESSIONS];
    model = (struct lane_model){.features = FEATURES_N, .outputs = OUTPUTS_N, .request_bytes = 8 * FEATURES + 4 * FEATURES_N,
                                .request_header = HEADER_WORD, .response_header = HEADER_WORD};
    for (uint32_t i = 0; i < SESSIONS; i++) {
        memories[i] = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        bells[i] = eventfd(0, EFD_NONBLOCK);
        if (memories[i] == MAP_FAILED || bells[i] < 0) fail("no memory or no descriptor");
    }
    const pid_t child = fork();
    if (!child) run_clients(memories, bells);
    uint64_t generation = 1, swaps = 0, recalls = 0, handed = 0, moves = 0;
    make_engine(1, generation);
    model.engine = &engines[1];
    cpu_set_t cores;
    int core = 0;
    if (sched_getaffinity(0, sizeof cores, &cores)) fail("which cores are there?");
    while (!CPU_ISSET(core, &cores)) core++;
    if (lane_open(&lane, core, (uint64_t)strtoll(arguments[2], NULL, 10), 0, 0) || lane_start(&lane)) fail("the lane does not start");
    for (uint32_t i = 0; i < SESSIONS; i++) {
        members[i] = make_member(memories[i], bells[i], bells[i]);
        if (lane_join(&lane, members[i])) fail("there is no place in the lane");
        lane_give(&lane, members[i]);
    }
    const uint64_t until_ns = clock_ns() + (uint64_t)(atof(arguments[1]) * 1e9);
    uint32_t chance = 1;
    int stopping = 0, status = 0;
    while (!(stopping && waitpid(child, &status, WNOHANG) == child)) {
        chance = chance * 1664525u + 1013904223u;
        const uint32_t what = chance >> 28, i = (chance >> 20) % SESSIONS;
        for (uint32_t j = 0; j < SESSIONS; j++) {
            if (atomic_load_explicit(&members[j]->owner, memory_order_acquire) != OWNER_PYTHON) continue;
            handed++;
            serve_one(members[j]);
            lane_give(&lane, members[j]);
        }
        if (what < 6) {
            recalls++;
            lane_recall(members[i]);
            serve_one(members[i]);
            serve_one(members[i]);
            lane_give(&lane, members[i]);
        } else if (what < 8) {
            swaps++;
            const uint64_t old = generation++ % ENGINES;
            make_engine((uint32_t)(generation % ENGINES), generation);
            atomic_store_explicit(&model.engine, &engines[generation % ENGINES], memory_order_release);
            wait_past(lane_mark(&lane));
            for (uint64_t j = 0; j < WEIGHTS; j++) weights[old][j] = UINT64_MAX - j;
        } else if (what == 8) {
            moves++;
            move(i);
        } else {
            const struct timespec pause = {0, (chance >> 8 & 255) * 200};
            nanosleep(&pause, NULL);
        }
        if (!stopping && clock_ns() > until_ns) {
            stopping = 1;
            for (uint32_t j = 0; j < SESSIONS; j++) __atomic_store_n((uint64_t *)memories[j] + STOP, 1, __ATOMIC_RELEASE);
        }
    }
    lane_close(&lane);
    uint64_t answered = 0, by_lane = 0;
    for (uint32_t i = 0; i < SESSIONS; i++) {
        answered += ((uint64_t *)memories[i])[DONE];
        free(members[i]);
    }
    for (uint32_t kind = 0; kind < LANE_BINS; kind++) by_lane += model.counts.fine[KIND_TOTAL][kind] + model.counts.coarse[KIND_TOTAL][kind];
    by_lane += model.counts.beyond[KIND_TOTAL];
    printf("%lu answers, %lu by the lane, %lu swaps, %lu recalls, %lu handed over, %lu moves\n", answered, by_lane, swaps, recalls,
           handed, moves);
    return WEXITSTATUS(status) || !by_lane || !swaps || !recalls || !handed || !moves;
}
