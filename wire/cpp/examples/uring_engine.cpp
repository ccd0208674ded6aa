// An engine with an event loop of its own: io_uring moves the bytes, sigd's client code makes requests and checks
// answers without any I/O. Replays the arrivals of a market and prints how long answers took, counted from the time at
// which each request was due, so that a stall counts for every request it held up. A connection that is lost is opened
// anew; what it had not been answered is counted as lost.
//
//     uring_engine SOCKET ARRIVALS.i64 [CONNECTIONS [SPEED]]        (arrivals.py makes ARRIVALS.i64)
//
// Build: g++ -std=c++20 -O2 uring_engine.cpp -luring. Exit 3: this kernel or container allows no io_uring.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <vector>

#include <liburing.h>

#include <sigd/sigd.hpp>

#include "histogram.hpp"

namespace {

std::vector<std::uint64_t> read_arrivals(const char* path, double speed) {
    std::ifstream file(path, std::ios::binary);
    std::vector<std::uint64_t> arrivals;
    for (std::int64_t offset_ns = 0; file.read(reinterpret_cast<char*>(&offset_ns), sizeof offset_ns);)
        arrivals.push_back(static_cast<std::uint64_t>(static_cast<double>(offset_ns) / speed));
    return arrivals;
}

// One connection: at most one receive and one send are with the kernel, and what they use is not touched meanwhile.
struct Connection {
    sigd::Session session;
    sigd::StreamBuffers buffers;
    sigd::Conversation talk;
    std::size_t next_arrival = 0;           // into the schedule; this connection's are `connections` apart
    std::vector<std::uint64_t> due_ns;      // of the unanswered, by sequence modulo its size
    bool sending = false;
    bool receiving = false;
    sigd::Backoff backoff;
    std::uint64_t reopen_ns = 0;            // when to try again, while there is no session

    sigd::Errc open(const char* path) {
        sigd::Error& error = talk.error();
        const sigd::Spec spec{.path = path, .client_name = "uring_engine"};
        if (open_session(spec, buffers, session, error) != sigd::Errc::none) return error.code;
        const std::uint32_t most = session.welcome.in_flight_max;
        if (talk.open(session.welcome, most) != sigd::Errc::none) return error.code;
        due_ns.resize(most);
        if (buffers.reserve(talk.request_bytes(), most) == sigd::Errc::none) return sigd::Errc::none;
        return error.set(sigd::Errc::out_of_memory, "no memory for %u requests", most);
    }

    [[nodiscard]] bool is_open() const { return talk.state() == sigd::Errc::none; }
    // What the kernel may still write to is not given to another session.
    [[nodiscard]] bool is_free() const { return !is_open() && !sending && !receiving; }
};

class Engine {
public:
    Engine(io_uring& ring, std::vector<std::uint64_t> arrivals, std::size_t connections)
        : ring_(ring), arrivals_(std::move(arrivals)), connections_(connections) {}

    bool run(const char* path) {
        for (std::size_t i = 0; i < connections_.size(); ++i) {
            if (connections_[i].open(path) != sigd::Errc::none) return fail(connections_[i]);
            connections_[i].next_arrival = i;
            receive(i);
        }
        begin_ns_ = sigd::clock_ns() + 1'000'000;
        while (answered_ + lost_ < arrivals_.size()) {
            const std::uint64_t now_ns = sigd::clock_ns();
            for (std::size_t i = 0; i < connections_.size(); ++i) {
                if (connections_[i].is_free() && now_ns >= connections_[i].reopen_ns && !reopen(i, path)) return false;
                send_due(i, now_ns);
            }
            io_uring_submit(&ring_);
            take_completions(now_ns);
        }
        return true;
    }

    [[nodiscard]] const Histogram& latencies() const { return latencies_; }
    [[nodiscard]] std::uint64_t not_ok() const { return not_ok_; }
    [[nodiscard]] std::uint64_t lost() const { return lost_; }

private:
    // Everybody waits while it connects, for a daemon on the same host microseconds. False where trying is no use.
    bool reopen(std::size_t index, const char* path) {
        Connection& c = connections_[index];
        if (c.open(path) == sigd::Errc::none) {
            receive(index);
            return true;
        }
        c.reopen_ns = sigd::clock_ns() + sigd::to_ns(c.backoff.next());
        return !sigd::is_permanent(c.talk.error()) || fail(c);
    }

    // Its session is over. Both operations come to an end, then it is opened anew.
    void lose(Connection& c) {
        if (c.reopen_ns == 0) std::fprintf(stderr, "%s\n", c.talk.error().text);
        lost_ += c.talk.unanswered();
        c.reopen_ns = sigd::clock_ns() + sigd::to_ns(c.backoff.next());
        shutdown(c.session.socket.get(), SHUT_RDWR);
    }

    // Room in the submission queue, which is handed over where it is full.
    io_uring_sqe* entry() {
        io_uring_sqe* free_entry = io_uring_get_sqe(&ring_);
        while (free_entry == nullptr) {
            io_uring_submit(&ring_);
            free_entry = io_uring_get_sqe(&ring_);
        }
        return free_entry;
    }

    static bool fail(const Connection& connection) {
        std::fprintf(stderr, "%s\n", connection.talk.error().text);
        return false;
    }

    // Writes down all requests that are due and may be sent, and hands them to the kernel in one piece.
    void send_due(std::size_t index, std::uint64_t now_ns) {
        Connection& c = connections_[index];
        if (c.sending || !c.is_open()) return;
        while (c.next_arrival < arrivals_.size() && !c.talk.full()) {
            const std::uint64_t due_ns = begin_ns_ + arrivals_[c.next_arrival];
            if (due_ns > now_ns) break;
            std::byte* frame = c.buffers.room();
            for (float& feature : c.talk.features_of(frame)) feature = 0.5F;
            const std::uint64_t sequence = c.talk.finish_request(frame, {.client_time_ns = now_ns});
            c.buffers.push();
            c.due_ns[sequence % c.due_ns.size()] = due_ns;
            c.next_arrival += connections_.size();
        }
        const auto bytes = c.buffers.pending();
        if (bytes.empty()) return;
        io_uring_sqe* send = entry();
        io_uring_prep_send(send, c.session.socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
        io_uring_sqe_set_data64(send, 2 * index);
        c.sending = true;
    }

    void receive(std::size_t index) {
        Connection& c = connections_[index];
        const auto space = c.buffers.writable();
        io_uring_sqe* recv = entry();
        io_uring_prep_recv(recv, c.session.socket.get(), space.data(), space.size(), 0);
        io_uring_sqe_set_data64(recv, 2 * index + 1);
        c.receiving = true;
    }

    // Far from the next request it sleeps until an answer comes; near to it, it looks and goes on.
    void take_completions(std::uint64_t now_ns) {
        constexpr std::uint64_t near_ns = 200'000;
        io_uring_cqe* completion = nullptr;
        const std::uint64_t pause_ns = until_next_due_ns(now_ns);
        if (pause_ns > near_ns) {
            const std::uint64_t sleep_ns = pause_ns - near_ns;
            __kernel_timespec timeout{static_cast<long long>(sleep_ns / 1'000'000'000),
                                      static_cast<long long>(sleep_ns % 1'000'000'000)};
            io_uring_wait_cqe_timeout(&ring_, &completion, &timeout);
        }
        while (io_uring_peek_cqe(&ring_, &completion) == 0) {
            const std::uint64_t what = io_uring_cqe_get_data64(completion);
            const int result = completion->res;
            io_uring_cqe_seen(&ring_, completion);
            // the timeout of a wait is a completion too, with data of the library's own
            if (what >= 2 * connections_.size()) continue;
            if (what % 2 == 0)
                sent(connections_[what / 2], result);
            else
                received(what / 2, result);
        }
    }

    [[nodiscard]] std::uint64_t until_next_due_ns(std::uint64_t now_ns) const {
        std::uint64_t next_ns = now_ns + 1'000'000'000;
        for (const Connection& c : connections_) {
            if (c.is_free()) next_ns = std::min(next_ns, c.reopen_ns);
            if (c.is_open() && !c.sending && !c.talk.full() && c.next_arrival < arrivals_.size())
                next_ns = std::min(next_ns, begin_ns_ + arrivals_[c.next_arrival]);
        }
        return next_ns > now_ns ? next_ns - now_ns : 0;
    }

    // A daemon that takes no more may still have said why: the end of the session is met where it is read.
    void sent(Connection& c, int result) {
        c.sending = false;
        c.buffers.sent(result < 0 ? c.buffers.pending().size() : static_cast<std::size_t>(result));
    }

    void received(std::size_t index, int result) {
        Connection& c = connections_[index];
        c.receiving = false;
        if (result <= 0) {
            (void)c.talk.ended(result == 0 ? "the daemon closed the connection" : std::strerror(-result));
            return lose(c);
        }
        c.buffers.arrived(static_cast<std::size_t>(result));
        const std::uint64_t now_ns = sigd::clock_ns();
        while (const std::byte* frame = c.buffers.next()) {
            const auto answer = c.talk.take(frame);
            if (!answer && answer.code() != sigd::Errc::none) return lose(c);
            if (!answer) continue;
            c.backoff.reset();
            c.reopen_ns = 0;
            const sigd::Response& response = **answer;
            latencies_.record(now_ns - c.due_ns[response.sequence % c.due_ns.size()]);
            if (!response.ok()) ++not_ok_;
            ++answered_;
        }
        receive(index);
    }

    io_uring& ring_;
    std::vector<std::uint64_t> arrivals_;
    std::deque<Connection> connections_;
    Histogram latencies_;
    std::uint64_t begin_ns_ = 0;
    std::size_t answered_ = 0;
    std::uint64_t not_ok_ = 0;
    std::uint64_t lost_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3 || argc > 5) {
        std::fprintf(stderr, "usage: uring_engine SOCKET ARRIVALS.i64 [CONNECTIONS [SPEED]]\n");
        return 2;
    }
    const std::size_t connections = argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 4;
    const double speed = argc > 4 ? std::strtod(argv[4], nullptr) : 1.0;
    std::vector<std::uint64_t> arrivals = read_arrivals(argv[2], speed);
    if (arrivals.empty() || connections == 0 || connections > 1024 || !(speed > 0)) {
        std::fprintf(stderr, "no arrivals in %s, or no sensible number of connections or speed\n", argv[2]);
        return 2;
    }
    const std::size_t requests = arrivals.size();
    io_uring ring{};
    const int failed = io_uring_queue_init(static_cast<unsigned>(4 * connections), &ring, 0);
    if (failed != 0) {
        std::fprintf(stderr, "no io_uring here: %s\n", std::strerror(-failed));
        return 3;
    }
    Engine engine(ring, std::move(arrivals), connections);
    const bool done = engine.run(argv[1]);
    io_uring_queue_exit(&ring);
    if (!done) return 1;
    std::printf("%zu requests over %zu connections, %llu not OK, %llu lost; from when each was due to its answer:\n",
                requests, connections, static_cast<unsigned long long>(engine.not_ok()),
                static_cast<unsigned long long>(engine.lost()));
    engine.latencies().print();
}
