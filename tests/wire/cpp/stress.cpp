// Requests whose features follow from their sequence, against ring_peer.py, which checks them and answers likewise:
// a frame that is lost, doubled, torn or taken twice does not go unnoticed, and a lost wake-up times out.
//
//     stress SOCKET TRANSPORT IDLE REQUESTS IN_FLIGHT_MAX
#include <cstdio>
#include <cstdlib>

#include <sigd/sigd.hpp>

namespace {

float base_of(std::uint64_t sequence) { return static_cast<float>(sequence % 4096); }

bool send_one(sigd::Client& client) {
    const auto room = client.prepare();
    if (room.empty()) return false;
    const float base = base_of(client.next_sequence());
    for (std::size_t i = 0; i < room.size(); ++i) room[i] = base + static_cast<float>(i);
    return static_cast<bool>(client.commit());
}

bool good(const sigd::Response& answer, std::uint64_t expected) {
    if (answer.sequence != expected || !answer.ok()) return false;
    const float base = base_of(expected);
    for (std::size_t i = 0; i < answer.outputs.size(); ++i)
        if (answer.outputs[i] != base - static_cast<float>(i)) return false;
    return true;
}

int fail(const sigd::Client& client, const char* what, std::uint64_t at) {
    std::printf("%s at %llu: %s\n", what, static_cast<unsigned long long>(at), client.error().text);
    return 1;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 6) return 2;
    const std::uint64_t requests = std::strtoull(argv[4], nullptr, 10);
    const std::uint64_t in_flight_max = std::strtoull(argv[5], nullptr, 10);
    sigd::Client client;
    const sigd::Errc code = client.connect({.path = argv[1],
                                            .client_name = "stress",
                                            .transport = static_cast<sigd::wire::Transport>(std::atoi(argv[2])),
                                            .idle = static_cast<sigd::Idle>(std::atoi(argv[3]))});
    if (code != sigd::Errc::none) return fail(client, "connect", 0);
    // How many are sent before the next answer is waited for differs from time to time, so that both sides sleep and
    // wake at different moments.
    std::uint64_t random = 88172645463325252U;
    for (std::uint64_t answered = 0; answered < requests; ++answered) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        for (std::uint64_t burst = random % in_flight_max + 1; burst > 0; --burst)
            if (client.next_sequence() == requests || client.unanswered() >= in_flight_max || !send_one(client)) break;
        const auto answer = client.wait(std::chrono::seconds(20));
        if (!answer) return fail(client, "no answer", answered);
        if (!good(**answer, answered)) return fail(client, "wrong answer", answered);
    }
    if (client.goodbye() != sigd::Errc::none) return fail(client, "goodbye", requests);
    const auto end = client.wait(std::chrono::seconds(20));
    if (end.code() != sigd::Errc::finished) return fail(client, "no end", requests);
    std::printf("%llu answers\n", static_cast<unsigned long long>(requests));
}
