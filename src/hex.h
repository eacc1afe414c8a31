/*-------------------------------------------------------------------------
 *
 * hex.h
 *	  Decoding hexadecimal digits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_HEX_H
#define GIGS_WEBHOOKS_HEX_H

#define IS_HEX_DIGIT(c)                   \
	(((unsigned char) ((c) - '0') < 10) | \
	 ((unsigned char) (((c) | 0x20) - 'a') < 6))
#define HEX_VALUE(c) (((c) &0xf) + 9 * ((c) >> 6))

/*
 * Decodes two digits, of either case, for each byte.
 *
 * Inline and without branches, so that the compiler decodes many at a time.
 */
static inline bool
DecodeHex(const char *restrict hex, unsigned char *restrict bytes, size_t nbytes)
{
	unsigned char bad = 0;

	for (size_t i = 0; i < nbytes; i++)
	{
		unsigned char high = hex[2 * i];
		unsigned char low = hex[2 * i + 1];

		bad |= !(IS_HEX_DIGIT(high) & IS_HEX_DIGIT(low));
		bytes[i] = (unsigned char) (HEX_VALUE(high) << 4 | HEX_VALUE(low));
	}
	return bad == 0;
}

#endif /* GIGS_WEBHOOKS_HEX_H */
