// Muon's update with its products in int8: momentum, iteration and weights in one go, while a matrix is in the cache.
// A part of int8.cpp: a file of its own would be compiled for half a second longer.
#pragma once
#include "dots.h"
#include "parts.h"
#include <cmath>

struct Update {
    float momentum, decay, length; // the weights lose `decay` of themselves and `length` times the direction
    int times;
    float a, b, c; // x' = a x + (b G + c G G) x, G = x xT
};

struct Room { // for one matrix [rows, cols], rows <= cols, at a time
    float *x, *gram, *square, *diagonal, *kept, *x_scale, *scale, *ones;
    double *squares;
    int8_t *by_row;
    uint8_t *by_column, *turned;
    char *all_of_it;
    Room(long rows, long cols, int threads) {
        long row = rows * sizeof(float), matrix = rows * cols, square_bytes = rows * row;
        long bytes = 5 * matrix + 2 * square_bytes + 4 * row + cols * sizeof(float) + threads * sizeof(double);
        all_of_it = (char *)malloc(bytes + 2 * matrix + rows * rows);
        char *next = all_of_it;
        auto take = [&](long some) { return next += some, next - some; };
        squares = (double *)take(threads * sizeof(double));
        x = (float *)take(matrix * sizeof(float));
        gram = (float *)take(square_bytes);
        square = (float *)take(square_bytes);
        diagonal = (float *)take(row);
        kept = (float *)take(row);
        x_scale = (float *)take(row);
        scale = (float *)take(row);
        ones = (float *)take(cols * sizeof(float));
        by_row = (int8_t *)take(matrix);
        by_column = (uint8_t *)take(matrix);
        turned = (uint8_t *)take(matrix);
        for (long j = 0; j < cols; j++) ones[j] = 1.0f;
    }
    ~Room() { free(all_of_it); }
};

// The moving average takes the gradient in; their mean after Nesterov.
static inline Floats directed(const float *gradient, float *average, float momentum) {
    Floats g = load(gradient), m = load(average);
    m += (g - m) * (1.0f - momentum);
    store(average, m);
    return m - (m - g) * (1.0f - momentum);
}

// Directions of some rows of a matrix of `cols` to x, whose rows are the columns where `high` rows are given.
// Returns the sum of their squares.
static double directions(const float *gradient, float *average, long begin, long end, long cols, float momentum, float *x,
                         long high) {
    double total = 0;
    for (long i = begin; i < end; i += LANES) {
        Floats squares = {};
        for (long j = 0; j < cols; j += high ? LANES : cols) {
            alignas(64) float block[LANES * LANES];
            for (long n = 0; n < LANES; n++) {
                long from = (i + n) * cols + j, some = high ? LANES : cols;
                for (long k = 0; k < some; k += LANES) {
                    Floats v = directed(gradient + from + k, average + from + k, momentum);
                    squares += v * v;
                    store(high ? block + n * LANES : x + from + k, v);
                }
            }
            if (high) transposed_block((const Word *)block, LANES, (Word *)(x + j * high + i), high, 0);
        }
        total += sum(squares);
    }
    return total;
}

// x, laid out as `directions` does it, taken from some rows of the weights.
static void applied(float *weight, long begin, long end, long cols, const Update &update, const float *x, long high) {
    for (long i = begin; i < end; i += LANES)
        for (long j = 0; j < cols; j += high ? LANES : cols) {
            alignas(64) float block[LANES * LANES];
            if (high) transposed_block((const Word *)(x + j * high + i), high, (Word *)block, LANES, 0);
            for (long n = 0; n < LANES; n++) {
                long to = (i + n) * cols + j, some = high ? LANES : cols;
                for (long k = 0; k < some; k += LANES) {
                    Floats v = load(high ? block + n * LANES : x + to + k);
                    store(weight + to + k, load(weight + to + k) * (1.0f - update.decay) - v * update.length);
                }
            }
        }
}

static void rounded_rows(const float *x, long rows, long cols, float factor, int8_t *by_row, float *scale, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows);
        for (long i = part.begin; i < part.end; i++) {
            quantized_row(x + i * cols, cols, row_most(x + i * cols, cols, nullptr), by_row + i * cols, scale + i);
            scale[i] *= factor;
        }
    }
}

// The diagonals of G and of the polynomial are far larger than the rest, which they would leave few of the 8 bits:
// they stay apart. G = D + R to the diagonal D [rows] and R, in the place of G and as int8 by row.
static void parted_gram(Room &room, long rows, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows);
        for (long i = part.begin; i < part.end; i++) {
            float *row = room.gram + i * rows;
            room.diagonal[i] = row[i];
            row[i] = 0;
            quantized_row(row, rows, row_most(row, rows, nullptr), room.by_row + i * rows, room.scale + i);
        }
    }
}

// b G + c G G as int8 by row, from D, R and R R (which is overwritten), its columns times the scales of the rows of x
// that they will meet; the diagonal, plus a, apart, times a factor.
static void polynomial(Room &room, long rows, const Update &update, float factor, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Part part(rows);
        for (long i = part.begin; i < part.end; i++) {
            float *row = room.square + i * rows, *rest = room.gram + i * rows, d = room.diagonal[i];
            room.kept[i] = (row[i] * update.c + d * (update.b + update.c * d) + update.a) * factor;
            for (long j = 0; j < rows; j += LANES) {
                Floats mixed = load(rest + j) * (update.b + update.c * (load(room.diagonal + j) + d));
                store(row + j, (mixed + load(row + j) * update.c) * load(room.x_scale + j));
            }
            row[i] = 0;
            quantized_row(row, rows, row_most(row, rows, nullptr), room.by_row + i * rows, room.scale + i);
        }
    }
}

// The iteration of x [rows, cols] times `factor`, in its place.
static void iterated(long rows, long cols, float factor, const Update &update, int threads, Room &room) {
    for (int n = 0; n < update.times; n++, factor = 1.0f) {
        rounded_rows(room.x, rows, cols, factor, room.by_row, room.x_scale, threads);
        cpulm_turn_rows(room.by_row, rows, cols, room.turned, threads);
        cpulm_turn_columns(room.by_row, rows, cols, room.by_column, rows / 4, 0, 0x80808080u, threads);
        cpulm_int8_product(room.by_row, 0, room.turned, rows, rows, cols, room.x_scale, room.x_scale, nullptr,
                           room.gram, 0, nullptr, 1, threads);
        parted_gram(room, rows, threads);
        cpulm_turn_rows(room.by_row, rows, rows, room.turned, threads);
        cpulm_int8_product(room.by_row, 0, room.turned, rows, rows, rows, room.scale, room.scale, nullptr, room.square,
                           0, nullptr, 1, threads);
        polynomial(room, rows, update, factor, threads);
        cpulm_int8_product(room.by_row, 0, room.by_column, rows, cols, rows, room.scale, room.ones, nullptr, room.x, 1,
                           room.kept, 0, threads);
    }
}

static void updated(float *weight, const float *gradient, float *average, long rows, long cols, const Update &update,
                    int threads, Room &room) {
    long high = rows > cols ? rows : 0; // the products x xT are of the smaller side
    for (int n = 0; n < threads; n++) room.squares[n] = 0;
#pragma omp parallel num_threads(threads)
    {
        Part part(rows / LANES);
        if (part.begin < part.end)
            room.squares[omp_get_thread_num()] =
                directions(gradient, average, part.begin * LANES, part.end * LANES, cols, update.momentum, room.x, high);
    }
    double total = 0;
    for (int n = 0; n < threads; n++) total += room.squares[n];
    float norm = sqrt(total);
    iterated(high ? cols : rows, high ? rows : cols, 1.0f / (norm < 1e-7f ? 1e-7f : norm), update, threads, room);
#pragma omp parallel num_threads(threads)
    {
        Part part(rows / LANES);
        applied(weight, part.begin * LANES, part.end * LANES, cols, update, room.x, high);
    }
}

// One update of `count` weights, gradients and averages of `blocks` matrices [rows, cols] each, one below the other;
// rows and cols multiples of LANES. One thread to a matrix where there are enough of them.
extern "C" void cpulm_muon(float *const *weights, const float *const *gradients, float *const *averages, int64_t count,
                           int64_t blocks, int64_t rows, int64_t cols, float momentum, float decay, float length,
                           int times, float a, float b, float c, int threads) {
    Update update = {momentum, decay, length, times, a, b, c};
    long matrices = count * blocks, small = rows < cols ? rows : cols, large = rows < cols ? cols : rows;
    int outer = matrices >= threads ? threads : 1, inner = matrices >= threads ? 1 : threads;
#pragma omp parallel num_threads(outer)
    {
        Room room(small, large, inner);
#pragma omp for schedule(dynamic)
        for (long n = 0; n < matrices; n++) {
            long first = n % blocks * rows * cols;
            updated(weights[n / blocks] + first, gradients[n / blocks] + first, averages[n / blocks] + first, rows, cols,
                    update, inner, room);
        }
    }
}
