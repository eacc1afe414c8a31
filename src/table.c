/*-------------------------------------------------------------------------
 *
 * table.c
 *	  The tables that events change: their names, columns and keys.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "table.h"

static const GigColumn event_columns[] = {
	GIG_COLUMN(GigEventRow, event_id, COLUMN_INT8),
	GIG_COLUMN(GigEventRow, received_at, COLUMN_TIMESTAMPTZ),
	GIG_COLUMN(GigEventRow, event, COLUMN_EVENT_KIND),
	GIG_COLUMN(GigEventRow, account_id, COLUMN_UUID),
	GIG_COLUMN(GigEventRow, name, COLUMN_TEXT),
	GIG_COLUMN(GigEventRow, body, COLUMN_BYTEA),
};

static const GigColumn change_columns[] = {
	GIG_COLUMN(GigChange, account_id, COLUMN_UUID),
	GIG_COLUMN(GigChange, gig_id, COLUMN_UUID),
	GIG_COLUMN(GigChange, change, COLUMN_EVENT_KIND),
	GIG_COLUMN(GigChange, changed_at, COLUMN_TIMESTAMPTZ),
	GIG_COLUMN(GigChange, event_id, COLUMN_INT8),
};

const GigTableInfo gig_tables[GIG_TABLES] = {
	[TABLE_EVENT_LOG] = {"gig_event_log", event_columns,
						 lengthof(event_columns), 1},
	[TABLE_ACCOUNT_SYNC] = {"gig_account_sync", gig_account_columns,
							GIG_ACCOUNT_COLUMNS, 1},
	[TABLE_DELIVERY] = {"gig_delivery", gig_delivery_columns,
						GIG_DELIVERY_COLUMNS, 2},
	[TABLE_CHANGE] = {"gig_change", change_columns, lengthof(change_columns), 2},
};
