/*-------------------------------------------------------------------------
 *
 * write.c
 *	  All that a call writes, by one statement.
 *
 * Starting the executor costs more than writing a row.  So what a call writes
 * to the different tables is one statement: one table's rows are its main
 * part, and the others' its data-modifying CTEs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"

#include "write.h"

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

typedef enum WriteMethod
{
	PLAIN_INSERT,
	INSERT_OR_UPDATE,
	INSERT_OR_NOTHING,
	PLAIN_UPDATE
} WriteMethod;

/* How the rows of each kind are written. */
static const struct
{
	const char *table;
	const char *rows; /* what the statement calls them */
	const GigColumn *columns;
	int ncolumns;
	int nkeys; /* so many of the columns are the key */
	WriteMethod method;
} writes[GIG_WRITES] = {
	[WRITE_EVENTS] = {"gig_event_log", "events", event_columns,
					  lengthof(event_columns), 1, PLAIN_INSERT},
	[WRITE_ACCOUNTS] = {"gig_account_sync", "accounts", gig_account_columns,
						GIG_ACCOUNT_COLUMNS, 1, PLAIN_UPDATE},
	[WRITE_NEW_DELIVERIES] = {"gig_delivery", "new_deliveries",
							  gig_delivery_columns, GIG_DELIVERY_COLUMNS, 2,
							  PLAIN_INSERT},
	[WRITE_KNOWN_DELIVERIES] = {"gig_delivery", "known_deliveries",
								gig_delivery_columns, GIG_DELIVERY_COLUMNS, 2,
								INSERT_OR_UPDATE},
	[WRITE_CHANGES] = {"gig_change", "changes", change_columns,
					   lengthof(change_columns), 2, INSERT_OR_UPDATE},
	[RESTORE_CHANGES] = {"gig_change", "restored_changes", change_columns,
						 lengthof(change_columns), 2, INSERT_OR_NOTHING},
};

/* None, one or several: all that a statement's text knows of rows' number. */
#define ROW_NUMBERS 3
#define STATEMENTS 729 /* ROW_NUMBERS to the power of GIG_WRITES */

StaticAssertDecl(GIG_WRITES == 6, "STATEMENTS must suit GIG_WRITES");

static SavedPlan plans[STATEMENTS];

static SavedPlan *FindPlan(const GigWriter *writer);
static void DescribeWrites(Statement *statement, const void *what);
static void DescribeWrite(Statement *statement, GigWrite write,
						  const GigRows *rows);
static void DescribeInsert(Statement *statement, GigWrite write,
						   const GigRows *rows);
static void DescribeUpdate(Statement *statement, GigWrite write,
						   const GigRows *rows);
static void AppendAssignments(Statement *statement, GigWrite write,
							  const char *source);

void
BeginWriting(GigWriter *writer, const GigSchema *schema)
{
	writer->schema = schema;
	for (int i = 0; i < GIG_WRITES; i++)
		InitRows(&writer->rows[i], schema, writes[i].rows, writes[i].columns,
				 writes[i].ncolumns);
}

/*
 * Adds a row, which has to stay where it is until FinishWriting().
 */
void
WriteRow(GigWriter *writer, GigWrite write, const void *row, uint32 present)
{
	AddRow(&writer->rows[write], row, present);
}

/*
 * Writes all rows.  Returns how many of the first kind that there are have
 * been written: a trigger of the user's may have dropped some.
 */
uint64
FinishWriting(GigWriter *writer)
{
	Arguments arguments = {.n = 0};
	int expected = SPI_OK_INSERT;
	bool found = false;
	uint64 nrows;

	for (int i = 0; i < GIG_WRITES; i++)
	{
		if (writer->rows[i].nrows == 0)
			continue;
		if (!found && writes[i].method == PLAIN_UPDATE)
			expected = SPI_OK_UPDATE;
		found = true;
		PutRows(&arguments, &writer->rows[i]);
	}
	if (!found)
		return 0;
	nrows = RunPlan(writer->schema, FindPlan(writer), writer, &arguments,
					InvalidSnapshot, expected);
	for (int i = 0; i < GIG_WRITES; i++)
		TakeBackRows(&writer->rows[i]);
	return nrows;
}

static SavedPlan *
FindPlan(const GigWriter *writer)
{
	int place = 0;

	for (int i = 0; i < GIG_WRITES; i++)
		place = place * ROW_NUMBERS +
				Min(writer->rows[i].nrows, ROW_NUMBERS - 1);
	plans[place].describe = DescribeWrites;
	return &plans[place];
}

/*
 * Writes the statement.  Its parameters come in the order of the rows.
 */
static void
DescribeWrites(Statement *statement, const void *what)
{
	const GigWriter *writer = what;
	StringInfoData main_part;
	int nparts = 0;

	initStringInfo(&main_part);
	for (int i = 0; i < GIG_WRITES; i++)
	{
		if (writer->rows[i].nrows == 0)
			continue;
		if (nparts == 0)
		{
			DescribeWrite(statement, (GigWrite) i, &writer->rows[i]);
			appendStringInfoString(&main_part, statement->text.data);
			resetStringInfo(&statement->text);
		}
		else
		{
			appendStringInfo(&statement->text, "%s part_%d AS (",
							 nparts == 1 ? "WITH" : ",", nparts);
			DescribeWrite(statement, (GigWrite) i, &writer->rows[i]);
			appendStringInfoChar(&statement->text, ')');
		}
		nparts++;
	}
	appendStringInfo(&statement->text, " %s", main_part.data);
}

static void
DescribeWrite(Statement *statement, GigWrite write, const GigRows *rows)
{
	if (writes[write].method == PLAIN_UPDATE)
		DescribeUpdate(statement, write, rows);
	else
		DescribeInsert(statement, write, rows);
}

static void
DescribeInsert(Statement *statement, GigWrite write, const GigRows *rows)
{
	StringInfo text = &statement->text;

	appendStringInfo(text, "INSERT INTO %s.%s (", statement->schema->name,
					 writes[write].table);
	AppendColumnNames(text, rows->columns, rows->ncolumns);
	appendStringInfo(text, ")%s SELECT ",
					 write == WRITE_EVENTS ? " OVERRIDING SYSTEM VALUE" : "");
	AppendColumnNames(text, rows->columns, rows->ncolumns);
	appendStringInfoString(text, " FROM ");
	AppendRows(statement, rows);
	appendStringInfoString(text, " AS n");
	if (writes[write].method == PLAIN_INSERT)
		return;

	appendStringInfoString(text, " ON CONFLICT (");
	AppendColumnNames(text, rows->columns, writes[write].nkeys);
	appendStringInfoString(text, ") DO ");
	if (writes[write].method == INSERT_OR_NOTHING)
	{
		appendStringInfoString(text, "NOTHING");
		return;
	}
	appendStringInfoString(text, "UPDATE SET ");
	AppendAssignments(statement, write, "excluded");
}

static void
DescribeUpdate(Statement *statement, GigWrite write, const GigRows *rows)
{
	StringInfo text = &statement->text;

	appendStringInfo(text, "UPDATE %s.%s AS t SET ", statement->schema->name,
					 writes[write].table);
	AppendAssignments(statement, write, "n");
	appendStringInfoString(text, " FROM ");
	AppendRows(statement, rows);
	appendStringInfoString(text, " AS n WHERE ");
	for (int i = 0; i < writes[write].nkeys; i++)
		appendStringInfo(text, "%st.%s = n.%s", i > 0 ? " AND " : "",
						 rows->columns[i].name, rows->columns[i].name);
}

/* Sets all columns but the key's. */
static void
AppendAssignments(Statement *statement, GigWrite write, const char *source)
{
	const GigColumn *columns = writes[write].columns;

	for (int i = writes[write].nkeys; i < writes[write].ncolumns; i++)
		appendStringInfo(&statement->text, "%s%s = %s.%s",
						 i > writes[write].nkeys ? ", " : "", columns[i].name,
						 source, columns[i].name);
}
