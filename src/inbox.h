/*-------------------------------------------------------------------------
 *
 * inbox.h
 *	  The columns of inbox tables, and what is written into them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_INBOX_H
#define GIGS_WEBHOOKS_INBOX_H

#include "catalog/pg_attribute.h"

#include "compat.h"
#include "error.h"
#include "ingest.h"
#include "schema.h"

/* The columns, in the order in which the trigger and the drain are told them. */
typedef enum InboxColumn
{
	INBOX_BODY,
	INBOX_SIGNATURE,
	INBOX_OUTCOME,
	INBOX_ERROR
} InboxColumn;

#define INBOX_COLUMNS (INBOX_ERROR + 1)

extern bool InboxColumnFits(const GigSchema *schema, InboxColumn column,
							Form_pg_attribute attribute);
pg_noreturn extern void ThrowInboxColumn(const char *where, InboxColumn column,
										 Form_pg_attribute attribute);
extern void SetInboxSignature(GigInput *input,
							  const FormData_pg_attribute *attribute,
							  Datum value);
extern Datum ErrorDatum(Form_pg_attribute attribute, const GigError *error);
extern Datum OutputDatum(Form_pg_attribute attribute, char *value);

#endif /* GIGS_WEBHOOKS_INBOX_H */
