// What the native programs ask of Linux beyond the client's own headers: a clock for differences, a core, a listener.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <sigd/platform.hpp>

namespace sigd::bench {

// The client's clock as a signed number: what is measured are differences, and some of them are below zero.
inline std::int64_t clock_ns() { return static_cast<std::int64_t>(sigd::clock_ns()); }

[[noreturn]] inline void die(const char* what) {
    std::fprintf(stderr, "%s: %s\n", what, std::strerror(errno));
    std::exit(3);
}

// Pins this thread to one core; a negative number leaves it to the scheduler.
inline void pin(std::int64_t cpu) {
    if (cpu < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<std::size_t>(cpu), &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) die("cannot pin to the core asked for");
}

inline void lock_memory() {
#if !defined(__SANITIZE_ADDRESS__)  // its shadow memory is terabytes of addresses, and locked they would all be filled
    // Best effort: where the limits forbid it the run goes on, and the hiccups it then has are reported as such.
    (void)mlockall(MCL_CURRENT);
#endif
}

// A non-blocking Unix socket that listens at `path`.
inline int listen_on(const char* path) {
    const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0) die("socket");
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (std::strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        die(path);
    }
    std::memcpy(address.sun_path, path, std::strlen(path));
    if (bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) die(path);
    if (listen(listener, 64) != 0) die(path);
    return listener;
}

inline bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace sigd::bench
