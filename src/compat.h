/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Differences between PostgreSQL 15 and later versions, and between
 *	  compilers, behind one name each.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_COMPAT_H
#define GIGS_WEBHOOKS_COMPAT_H

#include "access/genam.h"
#include "common/jsonapi.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "utils/datetime.h"
#include "utils/rel.h"

/*
 * PostgreSQL 16 lets a JSON semantic action stop the parser.  Before, actions
 * return nothing.  To stop there, tell the lexer that its input ends here, so
 * that the parser fails at the next token.
 */
#if PG_VERSION_NUM >= 160000
#define JSON_ACTION JsonParseErrorType
#define JSON_ACTION_CONTINUE() return JSON_SUCCESS
#define JSON_ACTION_STOP(lex) return JSON_SEM_ACTION_FAILED
#else
#define JSON_ACTION void
#define JSON_ACTION_CONTINUE() return
#define JSON_ACTION_STOP(lex)    \
	do                           \
	{                            \
		(lex)->input_length = 0; \
		return;                  \
	} while (0)
#endif

/* A lexer for UTF-8 that does not resolve escape sequences. */
static inline JsonLexContext *
MakeRawJsonLexer(const char *json, int len)
{
#if PG_VERSION_NUM >= 170000
	return makeJsonLexContextCstringLen(NULL, json, len, PG_UTF8, false);
#else
	return makeJsonLexContextCstringLen((char *) json, len, PG_UTF8, false);
#endif
}

/* PostgreSQL 16 added a parameter for time zone abbreviations. */
static inline int
DecodeDateTimeFields(char **field, int *ftype, int nf, int *dtype,
					 struct pg_tm *tm, fsec_t *fsec, int *tzp)
{
#if PG_VERSION_NUM >= 160000
	DateTimeErrorExtra extra;

	return DecodeDateTime(field, ftype, nf, dtype, tm, fsec, tzp, &extra);
#else
	return DecodeDateTime(field, ftype, nf, dtype, tm, fsec, tzp);
#endif
}

/* Inserts entries of a new row into the indexes of its table. */
static inline void
InsertIndexEntries(ResultRelInfo *table, EState *estate, TupleTableSlot *row)
{
#if PG_VERSION_NUM >= 160000
	ExecInsertIndexTuples(table, row, estate, false, false, NULL, NIL, false);
#else
	ExecInsertIndexTuples(table, row, estate, false, false, NULL, NIL);
#endif
}

static inline IndexScanDesc
BeginIndexScan(Relation table, Relation index, Snapshot snapshot, int nkeys)
{
#if PG_VERSION_NUM >= 180000
	return index_beginscan(table, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(table, index, snapshot, nkeys, 0);
#endif
}

/*
 * The server's headers name gcc's printf format if they were configured with
 * gcc; clang does not know it.
 */
#ifdef __clang__
#undef PG_PRINTF_ATTRIBUTE
#define PG_PRINTF_ATTRIBUTE printf
#endif

#if PG_VERSION_NUM < 180000
#define pg_noreturn __attribute__((noreturn))
#endif

#endif /* GIGS_WEBHOOKS_COMPAT_H */
