/*
 * Latency histogram with bounded relative error, as HdrHistogram's: each power of two is split into 128 equal buckets, so a
 * quantile is right to 0.8 %. Nanoseconds in, 1 ns to 68 s.
 */
#pragma once
#include <stdint.h>
#include <string.h>

#define HISTOGRAM_SUB_BITS 7
#define HISTOGRAM_SUB (1u << HISTOGRAM_SUB_BITS)
#define HISTOGRAM_POWERS 30

struct histogram {
	uint64_t buckets[HISTOGRAM_POWERS * HISTOGRAM_SUB];
	uint64_t count, sum, min, max;
};

static inline unsigned histogram_index(uint64_t value)
{
	if (value < HISTOGRAM_SUB)
		return value;
	unsigned shift = 63 - __builtin_clzll(value) - HISTOGRAM_SUB_BITS;
	unsigned index = (shift + 1) * HISTOGRAM_SUB + ((value >> shift) - HISTOGRAM_SUB);
	unsigned last = HISTOGRAM_POWERS * HISTOGRAM_SUB - 1;
	return index < last ? index : last;
}

/* The middle of the bucket's range. */
static inline uint64_t histogram_value(unsigned index)
{
	if (index < HISTOGRAM_SUB)
		return index;
	unsigned shift = index / HISTOGRAM_SUB - 1;
	uint64_t low = (uint64_t)(index % HISTOGRAM_SUB + HISTOGRAM_SUB) << shift;
	return low + ((1ull << shift) >> 1);
}

static inline void histogram_add(struct histogram *h, uint64_t value)
{
	h->buckets[histogram_index(value)]++;
	h->count++;
	h->sum += value;
	if (h->count == 1 || value < h->min)
		h->min = value;
	if (value > h->max)
		h->max = value;
}

/* The smallest recorded value that at least the share `quantile` of all does not exceed. */
static inline uint64_t histogram_quantile(const struct histogram *h, double quantile)
{
	uint64_t wanted = (uint64_t)(quantile * h->count + 0.999999), seen = 0;
	if (!h->count)
		return 0;
	if (!wanted)
		wanted = 1;
	for (unsigned i = 0; i < HISTOGRAM_POWERS * HISTOGRAM_SUB; i++) {
		seen += h->buckets[i];
		if (seen >= wanted) {
			uint64_t value = histogram_value(i);
			return value > h->max ? h->max : value < h->min ? h->min : value;
		}
	}
	return h->max;
}
