/* Running totals after each event, and where each window begins in them: the twin of windows.py. */
#ifndef SIGD_FEATURES_WINDOWS_H
#define SIGD_FEATURES_WINDOWS_H

#include <stdlib.h>
#include <string.h>

#include "exact.h"

#define WINDOWS 6
#define TOTALS 4

static const int64_t WINDOWS_NS[WINDOWS] = {10000000,   50000000,   200000000,
                                            1000000000, 3000000000, 10000000000};

/* time and count, then up to four totals, whose meaning the log's owner knows. */
typedef struct {
    int64_t time_ns;
    int64_t count;
    wide totals[TOTALS];
} entry;

typedef struct {
    entry *entries;
    size_t used, room;
    size_t edges[WINDOWS];
} window_log;

static bool log_begin(window_log *log, entry origin) {
    if (log->entries == NULL) {
        log->room = 4096;
        log->entries = malloc(log->room * sizeof(entry));
        if (log->entries == NULL) return false;
    }
    log->entries[0] = origin;
    log->used = 1;
    memset(log->edges, 0, sizeof log->edges);
    return true;
}

static inline const entry *log_newest(const window_log *log) { return &log->entries[log->used - 1]; }

/* Move each edge to the last entry at or before now - W; it stays at the oldest where none is that old. */
static inline void log_move_edges(window_log *log, int64_t now_ns) {
    const entry *entries = log->entries;
    size_t newest = log->used - 1;
    for (int index = 0; index < WINDOWS; index++) {
        size_t edge = log->edges[index];
        int64_t cutoff_ns = now_ns - WINDOWS_NS[index];
        while (edge < newest && entries[edge + 1].time_ns <= cutoff_ns) edge++;
        log->edges[index] = edge;
    }
}

/* Add an entry; before the room is enlarged, what no window reaches any more is dropped. False: no memory.
 */
static inline bool log_append(window_log *log, const entry *added) {
    if (log->used == log->room) {
        entry kept = *added;
        log_move_edges(log, kept.time_ns);
        size_t oldest = log->edges[WINDOWS - 1];
        log->used -= oldest;
        memmove(log->entries, log->entries + oldest, log->used * sizeof(entry));
        for (int index = 0; index < WINDOWS; index++) log->edges[index] -= oldest;
        if (log->used * 2 > log->room) {
            entry *more = realloc(log->entries, log->room * 2 * sizeof(entry));
            if (more == NULL) return false;
            log->entries = more;
            log->room *= 2;
        }
        log->entries[log->used++] = kept;
        return true;
    }
    log->entries[log->used++] = *added;
    return true;
}

#endif
