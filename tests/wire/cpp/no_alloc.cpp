// After connect nothing is allocated: every allocation of the process is counted, whatever it is made with.
//
//     no_alloc SOCKET TRANSPORT
#include <cstdio>
#include <cstdlib>

#include <sigd/sigd.hpp>

namespace {
std::uint64_t allocations = 0;
}

extern "C" {
void* __libc_malloc(std::size_t bytes);
void* __libc_calloc(std::size_t count, std::size_t bytes);
void* __libc_realloc(void* memory, std::size_t bytes);
void* __libc_memalign(std::size_t alignment, std::size_t bytes);

void* malloc(std::size_t bytes) {
    ++allocations;
    return __libc_malloc(bytes);
}
void* calloc(std::size_t count, std::size_t bytes) {
    ++allocations;
    return __libc_calloc(count, bytes);
}
void* realloc(void* memory, std::size_t bytes) {
    ++allocations;
    return __libc_realloc(memory, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
    ++allocations;
    return __libc_memalign(alignment, bytes);
}
}

namespace {

bool converse(sigd::Client& client) {
    for (int round = 0; round < 50; ++round) {
        for (int i = 0; i < 3; ++i) {
            const auto room = client.prepare();
            if (room.empty()) return false;
            for (float& feature : room) feature = 0.5F;
            if (!client.commit()) return false;
        }
        if (client.flush() != sigd::Errc::none || client.heartbeat() != sigd::Errc::none) return false;
        for (int i = 0; i < 3; ++i) {
            const auto answer = client.wait();
            if (!answer || !(*answer)->ok()) return false;
        }
    }
    if (client.send({}).code() != sigd::Errc::invalid_argument) return false;
    if (client.wait(std::chrono::milliseconds(2)).code() != sigd::Errc::none) return false;
    if (client.goodbye() != sigd::Errc::none) return false;
    return client.wait().code() == sigd::Errc::finished && client.poll().code() == sigd::Errc::finished;
}

}  // namespace

int main(int, char** argv) {
    sigd::Spec spec{.path = argv[1], .transport = static_cast<sigd::wire::Transport>(std::atoi(argv[2]))};
    sigd::Client client;
    for (const sigd::Idle idle : {sigd::Idle::spin, sigd::Idle::backoff, sigd::Idle::block}) {
        spec.idle = idle;
        const std::uint64_t unconnected = allocations;
        if (client.connect(spec) != sigd::Errc::none) return 1;
        const std::uint64_t connected = allocations;
        // The first connect must be seen to allocate, or the counting does not work; the next ones need no more.
        if ((connected != unconnected) != (idle == sigd::Idle::spin)) return 2;
        if (!converse(client)) return 3;
        if (allocations != connected) return 4;
    }
    std::puts(client.error().text);
}
