/*-------------------------------------------------------------------------
 *
 * hex.h
 *	  Decoding hexadecimal digits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_HEX_H
#define GIGS_WEBHOOKS_HEX_H

extern bool DecodeHex(const char *hex, unsigned char *bytes, size_t nbytes);

#endif /* GIGS_WEBHOOKS_HEX_H */
