/*-------------------------------------------------------------------------
 *
 * signature.h
 *	  HMAC-SHA512 signatures of webhook bodies, and SHA-256 digests.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_SIGNATURE_H
#define GIGS_WEBHOOKS_SIGNATURE_H

#define SIGNATURE_BYTES 64
#define SIGNATURE_HEX_LEN 128 /* two digits a byte */

/* An initialized HMAC key; freed with its memory context. */
typedef struct SignatureKey SignatureKey;

extern SignatureKey *MakeSignatureKey(MemoryContext context, const void *secret,
									  size_t len);
extern void SignBody(SignatureKey *key, const void *body, size_t len,
					 unsigned char signature[SIGNATURE_BYTES]);
extern bool DecodeSignature(const char *hex, size_t len,
							unsigned char signature[SIGNATURE_BYTES]);
extern const char *DescribeBadSignature(const char *s, size_t len);
extern bool SignaturesEqual(const unsigned char a[SIGNATURE_BYTES],
							const unsigned char b[SIGNATURE_BYTES]);
extern int64 DigestBytes(const void *bytes, size_t len);

#endif /* GIGS_WEBHOOKS_SIGNATURE_H */
