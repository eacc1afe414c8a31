/*-------------------------------------------------------------------------
 *
 * subscription.h
 *	  The subscriptions, and verifying that a body was signed for one.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_SUBSCRIPTION_H
#define GIGS_WEBHOOKS_SUBSCRIPTION_H

#include "datatype/timestamp.h"

#include "schema.h"

extern void InitSubscriptions(void);
extern void RefreshSubscriptions(const GigSchema *schema);
extern bool VerifySubscription(const char *name, const char *body, size_t len,
							   const char *signature, size_t signature_len,
							   TimestampTz now, bool *is_signed,
							   GigError *error);

#endif /* GIGS_WEBHOOKS_SUBSCRIPTION_H */
