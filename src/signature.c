/*-------------------------------------------------------------------------
 *
 * signature.c
 *	  HMAC-SHA512 signatures of webhook bodies, and SHA-256 digests.
 *
 * This is the only file that calls OpenSSL.  It knows nothing of events or
 * tables.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/sha.h>

#include "port/pg_bswap.h"

#include "hex.h"
#include "signature.h"

/*
 * A context with a key is reset for every body, because hashing the key again
 * costs more than hashing a webhook.
 *
 * OpenSSL before 3.0.3 claims to have reset a context without having done so.
 * The library is known at run time only, so the first key tests it.  Where the
 * test fails, every body gets a copy of a context that has never been used.
 */
struct SignatureKey
{
	EVP_MAC_CTX *hmac;
	MemoryContextCallback callback;
};

static bool resetting_tested = false;
static bool resetting_works = true;

static bool TestResetting(SignatureKey *key);
static bool ComputeHmac(SignatureKey *key, const void *body, size_t len,
						unsigned char *signature);
static void FreeSignatureKey(void *arg);

/*
 * Makes a key that is freed with its memory context.  Returns NULL if the secret
 * is empty, as such a key is public, or if OpenSSL does not accept it, as the
 * FIPS provider does with short ones.
 */
SignatureKey *
MakeSignatureKey(MemoryContext context, const void *secret, size_t len)
{
	SignatureKey *key = MemoryContextAllocZero(context, sizeof(SignatureKey));
	EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST,
										 (char *) "SHA512", 0),
		OSSL_PARAM_construct_end(),
	};
	bool accepted;

	key->callback.func = FreeSignatureKey;
	key->callback.arg = key;
	MemoryContextRegisterResetCallback(context, &key->callback);
	if (mac != NULL)
		key->hmac = EVP_MAC_CTX_new(mac);
	EVP_MAC_free(mac);
	accepted = len > 0 && key->hmac != NULL &&
			   EVP_MAC_init(key->hmac, secret, len, params) == 1;
	if (accepted && !resetting_tested)
	{
		resetting_works = TestResetting(key);
		resetting_tested = true;
		accepted = EVP_MAC_init(key->hmac, secret, len, params) == 1;
	}
	if (accepted)
		return key;
	/* leave no error behind for other users of OpenSSL, such as libpq */
	ERR_clear_error();
	return NULL;
}

/*
 * Tests whether a context signs the same body the same way twice.
 */
static bool
TestResetting(SignatureKey *key)
{
	unsigned char first[SIGNATURE_BYTES];
	unsigned char second[SIGNATURE_BYTES];

	return ComputeHmac(key, "", 0, first) && ComputeHmac(key, "", 0, second) &&
		   SignaturesEqual(first, second);
}

/*
 * Computes the signature of a body.
 */
void
SignBody(SignatureKey *key, const void *body, size_t len,
		 unsigned char signature[SIGNATURE_BYTES])
{
	if (!ComputeHmac(key, body, len, signature))
	{
		ERR_clear_error();
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
						errmsg("could not compute HMAC-SHA512")));
	}
}

static bool
ComputeHmac(SignatureKey *key, const void *body, size_t len,
			unsigned char *signature)
{
	EVP_MAC_CTX *hmac = resetting_works ? key->hmac : EVP_MAC_CTX_dup(key->hmac);
	size_t written;
	bool computed =
		hmac != NULL &&
		(!resetting_works || EVP_MAC_init(hmac, NULL, 0, NULL) == 1) &&
		EVP_MAC_update(hmac, body, len) == 1 &&
		EVP_MAC_final(hmac, signature, &written, SIGNATURE_BYTES) == 1 &&
		written == SIGNATURE_BYTES;

	if (!resetting_works)
		EVP_MAC_CTX_free(hmac);
	return computed;
}

static void
FreeSignatureKey(void *arg)
{
	EVP_MAC_CTX_free(((SignatureKey *) arg)->hmac);
}

/*
 * Decodes a signature header: 128 hexadecimal digits, of either case.
 */
bool
DecodeSignature(const char *hex, size_t len,
				unsigned char signature[SIGNATURE_BYTES])
{
	return len == SIGNATURE_HEX_LEN &&
		   DecodeHex(hex, signature, SIGNATURE_BYTES);
}

/*
 * Tells what is wrong with a signature that DecodeSignature() does not accept,
 * for the server log.
 */
const char *
DescribeBadSignature(const char *s, size_t len)
{
	size_t digits = 0;

	if (len == 0)
		return "The signature is empty, or too long to be read.";
	if (isspace((unsigned char) s[0]) || isspace((unsigned char) s[len - 1]))
		return "The signature begins or ends with white space.";
	if (len > strlen("sha512=") && pg_strncasecmp(s, "sha512=", 7) == 0)
		return "The signature has a prefix \"sha512=\".";
	while (digits < len && isxdigit((unsigned char) s[digits]))
		digits++;
	if (digits == len)
		return psprintf("The signature has %zu hexadecimal digits instead of %d.",
						len, SIGNATURE_HEX_LEN);
	/* 64 bytes, with padding */
	if (len == 88 && s[len - 1] == '=')
		return "The signature is base64 instead of hexadecimal.";
	return "The signature is not hexadecimal.";
}

/*
 * Compares signatures in constant time.
 */
bool
SignaturesEqual(const unsigned char a[SIGNATURE_BYTES],
				const unsigned char b[SIGNATURE_BYTES])
{
	return CRYPTO_memcmp(a, b, SIGNATURE_BYTES) == 0;
}

/*
 * Returns the first 64 bits of the SHA-256 digest.
 */
int64
DigestBytes(const void *bytes, size_t len)
{
	static EVP_MD *sha256 = NULL;
	static EVP_MD_CTX *context = NULL;
	unsigned char digest[SHA256_DIGEST_LENGTH];
	uint64 first;

	/* fetching the algorithm costs more than hashing an event */
	if (sha256 == NULL)
		sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
	if (context == NULL)
		context = EVP_MD_CTX_new();
	if (sha256 == NULL || context == NULL ||
		EVP_DigestInit_ex(context, sha256, NULL) != 1 ||
		EVP_DigestUpdate(context, bytes, len) != 1 ||
		EVP_DigestFinal_ex(context, digest, NULL) != 1)
	{
		ERR_clear_error();
		ereport(ERROR, (errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
						errmsg("could not compute SHA-256")));
	}
	memcpy(&first, digest, sizeof(first));
	return (int64) pg_ntoh64(first);
}
