// Calls every kernel of a library on generated inputs and compares the results with reference.h; needs no Python.
//
//     conformance LIBRARY [THREADS]
//
// Each kernel runs on 1, 2 and up to THREADS threads (3) and on the library's pool, which have to write the same bits.
// Prints a line for each kernel with its largest error as a share of what is tolerated, and exits with 1 if one exceeds
// it.
#include "check_attention.h"
#include "check_decoding.h"
#include "check_elementwise.h"
#include "check_int8.h"
#include "check_int8_training.h"

int main(int count, char **arguments) {
    if (count < 2) fail("usage: conformance LIBRARY [THREADS]");
    if (count > 2) most_threads = atoi(arguments[2]);
    open_library(arguments[1]);
    printf("lanes %d, fast int8 %s\n", call<int>("cpulm_lanes"), call<int>("cpulm_fast_int8") ? "yes" : "no");
    for (auto check : {norms, dropout, activations, attention, block_products, decoding, products, packing, quantizing, softmax,
                       distillation, muon})
        check();
    bool wrong = false;
    for (auto &[name, result] : results) {
        printf("%-20s %5d comparisons, error %.3f of what is tolerated%s%s\n", name.c_str(), result.comparisons,
               result.error, result.problem.empty() ? "" : ": ", result.problem.c_str());
        wrong = wrong || !result.problem.empty();
    }
    if (!wrong) printf("all kernels agree\n");
    return wrong;
}
