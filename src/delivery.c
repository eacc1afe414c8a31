/*-------------------------------------------------------------------------
 *
 * delivery.c
 *	  The memory of what has been delivered: rows of gig_delivery.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"

#include "delivery.h"

const GigColumn gig_delivery_columns[GIG_DELIVERY_COLUMNS] = {
	[DELIVERY_ACCOUNT_ID] = GIG_COLUMN(GigDelivery, account_id, COLUMN_UUID),
	[DELIVERY_BODY_DIGEST] = GIG_COLUMN(GigDelivery, body_digest, COLUMN_DIGEST),
	[DELIVERY_EVENT_ID] = GIG_COLUMN(GigDelivery, event_id, COLUMN_INT8),
	[DELIVERY_DELIVERIES] = GIG_COLUMN(GigDelivery, deliveries, COLUMN_INT4),
	[DELIVERY_FIRST_AT] = GIG_COLUMN(GigDelivery, first_at, COLUMN_TIMESTAMPTZ),
	[DELIVERY_LAST_AT] = GIG_COLUMN(GigDelivery, last_at, COLUMN_TIMESTAMPTZ),
};

/* What deliveries are looked up by. */
static const GigColumn key_columns[] = {
	GIG_COLUMN(GigDelivery, place, COLUMN_INT4),
	GIG_COLUMN(GigDelivery, account_id, COLUMN_UUID),
	GIG_COLUMN(GigDelivery, body_digest, COLUMN_DIGEST),
};

static void ReadDirectly(const GigSchema *schema, GigDirect *direct,
						 GigDelivery *deliveries, int ndeliveries);
static void ReadBySql(const GigSchema *schema, GigDelivery *deliveries,
					  int ndeliveries);
static void DescribeReadDeliveries(Statement *statement, const void *what);
static void SetDelivery(const GigSchema *schema, GigDelivery *delivery,
						const Datum *values, const bool *nulls);

static SavedPlan read_delivery = {.describe = DescribeReadDeliveries};
static SavedPlan read_deliveries = {.describe = DescribeReadDeliveries};

/*
 * A delivery that nothing is known of.
 */
void
InitDelivery(GigDelivery *delivery, const pg_uuid_t *account_id,
			 const BodyDigest *digest)
{
	memset(delivery, 0, sizeof(GigDelivery));
	delivery->account_id = *account_id;
	delivery->body_digest = *digest;
}

/*
 * Reads those of the deliveries that are stored.
 */
void
ReadDeliveries(const GigSchema *schema, GigDirect *direct,
			   GigDelivery *deliveries, int ndeliveries)
{
	if (direct != NULL)
		ReadDirectly(schema, direct, deliveries, ndeliveries);
	else
		ReadBySql(schema, deliveries, ndeliveries);
}

static void
ReadDirectly(const GigSchema *schema, GigDirect *direct,
			 GigDelivery *deliveries, int ndeliveries)
{
	for (int i = 0; i < ndeliveries; i++)
	{
		TupleTableSlot *row = FindRow(direct, TABLE_DELIVERY, &deliveries[i]);

		CHECK_FOR_INTERRUPTS();
		if (row == NULL)
			continue;
		slot_getallattrs(row);
		SetDelivery(schema, &deliveries[i], row->tts_values, row->tts_isnull);
	}
}

static void
ReadBySql(const GigSchema *schema, GigDelivery *deliveries, int ndeliveries)
{
	GigRows keys;
	Arguments arguments = {.n = 0};
	uint64 nrows;

	InitRows(&keys, schema, "keys", key_columns, lengthof(key_columns));
	for (int i = 0; i < ndeliveries; i++)
	{
		deliveries[i].place = i;
		AddRow(&keys, &deliveries[i], ALL_PRESENT);
	}
	PutRows(&arguments, &keys);
	nrows = RunPlan(schema, ndeliveries == 1 ? &read_delivery : &read_deliveries,
					&keys, &arguments, InvalidSnapshot, SPI_OK_SELECT);
	for (uint64 row = 0; row < nrows; row++)
	{
		HeapTuple tuple = SPI_tuptable->vals[row];
		TupleDesc tupdesc = SPI_tuptable->tupdesc;
		bool isnull;
		int32 place =
			DatumGetInt32(GetResult(tuple, tupdesc, 1, INT4OID, &isnull));

		TakeDelivery(schema, &deliveries[place], tuple, tupdesc, 2);
	}
	SPI_freetuptable(SPI_tuptable);
	TakeBackRows(&keys);
}

static void
DescribeReadDeliveries(Statement *statement, const void *what)
{
	StringInfo text = &statement->text;

	appendStringInfoString(text, "SELECT k.place, ");
	AppendDeliveryColumns(text);
	appendStringInfoString(text, " FROM ");
	AppendRows(statement, what);
	appendStringInfo(text,
					 " AS k JOIN %s.gig_delivery AS d"
					 " ON d.account_id = k.account_id"
					 " AND d.body_digest = k.body_digest",
					 statement->schema->name);
}

/*
 * Writes the columns of "d" that TakeDelivery() reads.
 */
void
AppendDeliveryColumns(StringInfo text)
{
	for (int i = DELIVERY_EVENT_ID; i < GIG_DELIVERY_COLUMNS; i++)
		appendStringInfo(text, "%sd.%s", i > DELIVERY_EVENT_ID ? ", " : "",
						 gig_delivery_columns[i].name);
}

/*
 * Takes over what is stored of a delivery, if anything is; "column" is the
 * first of its columns in a row.
 */
void
TakeDelivery(const GigSchema *schema, GigDelivery *delivery, HeapTuple tuple,
			 TupleDesc tupdesc, int column)
{
	Datum values[GIG_DELIVERY_COLUMNS];
	bool nulls[GIG_DELIVERY_COLUMNS];

	for (int i = DELIVERY_EVENT_ID; i < GIG_DELIVERY_COLUMNS; i++)
		values[i] = GetResult(tuple, tupdesc, column++,
							  GigColumnTypeOid(schema, &gig_delivery_columns[i]),
							  &nulls[i]);
	SetDelivery(schema, delivery, values, nulls);
}

static void
SetDelivery(const GigSchema *schema, GigDelivery *delivery, const Datum *values,
			const bool *nulls)
{
	for (int i = DELIVERY_EVENT_ID; i < GIG_DELIVERY_COLUMNS; i++)
	{
		if (nulls[i])
			return;
		SetGigColumn(schema, &gig_delivery_columns[i], delivery, values[i]);
	}
	delivery->stored = true;
}
