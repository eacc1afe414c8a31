/*-------------------------------------------------------------------------
 *
 * plan.h
 *	  Statements on our tables; saved SPI plans, one of each kind a backend.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_PLAN_H
#define GIGS_WEBHOOKS_PLAN_H

#include "executor/spi.h"
#include "lib/stringinfo.h"

#include "schema.h"

#define MAX_ARGUMENTS 64

/* The text of a statement in the making, and its parameters' types. */
typedef struct Statement
{
	const GigSchema *schema;
	StringInfoData text;
	int nparameters;
	Oid types[MAX_ARGUMENTS];
} Statement;

/* What its parameters are for one run of it. */
typedef struct Arguments
{
	int n;
	Oid types[MAX_ARGUMENTS]; /* of those that are typed */
	Datum values[MAX_ARGUMENTS];
	char nulls[MAX_ARGUMENTS];
} Arguments;

/* A statement on our tables; static, one for every place that runs one. */
typedef struct SavedPlan
{
	void (*describe)(Statement *statement, const void *what);
	SPIPlanPtr plan;
	uint64 generation; /* of the schema that it was prepared for */
	bool is_new;	   /* not planned yet */
	int running;	   /* how often it is being planned or run just now */
} SavedPlan;

extern void ConnectAsOwner(const GigSchema *schema, Caller *caller);
extern void DisconnectAsCaller(const Caller *caller);
extern uint64 RunPlan(const GigSchema *schema, SavedPlan *saved,
					  const void *what, Arguments *arguments, Snapshot snapshot,
					  int expected);
extern uint64 RunStatement(const GigSchema *schema, const char *format,
						   Arguments *arguments, bool read_only, int expected);
extern GigWatch FormatStatement(const GigSchema *schema, const char *format);
extern SPIPlanPtr PrepareWatched(GigWatch watch, int nparameters, Oid *types,
								 int cursor_options);
extern uint64 ExecuteWatched(GigWatch watch, SPIPlanPtr plan,
							 Arguments *arguments, bool read_only, int expected);
extern Portal OpenWatched(GigWatch watch, Arguments *arguments);
extern void CloseWatched(Portal cursor);
extern Datum GetResult(HeapTuple tuple, TupleDesc tupdesc, int column, Oid type,
					   bool *isnull);
extern void AppendParameter(Statement *statement, Oid type);
extern void AddArgument(Arguments *arguments, Datum value, bool isnull);
extern void AddTypedArgument(Arguments *arguments, Oid type, Datum value,
							 bool isnull);
extern Datum MakeArray(Oid type, Datum *values, int length);

#endif /* GIGS_WEBHOOKS_PLAN_H */
