/*-------------------------------------------------------------------------
 *
 * signature.h
 *	  HMAC-SHA512 signatures of webhook bodies, and the digest that knows a
 *	  body again.  All of OpenSSL is in this room.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_SIGNATURE_H
#define GIGS_WEBHOOKS_SIGNATURE_H

#define SIGNATURE_BYTES 64
#define SIGNATURE_HEX_LEN 128 /* two digits a byte */
#define BODY_DIGEST_BYTES 16

typedef struct BodyDigest
{
	unsigned char data[BODY_DIGEST_BYTES];
} BodyDigest;

/* A key, ready to sign with; lives and dies with its memory context. */
typedef struct SignatureKey SignatureKey;

extern SignatureKey *MakeSignatureKey(MemoryContext context, const void *key,
									  size_t len);
extern void SignBody(SignatureKey *key, const void *body, size_t len,
					 unsigned char signature[SIGNATURE_BYTES]);
extern bool DecodeSignature(const char *hex, size_t len,
							unsigned char signature[SIGNATURE_BYTES]);
extern bool SignaturesEqual(const unsigned char a[SIGNATURE_BYTES],
							const unsigned char b[SIGNATURE_BYTES]);
extern void ForgetKey(void *key, size_t len);
extern void DigestBody(const void *body, size_t len, BodyDigest *digest);

#endif /* GIGS_WEBHOOKS_SIGNATURE_H */
