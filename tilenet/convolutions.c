/* 3x3 convolutions and their ReLU by Winograd's F(4x4, 3x3), channels last, float32 (see winograd.py); by F(5x5, 2x2), which
needs as many pixels and as many places, the 2x2 convolutions that upsampling and such a convolution are together; and
tap by tap the first convolution of a network and its last.

A few squares go all the way, transform, products, and back, so that nothing between is larger than a core's cache.
Each square is computed by itself, in one order: its bits depend on neither threads nor neighbours.
Threads are those of the OpenMP that PyTorch has loaded; nothing else is linked.
*/
#include <string.h>

/* Pixels along an axis that a square makes, by taps of three or two, and those that it needs; and those that a thread
takes at a time where each is made by itself. */
enum { BY_THREE = 4, BY_TWO = 5, NEEDED = 6, SQUARE = NEEDED * NEEDED, PART = 1024 };
#define LESS 0.70710678118654752f
#define MORE 1.41421356237309505f

/* Rows on top of those of the next piece; `image` and `row` floats apart. */
struct piece { const float *first; long image, row, rows; };
struct source { const struct piece *pieces; long count, channels; };
struct pixels { float *first, *pooled; long row, pooled_row, pixel, high, wide, channel; };
struct convolution {
    struct source sources[2]; /* one below the other along the channels; the second may have none */
    const float *weights;     /* (36, K / panel, C, panel); tap by tap (K / panel, 3, 3, C, panel) */
    const float *bias;        /* (K) */
    const float *scale;       /* (K), after ReLU; NULL for neither scale nor shift */
    const float *shift;       /* (K) */
    float *out;               /* (N, height, width, K) */
    float *pooled;            /* (N, height / 2, width / 2, K), the largest of two by two, or NULL */
    float *work;              /* work_size floats of each thread */
    long made;                /* BY_THREE; or BY_TWO: outputs are those of the (2, 2) finer pixels in one, out is finer */
    long adds;                /* whether what is in `out` is added before ReLU */
    long outputs, images, height, width;
    long padding, above;      /* columns of zeros on either side, rows of zeros above; those below follow from height */
    long squares, work_size, next;
};
struct classification {
    const float *x;       /* (N, pixels, C) */
    const float *weights; /* (K, C) */
    const float *bias;    /* (K) */
    float *out;           /* (N, K, pixels); NULL where it is decided upon at once */
    unsigned char *mask;  /* (N, pixels): the value of the largest output, of equal ones the first */
    const unsigned char *values;    /* (K) */
    long x_image, out_image, plane; /* floats between images, and between outputs */
    long images, pixels, channels, outputs, next;
    long spoiled;         /* set to 1 where outputs that are decided upon are not finite */
};

extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
extern int omp_get_thread_num(void);

static long count_squares(const struct convolution *q, long length) { return (length + q->made - 1) / q->made; }

/* Where a square's first output pixel is. */
struct spot { long image, y, x; };

static struct spot find_spot(const struct convolution *q, long square) {
    long wide = count_squares(q, q->width), high = count_squares(q, q->height);
    return (struct spot){square / (wide * high), square / wide % high * q->made, square % wide * q->made};
}

/* Go on to the next square; tell whether it lies beside the one before. */
static int advance(const struct convolution *q, struct spot *spot) {
    if ((spot->x += q->made) < q->width) return 1;
    spot->x = 0;
    if ((spot->y += q->made) < q->height) return 0;
    spot->y = 0;
    spot->image++;
    return 0;
}

/* Find the six rows of a source that squares need, NULL for those above and below the image. */
static void find_rows(const struct convolution *q, const struct source *source, struct spot spot, const float **rows) {
    for (int i = 0; i < NEEDED; i++) {
        long y = spot.y - q->above + i, piece = 0;
        while (piece < source->count && y >= source->pieces[piece].rows) y -= source->pieces[piece++].rows;
        const struct piece *found = source->pieces + piece;
        rows[i] = y < 0 || piece == source->count ? NULL : found->first + spot.image * found->image + y * found->row;
    }
}

struct extent { int high, wide; };

/* Find where the first rows of some pixels begin: in a copy, with zeros, where these are not all in the image. */
static void find_pixels(
    const struct convolution *q, long channels, long x, const float *const *rows, struct extent needed, float *edge,
    const float **found
) {
    long width = q->width + NEEDED - q->made - 2 * q->padding, left = x < q->padding ? q->padding - x : 0;
    long stop = width + q->padding - x < needed.wide ? width + q->padding - x : needed.wide;
    for (int i = 0; i < needed.high; i++) {
        if (rows[i] && left == 0 && stop == needed.wide) {
            found[i] = rows[i] + (x - q->padding) * channels;
            continue;
        }
        float *copy = edge + i * needed.wide * channels;
        memset(copy, 0, needed.wide * channels * sizeof(float));
        if (rows[i])
            memcpy(
                copy + left * channels, rows[i] + (x - q->padding + left) * channels,
                (stop - left) * channels * sizeof(float)
            );
        found[i] = copy;
    }
}

/* Find the pixels that a square makes, from channel k on, and those that two by two of them make. */
static struct pixels find_out(const struct convolution *q, struct spot spot, long k) {
    long down = q->height - spot.y, right = q->width - spot.x, high = q->height / 2, wide = q->width / 2;
    float *first = q->out + ((spot.image * q->height + spot.y) * q->width + spot.x) * q->outputs + k;
    long pooled = ((spot.image * high + spot.y / 2) * wide + spot.x / 2) * q->outputs + k;
    return (struct pixels){
        .first = first,
        .pooled = q->pooled ? q->pooled + pooled : NULL,
        .row = q->width * q->outputs,
        .pooled_row = wide * q->outputs,
        .pixel = q->outputs,
        .channel = k,
        .high = down < q->made ? down : q->made,
        .wide = right < q->made ? right : q->made,
    };
}

/* Find, of the finer pixels that a square makes, those of which channel k is one. */
static struct pixels find_finer(const struct convolution *q, struct spot spot, long k) {
    long channels = q->outputs / 4, finer = k / channels, row = 2 * q->width * channels;
    struct pixels out = find_out(q, spot, 0);
    out.first = q->out + 2 * (spot.image * q->height + spot.y) * row + 2 * spot.x * channels;
    out.first += finer / 2 * row + finer % 2 * channels + k % channels;
    out.row = 2 * row;
    out.pixel = 2 * channels;
    return out;
}

#define LANES 16
#define ROWS 12
#define TARGET __attribute__((target("avx512f,fma")))
#define SUFFIX _avx512
#include "vectors.h"

#define LANES 8
#define ROWS 6
#define TARGET __attribute__((target("avx2,fma")))
#define SUFFIX _avx2
#include "vectors.h"

/* Tell which instructions this processor has: 2 for AVX-512, 1 for AVX2, 0 for neither. */
int tilenet_instructions(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0;
}

/* Tell how large the structures are that this was compiled with: whoever calls it may be of another version. */
long tilenet_structures(void) { return sizeof(struct convolution) << 16 | sizeof(struct classification); }

void tilenet_convolve(struct convolution *q, int instructions, unsigned threads) {
    q->next = 0;
    GOMP_parallel(instructions == 2 ? run_avx512 : run_avx2, q, threads, 0);
}

void tilenet_convolve_directly(struct convolution *q, int instructions, unsigned threads) {
    q->next = 0;
    GOMP_parallel(instructions == 2 ? run_direct_avx512 : run_direct_avx2, q, threads, 0);
}

void tilenet_classify(struct classification *q, int instructions, unsigned threads) {
    q->next = 0;
    GOMP_parallel(instructions == 2 ? run_classification_avx512 : run_classification_avx2, q, threads, 0);
}
