/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  What differs between PostgreSQL 13 and the newest, under one name each.
 *
 * The rest of the code knows no versions, nor compilers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_COMPAT_H
#define GIGS_WEBHOOKS_COMPAT_H

#include "access/genam.h"
#include "catalog/dependency.h"
#include "common/jsonapi.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#if PG_VERSION_NUM >= 160000
#include "parser/parse_relation.h"
#endif

/*
 * PostgreSQL 16 lets a JSON semantic action stop the parser.  Before, actions
 * return nothing, and the way to stop is to tell the lexer that its input ends
 * here: the parser then fails at the next token.
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

/* A lexer over UTF-8 that leaves escape sequences alone. */
static inline JsonLexContext *
MakeRawJsonLexer(const char *json, int len)
{
#if PG_VERSION_NUM >= 170000
	return makeJsonLexContextCstringLen(NULL, json, len, PG_UTF8, false);
#else
	return makeJsonLexContextCstringLen((char *) json, len, PG_UTF8, false);
#endif
}

/* PostgreSQL 16 added a parameter that only abbreviations of zones use. */
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

/* The length of the valid UTF-8 (without NUL) that a string starts with. */
static inline int
ValidUtf8Length(const char *s, int len)
{
#if PG_VERSION_NUM >= 140000
	return pg_encoding_verifymbstr(PG_UTF8, s, len);
#else
	int valid = 0;

	if (pg_verify_mbstr(PG_UTF8, s, len, true))
		return len;
	while (valid < len && s[valid] != '\0')
	{
		int charlen = pg_encoding_verifymb(PG_UTF8, s + valid, len - valid);

		if (charlen < 0)
			break;
		valid += charlen;
	}
	return valid;
#endif
}

#if PG_VERSION_NUM < 140000
/* A conversion holds nothing that its error would leave behind. */
static inline bool
TryConversion(Oid conversion, int from, int to, const char *s, int len,
			  char *result)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool converted = true;

	PG_TRY();
	{
		OidFunctionCall5(conversion, Int32GetDatum(from), Int32GetDatum(to),
						 CStringGetDatum(s), CStringGetDatum(result),
						 Int32GetDatum(len));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		if (geterrcode() != ERRCODE_UNTRANSLATABLE_CHARACTER &&
			geterrcode() != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE)
			PG_RE_THROW();
		FlushErrorState();
		converted = false;
	}
	PG_END_TRY();
	return converted;
}
#endif

/*
 * Converts as much of a string as can be, which is "converted" bytes of it.
 * Before PostgreSQL 14 a conversion can only raise, and doesn't say where: so
 * the characters are tried one by one.
 */
static inline char *
ConvertPrefix(Oid conversion, int from, int to, const char *s, int len,
			  int *converted)
{
	Size size = (Size) len * MAX_CONVERSION_GROWTH + 1;
	char *result = MemoryContextAllocHuge(CurrentMemoryContext, size);
#if PG_VERSION_NUM >= 140000
	*converted =
		pg_do_encoding_conversion_buf(conversion, from, to, (unsigned char *) s,
									  len, (unsigned char *) result, (int) size,
									  true);
#else
	char *end = result;
	int done = 0;

	*converted = len;
	if (TryConversion(conversion, from, to, s, len, result))
		return result;
	while (done < len)
	{
		int char_len = Min(pg_encoding_mblen(from, s + done), len - done);

		CHECK_FOR_INTERRUPTS();
		if (!TryConversion(conversion, from, to, s + done, char_len, end))
			break;
		end += strlen(end);
		done += char_len;
	}
	*end = '\0';
	*converted = done;
#endif
	return result;
}

/* PostgreSQL 14 added what query IDs are made of. */
#if PG_VERSION_NUM >= 140000
#define POST_PARSE_PARAMETERS \
	ParseState *pstate, Query *query, JumbleState *jumble_state
#define POST_PARSE_ARGUMENTS pstate, query, jumble_state
#else
#define POST_PARSE_PARAMETERS ParseState *pstate, Query *query
#define POST_PARSE_ARGUMENTS pstate, query
#endif

static inline void
ReleasePlan(CachedPlan *plan)
{
#if PG_VERSION_NUM >= 140000
	ReleaseCachedPlan(plan, CurrentResourceOwner);
#else
	ReleaseCachedPlan(plan, true);
#endif
}

/*
 * Makes tables known to an executor state, numbered from 1.  PostgreSQL 16
 * took permissions out of the range table, 18 added what has been pruned.
 */
static inline void
InitRangeTable(EState *estate, const Oid *tables, int ntables)
{
	MemoryContext old_context = MemoryContextSwitchTo(estate->es_query_cxt);
	List *range_table = NIL;
#if PG_VERSION_NUM >= 160000
	List *permissions = NIL;
#endif

	for (int i = 0; i < ntables; i++)
	{
		RangeTblEntry *entry = makeNode(RangeTblEntry);

		entry->rtekind = RTE_RELATION;
		entry->relid = tables[i];
		entry->relkind = RELKIND_RELATION;
		entry->rellockmode = RowExclusiveLock;
#if PG_VERSION_NUM >= 160000
		addRTEPermissionInfo(&permissions, entry);
#endif
		range_table = lappend(range_table, entry);
	}
#if PG_VERSION_NUM >= 180000
	ExecInitRangeTable(estate, range_table, permissions,
					   bms_add_range(NULL, 1, ntables));
#elif PG_VERSION_NUM >= 160000
	ExecInitRangeTable(estate, range_table, permissions);
#else
	ExecInitRangeTable(estate, range_table);
#endif
	MemoryContextSwitchTo(old_context);
}

/*
 * Inserts a row's index entries.  PostgreSQL 14 made the table a parameter;
 * before, the state had it.
 */
static inline void
InsertIndexEntries(ResultRelInfo *table, EState *estate, TupleTableSlot *row)
{
#if PG_VERSION_NUM >= 160000
	ExecInsertIndexTuples(table, row, estate, false, false, NULL, NIL, false);
#elif PG_VERSION_NUM >= 140000
	ExecInsertIndexTuples(table, row, estate, false, false, NULL, NIL);
#else
	estate->es_result_relation_info = table;
	ExecInsertIndexTuples(row, estate, false, NULL, NIL);
#endif
}

/* Without triggers nobody asks for the state that rechecks rows. */
static inline void
SimpleRelationUpdate(ResultRelInfo *table, EState *estate, TupleTableSlot *old,
					 TupleTableSlot *row)
{
#if PG_VERSION_NUM >= 140000
	ExecSimpleRelationUpdate(table, estate, NULL, old, row);
#else
	estate->es_result_relation_info = table;
	ExecSimpleRelationUpdate(estate, NULL, old, row);
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

static inline Oid
PrimaryKeyIndex(Relation table)
{
#if PG_VERSION_NUM >= 180000
	return RelationGetPrimaryKeyIndex(table, false);
#else
	return RelationGetPrimaryKeyIndex(table);
#endif
}

/*
 * The server's headers have the name that the format of printf() has in gcc
 * where that is what they were configured with; clang does not know it.
 */
#ifdef __clang__
#undef PG_PRINTF_ATTRIBUTE
#define PG_PRINTF_ATTRIBUTE printf
#endif

#if PG_VERSION_NUM < 180000
#define pg_noreturn __attribute__((noreturn))
#endif

#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix) EmitWarningsOnPlaceholders(prefix)
#endif

#endif /* GIGS_WEBHOOKS_COMPAT_H */
