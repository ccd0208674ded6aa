// The load generator: one pinned thread that spins over non-blocking Unix sockets, or over the rings of shared memory.
//
//     loadgen PLAN RESULT        (see exchange.hpp; written and read by sigd.bench.load.native)
//
// Prints "measuring" shortly before the first measured request. Exit 0: a result was written, whatever it says.

#include <cstdio>

#include "link.hpp"
#include "run.hpp"

int main(int argc, char** argv) {
    using namespace sigd::bench;
    if (argc != 3) {
        std::fprintf(stderr, "usage: loadgen PLAN RESULT\n");
        return 2;
    }
    const Plan plan = map_plan(argv[1]);
    pin(plan.header->cpu);
    if (plan.header->hello.transport == sigd::wire::Transport::shared_memory)
        carry_out<RingLink>(plan, argv[2]);
    else
        carry_out<StreamLink>(plan, argv[2]);
    return 0;
}
