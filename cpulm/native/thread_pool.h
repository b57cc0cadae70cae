// Runs regions on threads of our own beside busy programs. All threads of an OpenMP region wait at its end for the one
// that another program has replaced on its processor, for milliseconds. Here whoever has a processor takes the next part
// of a region, and the region ends when all parts are done: a thread that never came is not waited for. The caller of a
// region takes parts too.
#pragma once
#include <cstdint>

namespace {
typedef void RunPart(void *data, int number);
} // namespace

// Runs all parts of a region; on the calling thread alone if another region runs. Returns false at once if the pool is
// closed. One for all translation units.
__attribute__((visibility("hidden"))) bool run_in_pool(RunPart *run, void *data, int parts);
