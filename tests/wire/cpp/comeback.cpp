// Coming back on strings: reads one command a line, answers with one line.
//
//     comeback SOCKET FIRST_NS LONGEST_NS
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include <sigd/sigd.hpp>

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    const std::chrono::nanoseconds first(std::strtoll(argv[2], nullptr, 10));
    const std::chrono::nanoseconds longest(std::strtoll(argv[3], nullptr, 10));
    sigd::Reconnector link({.path = argv[1], .connect_timeout = std::chrono::milliseconds(2000)},
                           sigd::Backoff(first, longest, 7));
    sigd::Backoff pauses(first, longest, 7);
    for (std::string command; std::getline(std::cin, command);) {
        if (command == "next") {
            std::cout << (link.next_attempt_ns() == ~std::uint64_t{0} ? "never" : link.next_attempt_ns() > sigd::clock_ns() ? "later" : "now");
        } else if (command == "pause") {
            std::cout << pauses.next().count();
        } else if (command == "begin anew") {
            pauses.reset();
            link.reset();
        } else {
            auto client = command == "wait" ? link.wait(std::chrono::seconds(10)) : link.get();
            // "look" asks once; the others see an attempt through.
            while (command != "look" && !client && client.code() == sigd::Errc::none && link.client().connecting())
                client = link.get();
            if (client && command == "goodbye") std::cout << sigd::name((*client)->goodbye()) << ' ';
            if (client && command != "get") (void)(*client)->poll();
            std::cout << (client ? "session" : sigd::name(client.code())) << ' ' << link.sessions();
            if (!client) std::cout << " | " << link.error().text;
        }
        std::cout << std::endl;
    }
}
