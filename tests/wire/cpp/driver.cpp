// A client on strings: reads one command a line, does it, answers with one line. What it is told to do, and what must
// come back, is in the tests.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include <poll.h>

#include <sigd/sigd.hpp>

namespace {

using Options = std::map<std::string, std::string>;

Options options_of(std::istringstream& words) {
    Options options;
    for (std::string word; words >> word;) {
        const auto equals = word.find('=');
        options[word.substr(0, equals)] = equals == std::string::npos ? "1" : word.substr(equals + 1);
    }
    return options;
}

std::uint64_t number(const Options& options, const char* name, std::uint64_t otherwise) {
    const auto found = options.find(name);
    return found == options.end() ? otherwise : std::strtoull(found->second.c_str(), nullptr, 10);
}

std::string text(const Options& options, const char* name) {
    const auto found = options.find(name);
    return found == options.end() ? std::string() : found->second;
}

sigd::Spec spec_of(const Options& options) {
    sigd::Spec spec;
    spec.path = text(options, "path");
    spec.features = static_cast<std::uint32_t>(number(options, "features", 0));
    spec.outputs = static_cast<std::uint32_t>(number(options, "outputs", 0));
    spec.model_name = text(options, "model");
    spec.client_name = text(options, "client");
    spec.transport = static_cast<sigd::wire::Transport>(number(options, "transport", 0));
    spec.ring_slots = static_cast<std::uint32_t>(number(options, "slots", 0));
    spec.conflate = number(options, "conflate", 0) != 0;
    spec.unanswered_max = static_cast<std::uint32_t>(number(options, "unanswered", 0));
    spec.connect_timeout = std::chrono::milliseconds(number(options, "timeout_ms", 5000));
    if (const std::string pin = text(options, "sha256"); !pin.empty())
        spec.model_sha256.emplace().fill(static_cast<std::uint8_t>(std::stoi(pin)));
    spec.control_look_every = std::chrono::milliseconds(number(options, "look_ms", 0));
    spec.idle = static_cast<sigd::Idle>(number(options, "idle", 0));
    return spec;
}

class Driver {
public:
    void run() {
        for (std::string line; std::getline(std::cin, line);) {
            std::istringstream words(line);
            std::string command;
            words >> command;
            act(command, options_of(words));
            std::cout << std::endl;
        }
    }

private:
    void act(const std::string& command, const Options& options) {
        if (command == "connect") tell(client_.connect(spec_of(options)));
        else if (command == "begin") tell(client_.begin_connect(spec_of(options)));
        else if (command == "poll_connect") tell(client_.poll_connect());
        else if (command == "can_send") tell(client_.can_send());
        else if (command == "ask_model") tell(client_.ask_model(static_cast<std::uint32_t>(number(options, "of", 0))));
        else if (command == "model") tell_model();
        else if (command == "room") tell_room();
        else if (command == "welcome") tell_welcome();
        else if (command == "send") tell(client_.send(features(), tags(options)));
        else if (command == "queue") tell(client_.queue(features(), tags(options)));
        else if (command == "flush") tell(client_.flush());
        else if (command == "in_place") in_place(options);
        else if (command == "prepare") prepare();
        else if (command == "commit") tell(client_.commit(tags(options)));
        else if (command == "send_prepared") tell(client_.send(prepared_));
        else if (command == "may_sleep") std::cout << client_.may_sleep();
        else if (command == "descriptor") std::cout << client_.descriptor() << ' ' << client_.doorbell();
        else if (command == "sleep") sleep(number(options, "ms", 5000));
        else if (command == "short") tell(client_.send(std::vector<float>(1)));
        else if (command == "poll") tell(client_.poll());
        else if (command == "wait") tell(client_.wait(std::chrono::milliseconds(number(options, "ms", 5000))));
        else if (command == "request") tell(client_.request(features(), tags(options), std::chrono::milliseconds(number(options, "ms", 5000))));
        else if (command == "heartbeat") tell(client_.heartbeat());
        else if (command == "goodbye") tell(client_.goodbye());
        else if (command == "close") client_.close();
        else if (command == "sequence") client_.set_next_sequence(number(options, "to", 0));
        else if (command == "state") tell_state();
        else std::abort();
    }

    // Features that tell which request they are of.
    std::vector<float> features() {
        std::vector<float> row(client_.welcome().features);
        for (std::size_t i = 0; i < row.size(); ++i)
            row[i] = static_cast<float>(client_.next_sequence() % 1000) + static_cast<float>(i) / 8;
        return row;
    }

    static sigd::Tags tags(const Options& options) {
        return {static_cast<std::uint32_t>(number(options, "instrument", 0)), number(options, "deadline", 0),
                number(options, "time", 0)};
    }

    void in_place(const Options& options) {
        const auto row = features();
        const auto room = client_.prepare();
        if (room.empty()) {
            std::cout << "no room";
            return;
        }
        std::copy(row.begin(), row.end(), room.begin());
        tell(client_.commit(tags(options)));
    }

    // Features are written in place before the commit, and something else is done in between.
    void prepare() {
        const auto row = features();
        prepared_ = client_.prepare();
        if (!prepared_.empty()) std::copy(row.begin(), row.end(), prepared_.begin());
        std::cout << (prepared_.empty() ? "no room" : "ok");
    }

    // In an event loop of one's own.
    void sleep(std::uint64_t timeout_ms) {
        pollfd watched[2] = {{client_.descriptor(), POLLIN, 0}, {client_.doorbell(), POLLIN, 0}};
        int readable = -1;
        if (client_.may_sleep()) readable = ::poll(watched, 2, static_cast<int>(timeout_ms));
        client_.awake();
        std::cout << (readable < 0 ? "awake" : readable == 0 ? "nothing" : watched[0].revents ? "socket" : "doorbell");
    }

    void tell(sigd::Errc code) {
        std::cout << sigd::name(code);
        if (!client_.connected()) std::cout << " | " << client_.error().text;
    }
    void tell(sigd::Result<bool> open) {
        if (open.code() != sigd::Errc::none) return tell(open.code());
        std::cout << (*open ? "open" : client_.connecting() ? "connecting" : "odd");
    }
    void tell_model() {
        const sigd::wire::ModelInfo& model = client_.model_info();
        std::cout << client_.model_infos() << ' ' << model.model_generation << ' '
                  << static_cast<unsigned>(model.model_sha256[31]) << ' '
                  << std::string(model.model_name, strnlen(model.model_name, sizeof model.model_name));
    }
    // What lies where the next features belong, before they are written.
    void tell_room() {
        for (const float feature : client_.prepare()) std::cout << feature << ' ';
    }
    void tell(sigd::Result<std::uint64_t> sequence) {
        if (sequence) std::cout << "ok " << *sequence;
        else tell(sequence.code());
    }
    void tell(sigd::Result<const sigd::Response*> answer) {
        if (!answer) {
            if (answer.code() != sigd::Errc::none) return tell(answer.code());
            std::cout << "nothing";
            return;
        }
        const sigd::Response& r = **answer;
        std::cout << "answer " << r.sequence << ' ' << sigd::wire::name(r.status) << ' ' << r.instrument_id << ' '
                  << r.client_time_ns << ' ' << r.receive_time_ns << ' ' << r.send_time_ns << ' '
                  << r.model_generation << ' ' << r.infer_ns << ' ' << r.batch_rows;
        if (r.outputs.size() > 8) std::cout << ' ' << r.outputs.size() << " outputs, the last " << r.outputs.back();
        else for (const float output : r.outputs) std::cout << ' ' << output;
    }
    void tell_welcome() {
        const auto& w = client_.welcome();
        std::cout << w.features << ' ' << w.outputs << ' ' << w.in_flight_max << ' ' << w.model_generation << ' '
                  << w.daemon_pid << ' ' << w.flags << ' ' << w.ring_slots << ' '
                  << std::string(w.model_name, strnlen(w.model_name, sizeof w.model_name)) << ' '
                  << static_cast<unsigned>(w.model_sha256[0]) << ' ' << client_.unanswered_max();
    }
    void tell_state() {
        const auto goodbye = client_.daemon_goodbye();
        std::cout << sigd::name(client_.error().code) << " beats=" << client_.heartbeats()
                  << " clock=" << client_.daemon_clock_ns()
                  << " goodbye=" << (goodbye ? sigd::wire::name(*goodbye) : "none")
                  << " lost=" << client_.error().unanswered << " unanswered=";
        for (std::uint64_t n = 0; n < client_.unanswered(); ++n)
            std::cout << (n ? "," : "") << client_.unanswered_sequence(n);
    }

    sigd::Client client_;
    std::span<float> prepared_;
};

}  // namespace

int main() {
    Driver driver;
    driver.run();
}
