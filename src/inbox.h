/*-------------------------------------------------------------------------
 *
 * inbox.h
 *	  What is written into the rows of inbox tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_INBOX_H
#define GIGS_WEBHOOKS_INBOX_H

#include "catalog/pg_attribute.h"

#include "error.h"

extern Datum ErrorDatum(Form_pg_attribute attribute, const GigError *error);
extern Datum OutputDatum(Form_pg_attribute attribute, char *value);

#endif /* GIGS_WEBHOOKS_INBOX_H */
