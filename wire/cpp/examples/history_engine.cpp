// An engine whose daemon keeps the history: it sends one step of each instrument at a time. It keeps the last steps
// itself too, and after every connect gives them to the daemon, with STORE_ONLY, before it goes on.
//
//     history_engine SOCKET TICKS
//
// Standard output: a line for each answer, "instrument tick status output".
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include <sigd/sigd.hpp>

namespace {

constexpr std::uint32_t instruments = 2;

// What a feed would give: the row of an instrument at a tick.
void read_row(std::uint32_t instrument, std::uint32_t tick, std::vector<float>& row) {
    for (std::uint32_t i = 0; i < row.size(); ++i)
        row[i] = static_cast<float>((tick * 31 + instrument * 17 + i * 7) % 64) / 32.0F - 1.0F;
}

// True where the daemon has the steps that come before the next tick, oldest first.
bool fill(sigd::Client& client, std::uint32_t next_tick, std::vector<float>& row) {
    const std::uint32_t kept = std::min(client.welcome().history_steps, next_tick);
    for (std::uint32_t instrument = 0; instrument < instruments; ++instrument)
        for (std::uint32_t tick = next_tick - kept; tick < next_tick; ++tick) {
            read_row(instrument, tick, row);
            const bool oldest = tick == next_tick - kept;
            const auto answer =
                client.request(row, {.instrument_id = instrument, .reset = oldest, .store_only = true});
            if (!answer || (*answer)->status != sigd::wire::Status::stored) return false;
        }
    return true;
}

// True where every instrument's step of that tick is answered.
bool step(sigd::Client& client, std::uint32_t tick, std::vector<float>& row) {
    for (std::uint32_t instrument = 0; instrument < instruments; ++instrument) {
        read_row(instrument, tick, row);
        const auto answer = client.request(row, {.instrument_id = instrument});
        if (!answer) return false;
        const sigd::Response& response = **answer;
        std::printf("%" PRIu32 " %" PRIu32 " %s %.9g\n", instrument, tick, sigd::wire::name(response.status),
                    static_cast<double>(response.outputs[0]));
    }
    std::fflush(stdout);
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: history_engine SOCKET TICKS\n");
        return 2;
    }
    const auto ticks = static_cast<std::uint32_t>(std::atoi(argv[2]));
    sigd::Reconnector daemon({.path = argv[1], .client_name = "history", .history = true, .idle = sigd::Idle::block});
    std::vector<float> row;
    std::uint64_t filled_in = 0;  // the session whose history is there
    for (std::uint32_t tick = 0; tick < ticks;) {
        const auto client = daemon.wait(std::chrono::seconds(60));
        if (!client) {
            std::fprintf(stderr, "%s\n", daemon.error().text);
            return 1;
        }
        row.resize((*client)->welcome().features);
        if (filled_in != daemon.sessions()) {
            if (!fill(**client, tick, row)) continue;
            filled_in = daemon.sessions();
        }
        if (step(**client, tick, row)) ++tick;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::fprintf(stderr, "%" PRIu64 " sessions\n", daemon.sessions());
    return 0;
}
