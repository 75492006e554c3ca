/* Words of eight bytes, judged at once: 0x80 in a byte of a mask is that byte's answer. Part of http-parse.h. */
#pragma once

#define HTTP_ONES 0x0101010101010101ull
#define HTTP_HIGH 0x8080808080808080ull

#ifdef __BPF__
#define http_loop(times, callback, context) bpf_loop(times, callback, context, 0)
/* What the compiler knows of x's range it would leave out of the program, where 6.1's verifier then misses it. */
#define HTTP_FORGET(x) asm volatile("" : "+r"(x))
/* Its rounds compare with numbers, where 6.1's verifier sees which way it goes; with registers it does not. */
#define HTTP_UNROLL _Pragma("clang loop unroll(full)")
#define HTTP_FUNCTION static __noinline __attribute__((unused))
#define HTTP_INLINE static __always_inline
/* Verified once in each program, not again for each place that calls it. */
#define HTTP_GLOBAL __attribute__((noinline))
/* Of any address: that is cheap wherever this runs, and memcpy would become eight loads of a byte. */
#define http_load(from) (*(const __u64 *)(from))
#else
#define HTTP_GLOBAL static __attribute__((unused))
static inline __u64 http_load(const void *from)
{
	__u64 word;
	__builtin_memcpy(&word, from, sizeof(word));
	return word;
}
#define HTTP_FORGET(x)
#define HTTP_UNROLL
#define HTTP_FUNCTION static __attribute__((unused))
#define HTTP_INLINE static inline __attribute__((always_inline))
#define http_loop(times, callback, context) do { \
	for (__u32 turn_ = 0; turn_ < (times) && !callback(turn_, context); turn_++) \
		; \
} while (0)
#endif

/* Text of a literal as the word of its bytes from `o` on, padded with zeros. */
#define HTTP_BYTE(t, i) ((__u64)(__u8)(t)[i] << (8 * ((i) & 7)))
#define HTTP_PADDED(t, o) (HTTP_BYTE(t, o) | HTTP_BYTE(t, o + 1) | HTTP_BYTE(t, o + 2) | HTTP_BYTE(t, o + 3) | \
	HTTP_BYTE(t, o + 4) | HTTP_BYTE(t, o + 5) | HTTP_BYTE(t, o + 6) | HTTP_BYTE(t, o + 7))
#define HTTP_WORD(t, o) HTTP_PADDED(t "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", o)

/* Exact for every byte: sums stay below 0x100, so none carries into the next. */
HTTP_INLINE __u64 http_equal(__u64 w, __u8 c)
{
	__u64 z = w ^ (HTTP_ONES * c);
	return ~(((z & ~HTTP_HIGH) + ~HTTP_HIGH) | z) & HTTP_HIGH;
}

/* Bytes from `first` to `last`, both below 0x80. */
HTTP_INLINE __u64 http_between(__u64 w, __u8 first, __u8 last)
{
	__u64 low = w & ~HTTP_HIGH;
	return (low + HTTP_ONES * (0x80 - first)) & ~(low + HTTP_ONES * (0x7f - last)) & ~w & HTTP_HIGH;
}

HTTP_INLINE __u64 http_name_bytes(__u64 w)
{
	return http_between(w | (HTTP_ONES * 0x20), 'a', 'z') | http_between(w, '0', '9') | http_equal(w, '-') | http_equal(w, '_');
}

HTTP_INLINE __u64 http_path_bytes(__u64 w)
{
	return http_equal(w, '!') | http_equal(w, '$') | http_between(w, '&', ';') | http_equal(w, '=') | http_between(w, '@', 'Z')
		| http_equal(w, '_') | http_between(w, 'a', 'z') | http_equal(w, '~');
}

HTTP_INLINE __u64 http_hex_bytes(__u64 w)
{
	return http_between(w, '0', '9') | http_between(w | (HTTP_ONES * 0x20), 'a', 'f');
}

/* Number of the byte of a mask's lowest bit. */
HTTP_INLINE __u32 http_index(__u64 lowest)
{
	return ((((lowest - 1) & HTTP_ONES) * HTTP_ONES) >> 56) - 1;
}

HTTP_INLINE __u64 http_mask(__u32 bytes)
{
	return bytes >= 8 ? ~0ull : (1ull << (8 * (bytes & 7))) - 1;
}
