/*-------------------------------------------------------------------------
 *
 * signature.c
 *	  HMAC-SHA512 signatures of webhook bodies, and the digest that knows a
 *	  body again.
 *
 * All of OpenSSL is in this room, and it knows nothing of events or tables.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
#include <openssl/core_names.h>
#include <openssl/params.h>
#else
#include <openssl/hmac.h>
#endif
#include <openssl/sha.h>

#include "utils/memutils.h"

#include "hex.h"
#include "signature.h"

/*
 * A context that has been keyed is only reset for the next body: hashing the
 * key again costs more than hashing a webhook.
 *
 * OpenSSL before 3.0.3 says that it has reset one, and has not.  Which one we
 * run with is known only here and now, so the first key puts it to the test;
 * where it fails, every body takes a copy of a context that has been keyed and
 * nothing else.
 */
struct SignatureKey
{
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
	EVP_MAC_CTX *hmac;
#else
	HMAC_CTX *hmac;
#endif
	MemoryContextCallback release;
};

static void ReleaseSignatureKey(void *arg);
static bool InitHmac(SignatureKey *key, const void *secret, size_t len);
#if OPENSSL_VERSION_NUMBER >= 0x30000000L
static bool SignsTwice(SignatureKey *key);
#endif
static bool ComputeHmac(SignatureKey *key, const void *body, size_t len,
						unsigned char *signature);

/*
 * Makes a key that is released with its memory context.
 */
SignatureKey *
MakeSignatureKey(MemoryContext context, const void *secret, size_t len)
{
	SignatureKey *key = MemoryContextAllocZero(context, sizeof(SignatureKey));

	key->release.func = ReleaseSignatureKey;
	key->release.arg = key;
	MemoryContextRegisterResetCallback(context, &key->release);
	if (!InitHmac(key, secret, len))
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
						errmsg("could not initialize HMAC-SHA512")));
	return key;
}

/*
 * Computes the signature of a body.
 */
void
SignBody(SignatureKey *key, const void *body, size_t len,
		 unsigned char signature[SIGNATURE_BYTES])
{
	if (!ComputeHmac(key, body, len, signature))
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
						errmsg("could not compute HMAC-SHA512")));
}

#if OPENSSL_VERSION_NUMBER >= 0x30000000L

static bool contexts_tested = false;
static bool contexts_reset = true; /* until the test says otherwise */

static bool
InitHmac(SignatureKey *key, const void *secret, size_t len)
{
	EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST,
										 (char *) "SHA512", 0),
		OSSL_PARAM_construct_end(),
	};

	if (mac == NULL)
		return false;
	key->hmac = EVP_MAC_CTX_new(mac);
	EVP_MAC_free(mac);
	if (key->hmac == NULL || EVP_MAC_init(key->hmac, secret, len, params) != 1)
		return false;
	if (contexts_tested)
		return true;
	contexts_reset = SignsTwice(key);
	contexts_tested = true;
	return EVP_MAC_init(key->hmac, secret, len, params) == 1;
}

/*
 * Tells whether a context that has been used signs as it did before.
 */
static bool
SignsTwice(SignatureKey *key)
{
	unsigned char first[SIGNATURE_BYTES];
	unsigned char second[SIGNATURE_BYTES];

	return ComputeHmac(key, "", 0, first) && ComputeHmac(key, "", 0, second) &&
		   SignaturesEqual(first, second);
}

static bool
ComputeHmac(SignatureKey *key, const void *body, size_t len,
			unsigned char *signature)
{
	EVP_MAC_CTX *hmac = contexts_reset ? key->hmac : EVP_MAC_CTX_dup(key->hmac);
	size_t written;
	bool computed =
		hmac != NULL &&
		(!contexts_reset || EVP_MAC_init(hmac, NULL, 0, NULL) == 1) &&
		EVP_MAC_update(hmac, body, len) == 1 &&
		EVP_MAC_final(hmac, signature, &written, SIGNATURE_BYTES) == 1 &&
		written == SIGNATURE_BYTES;

	if (!contexts_reset)
		EVP_MAC_CTX_free(hmac);
	return computed;
}

static void
ReleaseSignatureKey(void *arg)
{
	EVP_MAC_CTX_free(((SignatureKey *) arg)->hmac);
}

#else /* OpenSSL 1.1.1 */

static bool
InitHmac(SignatureKey *key, const void *secret, size_t len)
{
	key->hmac = HMAC_CTX_new();
	return key->hmac != NULL && len <= PG_INT32_MAX &&
		   HMAC_Init_ex(key->hmac, secret, (int) len, EVP_sha512(), NULL) == 1;
}

static bool
ComputeHmac(SignatureKey *key, const void *body, size_t len,
			unsigned char *signature)
{
	unsigned int written;

	return HMAC_Init_ex(key->hmac, NULL, 0, NULL, NULL) == 1 &&
		   HMAC_Update(key->hmac, body, len) == 1 &&
		   HMAC_Final(key->hmac, signature, &written) == 1 &&
		   written == SIGNATURE_BYTES;
}

static void
ReleaseSignatureKey(void *arg)
{
	HMAC_CTX_free(((SignatureKey *) arg)->hmac);
}

#endif

/*
 * Reads a signature header: 128 hexadecimal digits, of either case.
 */
bool
DecodeSignature(const char *hex, size_t len,
				unsigned char signature[SIGNATURE_BYTES])
{
	return len == SIGNATURE_HEX_LEN &&
		   DecodeHex(hex, signature, SIGNATURE_BYTES);
}

/*
 * Compares in a time that doesn't tell where they differ.
 */
bool
SignaturesEqual(const unsigned char a[SIGNATURE_BYTES],
				const unsigned char b[SIGNATURE_BYTES])
{
	return CRYPTO_memcmp(a, b, SIGNATURE_BYTES) == 0;
}

/*
 * Overwrites a secret that is no longer needed.
 */
void
ForgetKey(void *key, size_t len)
{
	OPENSSL_cleanse(key, len);
}

/*
 * Digests a body: the first half of its SHA-256.  64 bits would take two
 * bodies for one somewhere within a billion; these don't.
 */
void
DigestBody(const void *body, size_t len, BodyDigest *digest)
{
	unsigned char sha256[SHA256_DIGEST_LENGTH];

	if (EVP_Digest(body, len, sha256, NULL, EVP_sha256(), NULL) != 1)
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
						errmsg("could not compute SHA-256")));
	memcpy(digest->data, sha256, BODY_DIGEST_BYTES);
}
