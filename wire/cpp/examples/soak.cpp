// Requests for hours, over daemons that come and go: every sequence number is answered once, in order, or is counted as
// lost with the session that it was lost in. Prints one line of JSON. Exit 0: every number is accounted for.
//
//     soak SOCKET [--requests N] [--clients N] [--in-flight N] [--transport stream|shared_memory]
//          [--idle spin|backoff|block] [--session N] [--patience SECONDS]
//
// Each client is a thread with a session of its own. --session N says Goodbye after N requests and connects anew. An
// interrupt (Ctrl-C, or `timeout -s INT 1h soak ...`) ends the run in order.
#include <array>
#include <atomic>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <sigd/sigd.hpp>

namespace {

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free);

struct Options {
    sigd::Spec spec{.client_name = "soak"};
    std::uint64_t requests = 100'000;  // of each client
    std::uint64_t clients = 1;
    std::uint64_t session = ~std::uint64_t{0};
    std::chrono::seconds patience{30};
};

struct Tally {
    std::uint64_t sent = 0;
    std::uint64_t answered = 0;
    std::uint64_t lost = 0;
    std::uint64_t sessions = 0;
    std::array<std::uint64_t, 8> by_status{};
    std::string trouble;
};

// One client: a ledger of its own beside the client's, which must agree with it.
class Soak {
public:
    explicit Soak(const Options& options) : options_(options), link_(options.spec) {}

    Tally run() {
        while (tally_.trouble.empty() && expected_ < options_.requests && !interrupted) {
            const auto client = link_.wait(options_.patience);
            if (!client) {
                tally_.trouble = std::string("no session: ") + link_.error().text;
            } else {
                std::fprintf(stderr, "session %" PRIu64 "\n", link_.sessions());
                converse(**client);
            }
        }
        tally_.sessions = link_.sessions();
        if (tally_.trouble.empty() && tally_.sent != tally_.answered + tally_.lost)
            tally_.trouble = "sent is not answered and lost together";
        return tally_;
    }

private:
    void converse(sigd::Client& client) {
        const std::uint64_t end = std::min(options_.requests, expected_ + std::min(options_.session, options_.requests));
        bool leaving = false;
        while (tally_.trouble.empty()) {
            if (!leaving && !interrupted) fill(client, end);
            if (!leaving && (interrupted || client.next_sequence() == end))
                leaving = client.goodbye() == sigd::Errc::none;
            const auto answer = client.wait(options_.patience);
            if (!answer && answer.code() != sigd::Errc::none) return ended(client);
            if (!answer)
                tally_.trouble = "no answer in " + std::to_string(options_.patience.count()) + " s";
            else
                take(**answer);
        }
    }

    void fill(sigd::Client& client, std::uint64_t end) {
        while (client.next_sequence() < end) {
            const auto row = client.prepare();
            if (row.empty()) break;
            const std::uint64_t sequence = client.next_sequence();
            for (std::size_t i = 0; i < row.size(); ++i)
                row[i] = static_cast<float>((sequence * 2'654'435'761U + i * 40'503U) % 2048) / 1024.0F - 1.0F;
            const auto instrument = static_cast<std::uint32_t>(sequence % 16);
            if (client.commit({.instrument_id = instrument, .client_time_ns = ~sequence})) ++tally_.sent;
        }
    }

    void take(const sigd::Response& answer) {
        if (answer.sequence != expected_ || answer.client_time_ns != ~expected_ ||
            answer.instrument_id != expected_ % 16)
            tally_.trouble = "answer " + std::to_string(answer.sequence) + ", expected " + std::to_string(expected_);
        for (const float output : answer.outputs)
            if ((output == output) != answer.ok()) tally_.trouble = "outputs are NaN where they should not be, or not";
        ++expected_;
        ++tally_.answered;
        ++tally_.by_status[std::min<std::size_t>(static_cast<std::size_t>(answer.status), 7)];
    }

    // What was sent and not answered is lost, and is known by its numbers.
    void ended(const sigd::Client& client) {
        const sigd::Error& error = client.error();
        if (error.code != sigd::Errc::finished) std::fprintf(stderr, "%s\n", error.text);
        if (error.code == sigd::Errc::protocol_broken) tally_.trouble = error.text;
        for (std::uint64_t n = 0; n < client.unanswered(); ++n)
            if (client.unanswered_sequence(n) != expected_ + n) tally_.trouble = "an unanswered number is out of order";
        tally_.lost += client.unanswered();
        expected_ += client.unanswered();
        if (expected_ != client.next_sequence()) tally_.trouble = "a number is neither answered nor lost";
    }

    const Options& options_;
    sigd::Reconnector link_;
    std::uint64_t expected_ = 0;
    Tally tally_;
};

bool parse(int argc, char** argv, Options& options) {
    if (argc < 2 || argc % 2 != 0) return false;
    options.spec.path = argv[1];
    for (int i = 2; i < argc; i += 2) {
        const std::string flag = argv[i];
        const std::string text = argv[i + 1];
        const std::uint64_t number = std::strtoull(argv[i + 1], nullptr, 10);
        if (flag == "--requests") options.requests = number;
        else if (flag == "--clients") options.clients = number;
        else if (flag == "--in-flight") options.spec.unanswered_max = static_cast<std::uint32_t>(number);
        else if (flag == "--session") options.session = number;
        else if (flag == "--patience") options.patience = std::chrono::seconds(number);
        else if (flag == "--transport" && text == "stream") options.spec.transport = sigd::wire::Transport::stream;
        else if (flag == "--transport" && text == "shared_memory")
            options.spec.transport = sigd::wire::Transport::shared_memory;
        else if (flag == "--idle" && text == "spin") options.spec.idle = sigd::Idle::spin;
        else if (flag == "--idle" && text == "backoff") options.spec.idle = sigd::Idle::backoff;
        else if (flag == "--idle" && text == "block") options.spec.idle = sigd::Idle::block;
        else return false;
    }
    return options.requests > 0 && options.clients > 0 && options.session > 0;
}

}  // namespace

int main(int argc, char** argv) {
    Options options;
    if (!parse(argc, argv, options)) {
        std::fprintf(stderr,
                     "usage: soak SOCKET [--requests N] [--clients N] [--in-flight N] "
                     "[--transport stream|shared_memory] [--idle spin|backoff|block] [--session N] [--patience S]\n");
        return 2;
    }
    for (const int number : {SIGINT, SIGTERM}) std::signal(number, [](int) { interrupted = true; });
    std::vector<Tally> tallies(options.clients);
    std::vector<std::thread> threads;
    const std::uint64_t begin_ns = sigd::clock_ns();
    for (Tally& tally : tallies) threads.emplace_back([&] { tally = Soak(options).run(); });
    for (std::thread& thread : threads) thread.join();
    const std::uint64_t elapsed_ns = sigd::clock_ns() - begin_ns;

    Tally sum;
    for (const Tally& tally : tallies) {
        sum.sent += tally.sent;
        sum.answered += tally.answered;
        sum.lost += tally.lost;
        sum.sessions += tally.sessions;
        for (std::size_t i = 0; i < sum.by_status.size(); ++i) sum.by_status[i] += tally.by_status[i];
        if (!tally.trouble.empty()) sum.trouble = tally.trouble;
    }
    std::printf("{\"sent\": %" PRIu64 ", \"answered\": %" PRIu64 ", \"lost\": %" PRIu64 ", \"sessions\": %" PRIu64
                ", \"elapsed_s\": %.3f",
                sum.sent, sum.answered, sum.lost, sum.sessions, static_cast<double>(elapsed_ns) / 1e9);
    for (std::size_t i = 0; i < sum.by_status.size(); ++i)
        std::printf(", \"%s\": %" PRIu64, sigd::wire::name(static_cast<sigd::wire::Status>(i)), sum.by_status[i]);
    std::printf("}\n");
    if (!sum.trouble.empty()) std::fprintf(stderr, "%s\n", sum.trouble.c_str());
    return sum.trouble.empty() ? 0 : 1;
}
