/* kernel: common */
#include <string.h>

#if (-1 >> 1) != -1
#error "this code needs a compiler that shifts negative numbers arithmetically"
#endif

/* kernel: clamp */
static int8_t clamp(int32_t level, int8_t low, int8_t high)
{
    return level < low ? low : level > high ? high : (int8_t)level;
}

/* kernel: unpack */
/* One row of 2 or 4 bits a level, the first level lowest in a byte; returns the next row. */
static const uint8_t *unpack(const uint8_t *packed, int32_t bits, int32_t count, int8_t *row)
{
    const int32_t sign = 1 << (bits - 1), mask = (1 << bits) - 1;
    int32_t place = 0;
    for (int32_t i = 0; i < count; i++) {
        row[i] = (int8_t)((((*packed >> place) & mask) ^ sign) - sign);
        place += bits;
        if (place == 8 || i == count - 1) {
            place = 0;
            packed++;
        }
    }
    return packed;
}

/* kernel: conv */
struct conv {
    const uint8_t *weight;      /* rows of packed levels, one for each output channel */
    const uint8_t *bits;        /* log2 of those of each row, four in a byte; NULL: `all_bits` */
    const int16_t *bias;        /* in units of 2^-point output levels */
    const uint16_t *multiplier;
    uint16_t height, width, channels;             /* of the input */
    uint16_t out_height, out_width, out_channels; /* of the output */
    uint16_t group_in, group_out;                 /* channels of one group */
    uint16_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    uint8_t all_bits, shift, bias_shift;
    int8_t zero_in, zero, low, high;
};

static int32_t dot(const int8_t *a, const int8_t *b, int32_t n, int32_t sum)
{
    for (; n >= 4; n -= 4, a += 4, b += 4)
        sum += a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
    for (; n > 0; n--)
        sum += *a++ * *b++;
    return sum;
}

/* Of `count` taps, `step` apart from `start` on, the first one within a side, and the end. */
static int32_t first_tap(int32_t start, int32_t step)
{
    return start < 0 ? (step - 1 - start) / step : 0;
}

static int32_t after_taps(int32_t start, int32_t step, int32_t side, int32_t count)
{
    const int32_t after = side > start ? (side - start - 1) / step + 1 : 0;
    return after < count ? after : count;
}

/* The sum of products at one place where the kernel reaches over the edge. */
static int32_t at_edge(const struct conv *p, const int8_t *x, const int8_t *w, int32_t top,
                       int32_t left)
{
    const int32_t n = p->group_in, zero = p->zero_in;
    const int32_t i_end = after_taps(top, p->dilation_h, p->height, p->kernel_h);
    const int32_t j_begin = first_tap(left, p->dilation_w);
    const int32_t j_end = after_taps(left, p->dilation_w, p->width, p->kernel_w);
    const int32_t across = p->dilation_w * p->channels;
    const int32_t together = across == n ? j_end - j_begin : 1; /* taps that lie together */
    int32_t sum = 0, weights = 0;
    for (int32_t i = first_tap(top, p->dilation_h); i < i_end; i++) {
        const int32_t line = (top + i * p->dilation_h) * p->width + left;
        const int8_t *from = x + (line * p->channels + j_begin * across);
        const int8_t *by = w + (i * p->kernel_w + j_begin) * n;
        for (int32_t j = j_begin; j < j_end; j += together, from += across) {
            if (together * n > 1) {
                sum = dot(from, by, together * n, sum);
                for (int32_t k = together * n; k > 0; k--)
                    weights += *by++;
            } else {
                sum += (*from - zero) * *by++;
            }
        }
    }
    return sum - weights * zero;
}

/* The sum of products at one place where it does not; zero_in is taken off by the caller. */
static int32_t inside(const struct conv *p, const int8_t *x, const int8_t *w, int32_t sum)
{
    const int32_t across = p->dilation_w * p->channels, n = p->group_in;
    const int32_t down = p->dilation_h * p->width * p->channels;
    for (int32_t i = 0; i < p->kernel_h; i++, x += down) {
        if (across == n) { /* all of a row of the kernel lies together */
            sum = dot(x, w, n * p->kernel_w, sum);
            w += n * p->kernel_w;
        } else if (n == 1) {
            const int8_t *from = x;
            for (int32_t j = 0; j < p->kernel_w; j++, from += across)
                sum += *from * *w++;
        } else {
            for (int32_t j = 0; j < p->kernel_w; j++, w += n)
                sum = dot(x + j * across, w, n, sum);
        }
    }
    return sum;
}

/* kernel: alone */
#if defined(__GNUC__) && !defined(__clang__)
__attribute__((noipa)) /* else the only layer is other code than those of a network of several */
#endif
/* kernel: conv */
static void conv(const struct conv *p, const int8_t *x, int8_t *y, int8_t *row)
{
    const int32_t fan = p->kernel_h * p->kernel_w * p->group_in;
    const int32_t last_h = p->height - 1 - (p->kernel_h - 1) * p->dilation_h;
    const int32_t last_w = p->width - 1 - (p->kernel_w - 1) * p->dilation_w;
    const int32_t up = p->shift < 30 ? 30 - p->shift : 0, more = p->shift - 30 + up;
    const int64_t zero_and_half = (2 * p->zero + 1) * ((int64_t)1 << (p->shift - 1));
    const uint8_t *packed = p->weight;
    for (int32_t c = 0; c < p->out_channels; c++) {
        const int8_t *w = (const int8_t *)packed;
        /* kernel: packed */
        const int32_t bits = p->bits ? 1 << ((p->bits[c / 4] >> (2 * (c % 4))) & 3) : p->all_bits;
        if (bits != 8) {
            packed = unpack(packed, bits, fan, row);
            w = row;
        } else
        /* kernel: conv */
            packed += fan;
        const int8_t *from = x + c / p->group_out * p->group_in;
        /* Brought to a shift of 30, and more: shifts by a constant are cheaper. */
        /* kernel: fine */
        const int32_t multiplier = p->multiplier[c] << up;
        /* kernel: coarse */
        const int64_t multiplier = (int64_t)p->multiplier[c] << up; /* of a shift below 15 */
        /* kernel: conv */
        const int64_t base = (p->bias[c] * ((int64_t)1 << p->bias_shift) + zero_and_half) *
                             ((int64_t)1 << up);
        int32_t all = 0;
        for (int32_t i = 0; i < fan; i++)
            all -= w[i];
        all *= p->zero_in;
        int8_t *to = y + c;
        for (int32_t i = 0; i < p->out_height; i++) {
            const int32_t top = i * p->stride_h - p->pad_h;
            for (int32_t j = 0; j < p->out_width; j++, to += p->out_channels) {
                const int32_t left = j * p->stride_w - p->pad_w;
                const int32_t sum = top < 0 || top > last_h || left < 0 || left > last_w
                    ? at_edge(p, from, w, top, left)
                    : inside(p, from + (top * p->width + left) * p->channels, w, all);
                const int64_t level = (int64_t)sum * multiplier + base;
                *to = clamp((int32_t)(level >> 30) >> more, p->low, p->high);
            }
        }
    }
    (void)row;
}

/* kernel: add */
struct add {
    int32_t count, first, second; /* elements; multipliers */
    int8_t zero_first, zero_second;
    uint8_t shift;
    int8_t zero, low, high;
};

static void add(const struct add *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    const int32_t half = (int32_t)1 << (p->shift - 1);
    for (int32_t i = 0; i < p->count; i++) {
        const int32_t sum = (a[i] - p->zero_first) * p->first + (b[i] - p->zero_second) * p->second;
        y[i] = clamp(((sum + half) >> p->shift) + p->zero, p->low, p->high);
    }
}

/* kernel: mul */
struct mul {
    int32_t places, channels, step; /* step: of the second input from one place to the next */
    int32_t multiplier;
    int8_t zero_first, zero_second;
    uint8_t shift;
    int8_t zero, low, high;
};

static void mul(const struct mul *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    const int32_t half = (int32_t)1 << (p->shift - 1);
    for (int32_t i = 0; i < p->places; i++, b += p->step)
        for (int32_t k = 0; k < p->channels; k++) {
            const int32_t product = (*a++ - p->zero_first) * (b[k] - p->zero_second);
            *y++ = clamp(((product * p->multiplier + half) >> p->shift) + p->zero, p->low, p->high);
        }
}

/* kernel: concat */
struct concat {
    int32_t places, channels, step; /* of one input; step: channels of the output */
    int32_t multiplier;             /* 0: levels as they are */
    int8_t zero_in, zero;
    uint8_t shift;
};

static void concat(const struct concat *p, const int8_t *x, int8_t *y)
{
    const int32_t half = (int32_t)1 << (p->shift - 1);
    for (int32_t i = 0; i < p->places; i++, y += p->step)
        for (int32_t k = 0; k < p->channels; k++, x++)
            y[k] = p->multiplier == 0 ? *x
                : clamp((((*x - p->zero_in) * p->multiplier + half) >> p->shift) + p->zero, -128, 127);
}

/* kernel: mean */
struct mean {
    int32_t places, channels;
    uint16_t multiplier;
    uint8_t shift;
    int8_t zero_in, zero, low, high;
};

static void mean(const struct mean *p, const int8_t *x, int8_t *y)
{
    for (int32_t k = 0; k < p->channels; k++) {
        int32_t sum = 0;
        for (int32_t i = 0; i < p->places; i++)
            sum += x[i * p->channels + k] - p->zero_in;
        const int64_t half = (int64_t)1 << (p->shift - 1);
        const int64_t level = (((int64_t)sum * p->multiplier + half) >> p->shift) + p->zero;
        y[k] = level < p->low ? p->low : level > p->high ? p->high : (int8_t)level;
    }
}

/* kernel: pool */
struct pool {
    uint16_t height, width, channels, out_height, out_width;
    uint16_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    uint8_t largest, whole; /* maximum, else mean; mean of the whole kernel, padding included */
    int8_t zero;
};

static void pool(const struct pool *p, const int8_t *x, int8_t *y)
{
    for (int32_t i = 0; i < p->out_height; i++)
        for (int32_t j = 0; j < p->out_width; j++)
            for (int32_t k = 0; k < p->channels; k++) {
                int32_t sum = 0, count = 0, most = -128;
                for (int32_t u = 0; u < p->kernel_h; u++) {
                    const int32_t h = i * p->stride_h - p->pad_h + u * p->dilation_h;
                    for (int32_t v = 0; v < p->kernel_w; v++) {
                        const int32_t w = j * p->stride_w - p->pad_w + v * p->dilation_w;
                        if (h < 0 || h >= p->height || w < 0 || w >= p->width)
                            continue;
                        const int32_t level = x[(h * p->width + w) * p->channels + k];
                        sum += level - p->zero;
                        count++;
                        most = level > most ? level : most;
                    }
                }
                if (!p->largest) {
                    if (p->whole)
                        count = p->kernel_h * p->kernel_w;
                    /* half away from zero, as division cuts towards zero */
                    most = (sum >= 0 ? sum + count / 2 : sum - count / 2) / count + p->zero;
                }
                *y++ = (int8_t)most;
            }
}

/* kernel: table */
#if defined(__GNUC__) && !defined(__clang__)
__attribute__((noinline, noclone)) /* else every call has a copy of it, as large as its table */
#endif
static void table(const int8_t *levels, int32_t count, const int8_t *x, int8_t *y)
{
    for (int32_t i = 0; i < count; i++)
        y[i] = levels[x[i] + 128];
}

/* kernel: move */
struct move {
    int32_t start;                /* first element of the input */
    int32_t count[4], stride[4]; /* loops, the outermost first */
};

static void move(const struct move *p, const int8_t *x, int8_t *y)
{
    x += p->start;
    for (int32_t a = 0; a < p->count[0]; a++)
        for (int32_t b = 0; b < p->count[1]; b++)
            for (int32_t c = 0; c < p->count[2]; c++)
                for (int32_t d = 0; d < p->count[3]; d++)
                    *y++ = x[a * p->stride[0] + b * p->stride[1] + c * p->stride[2] +
                             d * p->stride[3]];
}

/* kernel: runs */
/* Pairs of where a run of elements begins, -1 for zeros, and how long it is. */
static void runs(const int32_t *pairs, int32_t count, int8_t zero, const int8_t *x, int8_t *y)
{
    for (int32_t i = 0; i < count; i++, pairs += 2) {
        if (pairs[0] < 0)
            memset(y, zero, (size_t)pairs[1]);
        else
            memcpy(y, x + pairs[0], (size_t)pairs[1]);
        y += pairs[1];
    }
}
