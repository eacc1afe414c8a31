/*-------------------------------------------------------------------------
 *
 * encoding.h
 *	  Text of the database's encoding as UTF-8, which webhooks are in.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_ENCODING_H
#define GIGS_WEBHOOKS_ENCODING_H

/*
 * A string's UTF-8 bytes, terminated; the string itself where nothing is to be
 * done, and NULL if it has no form in UTF-8.
 */
extern char *ServerToUtf8(char *s, int len);

/* The UTF-8 bytes of text; raises, without a byte of it, if there are none. */
extern bytea *TextToUtf8(text *t, const char *what);

/*
 * The same of a webhook's body, perhaps toasted, but what is wrong with it
 * comes out as such.
 */
extern bytea *TextToBody(text *t);

#endif /* GIGS_WEBHOOKS_ENCODING_H */
