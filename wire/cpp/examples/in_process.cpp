// A native engine without a daemon: rows of float32 from standard input, answers to standard output.
//
//     in_process m.engine < rows.f32 > answers.f32
#include <cstdio>
#include <vector>

#include <sigd/engine.hpp>

int main(int count, char** words) {
    if (count < 2 || count > 4) {
        std::fprintf(stderr, "in_process ENGINE [ROWS [INSTRUCTION_SET]]\n");
        return 2;
    }
    unsigned rows_max = 1;
    if (count > 2 && std::sscanf(words[2], "%u", &rows_max) != 1) return 2;
    sigd::Engine engine;
    const char* set = count > 3 ? words[3] : nullptr;
    if (engine.open({.path = words[1], .rows_max = rows_max, .instruction_set = set}) != sigd::Errc::none) {
        std::fprintf(stderr, "%s\n", engine.error().text);
        return 1;
    }
    std::fprintf(stderr, "%u features, %u outputs, %s\n", engine.features(), engine.outputs(), engine.instruction_set());
    std::vector<float> rows(std::size_t{engine.features()} * rows_max), answers(std::size_t{engine.outputs()} * rows_max);
    for (std::size_t got; (got = std::fread(rows.data(), sizeof(float) * engine.features(), rows_max, stdin)) != 0;) {
        const std::span<const float> batch(rows.data(), got * engine.features());
        const std::span<float> room(answers.data(), got * engine.outputs());
        if (engine.run(batch, room) != sigd::Errc::none) return 1;
        if (std::fwrite(room.data(), sizeof(float), room.size(), stdout) != room.size()) return 1;
    }
    return 0;
}
