/*-------------------------------------------------------------------------
 *
 * write.c
 *	  All that a call writes, by one statement.
 *
 * Starting the executor costs more than writing a row.  So what a call writes
 * to the different tables is one statement: one table's rows are its main
 * part, and the others' its data-modifying CTEs.  Where tables are ordinary
 * ones, it isn't even that.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "miscadmin.h"

#include "write.h"

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
	const char *rows; /* what the statement calls them */
	GigTable table;
	WriteMethod method;
} writes[GIG_WRITES] = {
	[WRITE_EVENTS] = {"events", TABLE_EVENT_LOG, PLAIN_INSERT},
	[WRITE_ACCOUNTS] = {"accounts", TABLE_ACCOUNT_SYNC, PLAIN_UPDATE},
	[WRITE_NEW_DELIVERIES] = {"new_deliveries", TABLE_DELIVERY, PLAIN_INSERT},
	[WRITE_KNOWN_DELIVERIES] = {"known_deliveries", TABLE_DELIVERY,
								INSERT_OR_UPDATE},
	[WRITE_CHANGES] = {"changes", TABLE_CHANGE, INSERT_OR_UPDATE},
	[RESTORE_CHANGES] = {"restored_changes", TABLE_CHANGE, INSERT_OR_NOTHING},
};

/* None, one or several: all that a statement's text knows of rows' number. */
#define ROW_NUMBERS 3
#define STATEMENTS 729 /* ROW_NUMBERS to the power of GIG_WRITES */

StaticAssertDecl(GIG_WRITES == 6, "STATEMENTS must suit GIG_WRITES");

static SavedPlan plans[STATEMENTS];

static void WriteDirectly(GigWriter *writer, GigWrite write, const void *row,
						  uint32 present);
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
BeginWriting(GigWriter *writer, const GigSchema *schema, GigDirect *direct)
{
	writer->schema = schema;
	writer->direct = direct;
	writer->ndirect = 0;
	for (int i = 0; i < GIG_WRITES; i++)
	{
		const GigTableInfo *table = &gig_tables[writes[i].table];

		InitRows(&writer->rows[i], schema, writes[i].rows, table->columns,
				 table->ncolumns);
	}
}

/*
 * Adds a row, which has to stay where it is until FinishWriting().
 */
void
WriteRow(GigWriter *writer, GigWrite write, const void *row, uint32 present)
{
	/* only SQL waits for who is just deleting a row that may stay as it is */
	if (writer->direct != NULL && writes[write].method != INSERT_OR_NOTHING)
		WriteDirectly(writer, write, row, present);
	else
		AddRow(&writer->rows[write], row, present);
}

static void
WriteDirectly(GigWriter *writer, GigWrite write, const void *row, uint32 present)
{
	GigDirect *direct = writer->direct;
	GigTable table = writes[write].table;
	TupleTableSlot *old = NULL;

	CHECK_FOR_INTERRUPTS();
	if (writes[write].method == PLAIN_UPDATE)
	{
		UpdateRow(direct, table, &((const GigAccount *) row)->tid, row, present);
		return;
	}
	if (writes[write].method == INSERT_OR_UPDATE)
	{
		old = FindRow(direct, table, row);
		if (old != NULL)
			old = LockRow(direct, table, row, &old->tts_tid);
	}
	if (old != NULL)
		UpdateRow(direct, table, &old->tts_tid, row, present);
	else
		InsertRow(direct, table, row, present);
	if (write == WRITE_EVENTS)
		writer->ndirect++;
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

	if (writer->direct != NULL)
		InsertRows(writer->direct);
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
		return writer->ndirect;
	nrows = RunPlan(writer->schema, FindPlan(writer), writer, &arguments,
					InvalidSnapshot, expected);
	for (int i = 0; i < GIG_WRITES; i++)
		TakeBackRows(&writer->rows[i]);
	return writer->direct != NULL ? writer->ndirect : nrows;
}

static SavedPlan *
FindPlan(const GigWriter *writer)
{
	int place = 0;

	for (int i = 0; i < GIG_WRITES; i++)
		place =
			place * ROW_NUMBERS + Min(writer->rows[i].nrows, ROW_NUMBERS - 1);
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
					 gig_tables[writes[write].table].name);
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
	AppendColumnNames(text, rows->columns,
					  gig_tables[writes[write].table].nkeys);
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
					 gig_tables[writes[write].table].name);
	AppendAssignments(statement, write, "n");
	appendStringInfoString(text, " FROM ");
	AppendRows(statement, rows);
	appendStringInfoString(text, " AS n WHERE ");
	for (int i = 0; i < gig_tables[writes[write].table].nkeys; i++)
		appendStringInfo(text, "%st.%s = n.%s", i > 0 ? " AND " : "",
						 rows->columns[i].name, rows->columns[i].name);
}

/* Sets all columns but the key's. */
static void
AppendAssignments(Statement *statement, GigWrite write, const char *source)
{
	const GigTableInfo *table = &gig_tables[writes[write].table];

	for (int i = table->nkeys; i < table->ncolumns; i++)
		appendStringInfo(&statement->text, "%s%s = %s.%s",
						 i > table->nkeys ? ", " : "", table->columns[i].name,
						 source, table->columns[i].name);
}
