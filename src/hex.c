/*-------------------------------------------------------------------------
 *
 * hex.c
 *	  Decoding hexadecimal digits.
 *
 * PostgreSQL's hex_decode() raises errors (before 16) and skips white space.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "hex.h"

#define DIGIT 0x10 /* tells a digit, 0 among them, from what is none */

/* clang-format off */
static const unsigned char digits[256] = {
	['0'] = DIGIT, ['1'] = DIGIT | 0x1, ['2'] = DIGIT | 0x2, ['3'] = DIGIT | 0x3,
	['4'] = DIGIT | 0x4, ['5'] = DIGIT | 0x5, ['6'] = DIGIT | 0x6, ['7'] = DIGIT | 0x7,
	['8'] = DIGIT | 0x8, ['9'] = DIGIT | 0x9, ['A'] = DIGIT | 0xa, ['B'] = DIGIT | 0xb,
	['C'] = DIGIT | 0xc, ['D'] = DIGIT | 0xd, ['E'] = DIGIT | 0xe, ['F'] = DIGIT | 0xf,
	['a'] = DIGIT | 0xa, ['b'] = DIGIT | 0xb, ['c'] = DIGIT | 0xc, ['d'] = DIGIT | 0xd,
	['e'] = DIGIT | 0xe, ['f'] = DIGIT | 0xf,
};
/* clang-format on */

/*
 * Decodes two digits, of either case, for each byte.
 */
bool
DecodeHex(const char *hex, unsigned char *bytes, size_t nbytes)
{
	for (size_t i = 0; i < nbytes; i++)
	{
		unsigned char high = digits[(unsigned char) hex[2 * i]];
		unsigned char low = digits[(unsigned char) hex[2 * i + 1]];

		if ((high & low & DIGIT) == 0)
			return false;
		bytes[i] = (unsigned char) (high << 4 | (low & ~DIGIT));
	}
	return true;
}
