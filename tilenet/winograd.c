/* 3x3 convolutions and their ReLU by Winograd's F(4x4, 3x3), channels last, float32 (see winograd.py).

A few squares go all the way, transform, products, and back, so that nothing between is larger than a core's cache.
Each square is computed by itself, in one order: its bits depend on neither threads nor neighbours.
Threads are those of the OpenMP that PyTorch has loaded; nothing else is linked.
*/
#include <string.h>

enum { MADE = 4, NEEDED = 6, SQUARE = NEEDED * NEEDED };
#define LESS 0.70710678118654752f
#define MORE 1.41421356237309505f

/* Rows on top of those of the next piece; `image` and `row` floats apart. */
struct piece { const float *first; long image, row, rows; };
struct source { const struct piece *pieces; long count, channels; };
struct pixels { float *first; long row, pixel; int high, wide; };
struct convolution {
    struct source sources[2]; /* one below the other along the channels; the second may have none */
    const float *weights;     /* (36, K / panel, C, panel) */
    const float *bias;        /* (K) */
    float *out;               /* (N, height, width, K) */
    float *work;              /* work_size floats of each thread */
    long outputs, images, height, width, padding, squares, work_size, next;
};

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
extern int omp_get_thread_num(void);

static long count_squares(long length) { return (length + MADE - 1) / MADE; }

/* Return a row of an image, NULL above and below it. */
static const float *find_row(const struct source *source, long image, long y) {
    for (long i = 0; y >= 0 && i < source->count; y -= source->pieces[i++].rows) {
        const struct piece *piece = source->pieces + i;
        if (y < piece->rows) return piece->first + image * piece->image + y * piece->row;
    }
    return NULL;
}

/* Find where the six rows of a square begin: in a copy, with zeros, where it is not all in the image. */
static void find_square(const struct convolution *q, int s, long square, const float **rows, float *edge) {
    const struct source *source = q->sources + s;
    long wide = count_squares(q->width), high = count_squares(q->height), channels = source->channels;
    long image = square / (wide * high), y = square / wide % high * MADE - q->padding;
    long x = square % wide * MADE - q->padding, width = q->width + 2 - 2 * q->padding;
    long left = x < 0 ? -x : 0, stop = width - x < NEEDED ? width - x : NEEDED, inside = left == 0 && stop == NEEDED;
    for (int i = 0; i < NEEDED; i++) {
        const float *row = find_row(source, image, y + i);
        rows[i] = row + x * channels;
        if (row && inside) continue;
        float *copy = edge + i * NEEDED * channels;
        memset(copy, 0, NEEDED * channels * sizeof(float));
        if (row) memcpy(copy + left * channels, row + (x + left) * channels, (stop - left) * channels * sizeof(float));
        rows[i] = copy;
    }
}

/* Find the pixels that a square makes, from channel k on. */
static struct pixels find_out(const struct convolution *q, long square, long k) {
    long wide = count_squares(q->width), high = count_squares(q->height);
    long image = square / (wide * high), y = square / wide % high * MADE, x = square % wide * MADE;
    long down = q->height - y, right = q->width - x;
    return (struct pixels){
        q->out + ((image * q->height + y) * q->width + x) * q->outputs + k,
        q->width * q->outputs,
        q->outputs,
        down < MADE ? down : MADE,
        right < MADE ? right : MADE,
    };
}

#define LANES 16
#define ROWS 14
#define TARGET __attribute__((target("avx512f,fma")))
#define SUFFIX _avx512
#include "winograd_kernel.h"

#define LANES 8
#define ROWS 6
#define TARGET __attribute__((target("avx2,fma")))
#define SUFFIX _avx2
#include "winograd_kernel.h"

/* Tell which instructions this processor has: 2 for AVX-512, 1 for AVX2, 0 for neither. */
int tilenet_instructions(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0;
}

void tilenet_convolve(struct convolution *q, int instructions, unsigned threads) {
    q->next = 0;
    GOMP_parallel(instructions == 2 ? run_avx512 : run_avx2, q, threads, 0);
}
