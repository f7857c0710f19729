/* Direct convolutions, tap by tap (see vectors.h): the first, of few input channels; the last, 1x1, of few outputs. */

/* Add the products of 3x3 taps for ROWS adjacent pixels; the three taps of a row are 3 x channels adjacent floats. */
INLINE void NAME(add_taps)(
    const float *const *rows, long channels, const float *weights, vector (*sums)[2], int vectors
) {
    for (int i = 0; i < 3; i++)
        for (long tap = 0; tap < 3 * channels; tap++, weights += vectors * LANES) {
            vector first = LOAD(weights), second = vectors == 2 ? LOAD(weights + LANES) : first;
#pragma GCC unroll 16
            for (int t = 0; t < ROWS; t++) {
                sums[t][0] += rows[i][t * channels + tap] * first;
                if (vectors == 2) sums[t][1] += rows[i][t * channels + tap] * second;
            }
        }
}

/* Compute `count` adjacent output pixels, from channel k on. */
INLINE void NAME(make_pixels)(
    const struct convolution *q, const float *const *rows, long k, float *out, long count, int vectors
) {
    long channels = q->sources[0].channels;
    vector sums[ROWS][2];
#pragma GCC unroll 16
    for (int t = 0; t < ROWS; t++)
        for (int v = 0; v < 2; v++) sums[t][v] = v < vectors ? LOAD(q->bias + k + v * LANES) : (vector){0};
    NAME(add_taps)(rows, channels, q->weights + 9 * channels * k, sums, vectors);
#pragma GCC unroll 16
    for (int t = 0; t < ROWS; t++)
        for (int v = 0; v < vectors; v++) {
            vector made = NAME(relu)(sums[t][v]);
            if (q->scale) made = made * LOAD(q->scale + k + v * LANES) + LOAD(q->shift + k + v * LANES);
            if (t < count) STORE(out + t * q->outputs + k + v * LANES, made);
        }
}

/* Compute a row of output pixels. */
TARGET static void NAME(make_row)(const struct convolution *q, long image, long y, float *edge) {
    long channels = q->sources[0].channels, panel = q->outputs % (2 * LANES) ? LANES : 2 * LANES;
    const float *rows[NEEDED], *at[NEEDED];
    find_rows(q, q->sources, (struct spot){image, y, 0}, rows);
    for (long x = 0; x < q->width; x += ROWS) {
        float *out = q->out + ((image * q->height + y) * q->width + x) * q->outputs;
        find_pixels(q, channels, x, rows, (struct extent){3, ROWS + 2}, edge, at);
        for (long k = 0; k < q->outputs; k += panel)
            if (panel == 2 * LANES) NAME(make_pixels)(q, at, k, out, q->width - x, 2);
            else NAME(make_pixels)(q, at, k, out, q->width - x, 1);
    }
}

static void NAME(run_direct)(void *argument) {
    struct convolution *q = argument;
    float *edge = q->work + omp_get_thread_num() * q->work_size;
    long at;
    while ((at = __atomic_fetch_add(&q->next, 1, __ATOMIC_RELAXED)) < q->images * q->height)
        NAME(make_row)(q, at / q->height, at % q->height, edge);
}

/* Return the lanes of two vectors that `places` selects: below LANES from the first, from LANES on from the second. */
INLINE vector NAME(shuffle)(vector a, vector b, NAME(whole) places) {
#ifdef __clang__
    vector out;
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++) out[j] = places[j] < LANES ? a[places[j]] : b[places[j] - LANES];
    return out;
#else
    return __builtin_shuffle(a, b, places);
#endif
}

/* Transpose LANES vectors by swapping off-diagonal corners of squares of growing size. */
INLINE void NAME(transpose)(vector *x) {
#pragma GCC unroll 4
    for (int half = 1; half < LANES; half *= 2) {
        NAME(whole) upper, lower;
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) {
            upper[j] = j & half ? LANES + j - half : j;
            lower[j] = j & half ? LANES + j : j + half;
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & half)) {
                vector above = x[i], below = x[i + half];
                x[i] = NAME(shuffle)(above, below, upper);
                x[i + half] = NAME(shuffle)(above, below, lower);
            }
    }
}

/* Compute each output for LANES pixels, of which `count` exist: a transpose turns channels into vectors of pixels. */
INLINE void NAME(make_outputs)(const struct classification *q, const float *x, vector *sums, long count, int whole) {
    for (long k = 0; k < q->outputs; k++) sums[k] = (vector){0} + q->bias[k];
    for (long c = 0; c < q->channels; c += LANES) {
        vector of_channel[LANES];
#pragma GCC unroll 16
        for (int t = 0; t < LANES; t++)
            of_channel[t] = whole || t < count ? LOAD(x + t * q->channels + c) : (vector){0};
        NAME(transpose)(of_channel);
        for (long k = 0; k < q->outputs; k++) {
            const float *weights = q->weights + k * q->channels + c;
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) sums[k] += of_channel[i] * weights[i];
        }
    }
}

/* Write the mask value of the largest output of each pixel; return ones in the lanes where an output is not finite. */
INLINE NAME(whole) NAME(decide)(const struct classification *q, const vector *sums, unsigned char *mask, long count) {
    vector best = sums[0], off = sums[0] - sums[0];
    NAME(whole) chosen = (NAME(whole)){0} + q->values[0];
    for (long k = 1; k < q->outputs; k++) {
        NAME(whole) more = sums[k] > best;
        chosen = (more & ((NAME(whole)){0} + q->values[k])) | (~more & chosen);
        best = NAME(choose)(more, sums[k], best);
        off += sums[k] - sums[k];
    }
    NAME(bytes) narrow = __builtin_convertvector(chosen, NAME(bytes));
    memcpy(mask, &narrow, count);
    return off != 0;
}

TARGET static void NAME(classify)(struct classification *q, long image, long first, long stop) {
    const float *x = q->x + image * q->x_image;
    NAME(whole) wrong = {0};
    for (; first < stop; first += LANES) {
        long count = stop - first < LANES ? stop - first : LANES;
        vector sums[q->outputs];
        if (count == LANES) NAME(make_outputs)(q, x + first * q->channels, sums, LANES, 1);
        else NAME(make_outputs)(q, x + first * q->channels, sums, count, 0);
        if (q->mask) {
            unsigned char *mask = q->mask + image * q->pixels + first;
            wrong |= count == LANES ? NAME(decide)(q, sums, mask, LANES) : NAME(decide)(q, sums, mask, count);
            continue;
        }
        for (long k = 0; k < q->outputs; k++) {
            float *pixels = q->out + image * q->out_image + k * q->plane + first;
            if (count == LANES) STORE(pixels, sums[k]);
            else memcpy(pixels, sums + k, count * sizeof(float));
        }
    }
    for (int t = 0; t < LANES; t++)
        if (wrong[t]) __atomic_store_n(&q->not_finite, 1, __ATOMIC_RELAXED);
}

static void NAME(run_classification)(void *argument) {
    struct classification *q = argument;
    long parts = (q->pixels + PART - 1) / PART, at;
    while ((at = __atomic_fetch_add(&q->next, 1, __ATOMIC_RELAXED)) < q->images * parts) {
        long first = at % parts * PART, stop = first + PART < q->pixels ? first + PART : q->pixels;
        NAME(classify)(q, at / parts, first, stop);
    }
}
