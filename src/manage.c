/*-------------------------------------------------------------------------
 *
 * manage.c
 *	  The SQL functions that subscriptions are managed with.
 *
 * They work on the tables in the owner's name, as ingesting does.  No error
 * shows a secret.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/rel.h"

#include "compat.h"
#include "encoding.h"
#include "plan.h"

#define MAX_NAME_BYTES 1024

static const GigSchema *BeginManaging(FunctionCallInfo fcinfo, Caller *caller);
static bool IsEmpty(FunctionCallInfo fcinfo, int argno);
static void CheckName(FunctionCallInfo fcinfo, int argno);
static void CheckSecret(FunctionCallInfo fcinfo, int argno);
static void CheckEvents(FunctionCallInfo fcinfo, int argno);
static void AddTextArgument(Arguments *arguments, FunctionCallInfo fcinfo,
							int argno);
static void InsertSecret(const GigSchema *schema, FunctionCallInfo fcinfo,
						 int name, int secret);
static void ForgetSecrets(const GigSchema *schema, Datum name);
static uint64 UseSecrets(const GigSchema *schema, const char *format,
						 Arguments *arguments, bool read_only, int expected);
static void HidePlans(void);
static void HideSecrets(ErrorData *error);
static bool MayBeTold(int sqlerrcode);
static void ThrowUnknown(FunctionCallInfo fcinfo, int argno);
static Datum NameOf(const TriggerData *trigger, HeapTuple row);

/*
 * create_gig_subscription(name text, url text, secret text DEFAULT NULL,
 *		events text[] DEFAULT all five, config jsonb DEFAULT NULL)
 *		returns void
 *
 * 42710 if there is one of the name already.
 */
PG_FUNCTION_INFO_V1(create_gig_subscription);
Datum
create_gig_subscription(PG_FUNCTION_ARGS)
{
	const GigSchema *schema;
	Arguments arguments = {.n = 0};
	Caller caller;

	CheckName(fcinfo, 0);
	if (IsEmpty(fcinfo, 1))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("subscription URL must not be empty")));
	if (!PG_ARGISNULL(2))
		CheckSecret(fcinfo, 2);
	CheckEvents(fcinfo, 3);
	if (!PG_ARGISNULL(4) && !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(4)))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("subscription config must be a JSON object")));

	schema = BeginManaging(fcinfo, &caller);
	AddTextArgument(&arguments, fcinfo, 0);
	AddTextArgument(&arguments, fcinfo, 1);
	AddTypedArgument(&arguments, TEXTARRAYOID, PG_GETARG_DATUM(3), false);
	AddTypedArgument(&arguments, JSONBOID, PG_GETARG_DATUM(4), PG_ARGISNULL(4));
	AddTypedArgument(&arguments, BOOLOID, BoolGetDatum(!PG_ARGISNULL(2)), false);
	if (RunStatement(schema,
					 "INSERT INTO %1$s.gig_subscription (name, url, events, config, signed)"
					 " VALUES ($1, $2, $3, $4, $5)"
					 " ON CONFLICT ON CONSTRAINT gig_subscription_pkey DO NOTHING",
					 &arguments, false, SPI_OK_INSERT) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("subscription \"%s\" already exists",
						TextDatumGetCString(PG_GETARG_DATUM(0))),
				 errhint(
					 "Use add_gig_secret() for another secret of the same name.")));

	/* none that somebody has left behind is to come back to life */
	ForgetSecrets(schema, PG_GETARG_DATUM(0));
	if (!PG_ARGISNULL(2))
		InsertSecret(schema, fcinfo, 0, 2);
	DisconnectAsCaller(&caller);
	PG_RETURN_VOID();
}

/*
 * add_gig_secret(name text, secret text) returns void
 *
 * Those that the subscription has stay valid.  42704 if there is no such
 * subscription, 42710 if the secret is valid already.
 */
PG_FUNCTION_INFO_V1(add_gig_secret);
Datum
add_gig_secret(PG_FUNCTION_ARGS)
{
	const GigSchema *schema;
	Arguments name = {.n = 0};
	Arguments both = {.n = 0};
	Caller caller;

	CheckSecret(fcinfo, 1);
	schema = BeginManaging(fcinfo, &caller);

	/*
	 * Updated even where it is signed already: whoever renames or drops it
	 * with an older snapshot, which does not have the new secret, has to try
	 * again.
	 */
	AddTextArgument(&name, fcinfo, 0);
	if (RunStatement(schema,
					 "UPDATE %1$s.gig_subscription SET signed = true WHERE name = $1",
					 &name, false, SPI_OK_UPDATE) == 0)
		ThrowUnknown(fcinfo, 0);

	AddTextArgument(&both, fcinfo, 0);
	AddTextArgument(&both, fcinfo, 1);
	if (UseSecrets(schema,
				   "SELECT FROM %1$s.gig_subscription_secret"
				   " WHERE name = $1 AND secret = $2"
				   " AND coalesce(retired_at, 'infinity') > clock_timestamp()",
				   &both, false, SPI_OK_SELECT) > 0)
		ereport(ERROR, (errcode(ERRCODE_DUPLICATE_OBJECT),
						errmsg("subscription \"%s\" has this secret already",
							   TextDatumGetCString(PG_GETARG_DATUM(0)))));
	InsertSecret(schema, fcinfo, 0, 1);
	DisconnectAsCaller(&caller);
	PG_RETURN_VOID();
}

/*
 * retire_gig_secret(name text, secret text, at timestamptz DEFAULT now())
 *		returns void
 *
 * Refuses a secret from a time on.  42704 if there is no such subscription, or
 * no such valid secret of it.
 */
PG_FUNCTION_INFO_V1(retire_gig_secret);
Datum
retire_gig_secret(PG_FUNCTION_ARGS)
{
	const GigSchema *schema;
	Arguments name = {.n = 0};
	Arguments all = {.n = 0};
	Caller caller;

	if (PG_ARGISNULL(2))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("time of retirement must not be null")));

	schema = BeginManaging(fcinfo, &caller);
	AddTextArgument(&name, fcinfo, 0);
	if (RunStatement(schema, "SELECT FROM %1$s.gig_subscription WHERE name = $1",
					 &name, false, SPI_OK_SELECT) == 0)
		ThrowUnknown(fcinfo, 0);
	AddTextArgument(&all, fcinfo, 0);
	AddTextArgument(&all, fcinfo, 1);
	AddTypedArgument(&all, TIMESTAMPTZOID, PG_GETARG_DATUM(2), false);
	if (UseSecrets(schema,
				   "UPDATE %1$s.gig_subscription_secret SET retired_at = $3"
				   " WHERE name = $1 AND secret = $2"
				   " AND coalesce(retired_at, 'infinity') > clock_timestamp()",
				   &all, false, SPI_OK_UPDATE) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("subscription \"%s\" has no such valid secret",
							   TextDatumGetCString(PG_GETARG_DATUM(0)))));
	DisconnectAsCaller(&caller);
	PG_RETURN_VOID();
}

/*
 * drop_gig_subscription(name text) returns void
 *
 * What it brought stays.  42704 if there is no such subscription.
 */
PG_FUNCTION_INFO_V1(drop_gig_subscription);
Datum
drop_gig_subscription(PG_FUNCTION_ARGS)
{
	Arguments arguments = {.n = 0};
	Caller caller;
	const GigSchema *schema = BeginManaging(fcinfo, &caller);

	AddTextArgument(&arguments, fcinfo, 0);
	if (RunStatement(schema, "DELETE FROM %1$s.gig_subscription WHERE name = $1",
					 &arguments, false, SPI_OK_DELETE) == 0)
		ThrowUnknown(fcinfo, 0);
	DisconnectAsCaller(&caller);
	PG_RETURN_VOID();
}

/*
 * gig_subscription_request(name text) returns jsonb
 *
 * What to POST to /v2/webhooks for a subscription, with its newest valid
 * secret.  42704 if there is no such subscription.
 */
PG_FUNCTION_INFO_V1(gig_subscription_request);
Datum
gig_subscription_request(PG_FUNCTION_ARGS)
{
	Arguments arguments = {.n = 0};
	Caller caller;
	const GigSchema *schema = BeginManaging(fcinfo, &caller);
	Datum request;
	bool isnull;

	AddTextArgument(&arguments, fcinfo, 0);
	if (UseSecrets(schema,
				   "SELECT jsonb_build_object("
				   "'events', CASE WHEN s.events = ARRAY['*']"
				   " THEN to_jsonb('*'::text) ELSE to_jsonb(s.events) END,"
				   " 'name', s.name, 'url', s.url)"
				   " || coalesce((SELECT jsonb_build_object('secret', k.secret)"
				   " FROM %1$s.gig_subscription_secret AS k"
				   " WHERE k.name = s.name"
				   " AND coalesce(k.retired_at, 'infinity') > clock_timestamp()"
				   " ORDER BY k.created_at DESC LIMIT 1), '{}')"
				   " || CASE WHEN s.config IS NULL THEN '{}'"
				   " ELSE jsonb_build_object('config', s.config) END"
				   " FROM %1$s.gig_subscription AS s WHERE s.name = $1",
				   &arguments, true, SPI_OK_SELECT) == 0)
		ThrowUnknown(fcinfo, 0);
	request = GetResult(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						JSONBOID, &isnull);
	request = SPI_datumTransfer(request, false, -1);
	DisconnectAsCaller(&caller);
	return request;
}

/*
 * gig_subscription_cascade() returns trigger
 *
 * AFTER DELETE or UPDATE of gig_subscription, FOR EACH ROW, and AFTER TRUNCATE:
 * has the secrets go and be renamed with the subscription.
 */
PG_FUNCTION_INFO_V1(gig_subscription_cascade);
Datum
gig_subscription_cascade(PG_FUNCTION_ARGS)
{
	const TriggerData *trigger = (TriggerData *) fcinfo->context;
	const GigSchema *schema;
	Arguments arguments = {.n = 0};
	Caller caller;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"gig_subscription_cascade")));
	schema = BeginManaging(fcinfo, &caller);
	if (RelationGetRelid(trigger->tg_relation) != schema->subscription_table)
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("\"%s\" is not the table of subscriptions",
							   RelationGetRelationName(trigger->tg_relation))));
	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
		UseSecrets(schema, "DELETE FROM %1$s.gig_subscription_secret",
				   &arguments, false, SPI_OK_DELETE);
	else if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		ForgetSecrets(schema, NameOf(trigger, trigger->tg_trigtuple));
	else if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
	{
		Datum old_name = NameOf(trigger, trigger->tg_trigtuple);
		Datum new_name = NameOf(trigger, trigger->tg_newtuple);

		/* none that somebody has left behind is to come back to life */
		if (!DatumGetBool(DirectFunctionCall2Coll(texteq, C_COLLATION_OID,
												  old_name, new_name)))
			ForgetSecrets(schema, new_name);
		AddTypedArgument(&arguments, TEXTOID, old_name, false);
		AddTypedArgument(&arguments, TEXTOID, new_name, false);
		UseSecrets(schema,
				   "UPDATE %1$s.gig_subscription_secret SET name = $2 WHERE name = $1",
				   &arguments, false, SPI_OK_UPDATE);
	}
	DisconnectAsCaller(&caller);
	return PointerGetDatum(NULL);
}

/*
 * gig_find_unsigned() returns void
 *
 * For the update from 1.0.0: a subscription without secrets is an unsigned one.
 * The owner's triggers must not run as the superuser who updates.
 */
PG_FUNCTION_INFO_V1(gig_find_unsigned);
Datum
gig_find_unsigned(PG_FUNCTION_ARGS)
{
	Arguments arguments = {.n = 0};
	Caller caller;
	const GigSchema *schema = BeginManaging(fcinfo, &caller);

	RunStatement(schema,
				 "UPDATE %1$s.gig_subscription AS s SET signed = false"
				 " WHERE NOT EXISTS (SELECT FROM %1$s.gig_subscription_secret AS k"
				 " WHERE k.name = s.name)",
				 &arguments, false, SPI_OK_UPDATE);
	DisconnectAsCaller(&caller);
	PG_RETURN_VOID();
}

static const GigSchema *
BeginManaging(FunctionCallInfo fcinfo, Caller *caller)
{
	const GigSchema *schema = GetGigSchema(fcinfo);

	LockGigTables(schema, AccessShareLock);
	LockGigSubscriptions(schema);
	ConnectAsOwner(schema, caller);
	return schema;
}

static bool
IsEmpty(FunctionCallInfo fcinfo, int argno)
{
	return PG_ARGISNULL(argno) ||
		   VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(argno)) == 0;
}

/*
 * Checks that a webhook could spell a name.
 */
static void
CheckName(FunctionCallInfo fcinfo, int argno)
{
	bytea *utf8;
	int len;

	if (IsEmpty(fcinfo, argno))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("subscription name must not be empty")));
	if (VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(argno)) > MAX_NAME_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("subscription name must not be longer than %d bytes",
						MAX_NAME_BYTES)));
	utf8 = TextToUtf8(PG_GETARG_TEXT_PP(argno), "subscription name");
	len = (int) VARSIZE_ANY_EXHDR(utf8);
	if (ValidUtf8Length(VARDATA_ANY(utf8), len) < len)
		ereport(ERROR, (errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
						errmsg("subscription name is not UTF-8")));
}

/*
 * Checks that one can sign with a secret.
 */
static void
CheckSecret(FunctionCallInfo fcinfo, int argno)
{
	if (IsEmpty(fcinfo, argno))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("secret must not be empty")));
	(void) TextToUtf8(PG_GETARG_TEXT_PP(argno), "secret");
}

static void
CheckEvents(FunctionCallInfo fcinfo, int argno)
{
	Datum *events = NULL;
	bool *nulls = NULL;
	int n = 0;

	if (!PG_ARGISNULL(argno) && ARR_NDIM(PG_GETARG_ARRAYTYPE_P(argno)) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg(
					 "subscription events must be an array of one dimension")));
	if (!PG_ARGISNULL(argno))
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(argno), TEXTOID, -1, false,
						  TYPALIGN_INT, &events, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (nulls[i] || VARSIZE_ANY_EXHDR(DatumGetPointer(events[i])) == 0)
			n = 0;
	}
	if (n == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("subscription events must not be empty")));
}

static void
AddTextArgument(Arguments *arguments, FunctionCallInfo fcinfo, int argno)
{
	AddTypedArgument(arguments, TEXTOID, PG_GETARG_DATUM(argno),
					 PG_ARGISNULL(argno));
}

/*
 * Inserts a secret, as the newest of its subscription even if the clock has
 * been set back.
 */
static void
InsertSecret(const GigSchema *schema, FunctionCallInfo fcinfo, int name,
			 int secret)
{
	Arguments arguments = {.n = 0};

	AddTextArgument(&arguments, fcinfo, name);
	AddTextArgument(&arguments, fcinfo, secret);
	UseSecrets(schema,
			   "INSERT INTO %1$s.gig_subscription_secret (name, secret, created_at)"
			   " SELECT $1, $2, greatest(clock_timestamp(),"
			   " max(k.created_at) + interval '1 microsecond')"
			   " FROM %1$s.gig_subscription_secret AS k WHERE k.name = $1",
			   &arguments, false, SPI_OK_INSERT);
}

static void
ForgetSecrets(const GigSchema *schema, Datum name)
{
	Arguments arguments = {.n = 0};

	AddTypedArgument(&arguments, TEXTOID, name, false);
	UseSecrets(schema,
			   "DELETE FROM %1$s.gig_subscription_secret WHERE name = $1",
			   &arguments, false, SPI_OK_DELETE);
}

/*
 * Runs a statement on the secrets.
 *
 * What the owner has put on their table, a constraint or a policy, fails with
 * what it was given in the message, mostly, and PostgreSQL shows the row that a
 * constraint refuses.
 */
static uint64
UseSecrets(const GigSchema *schema, const char *format, Arguments *arguments,
		   bool read_only, int expected)
{
	MemoryContext context = CurrentMemoryContext;
	GigWatch watch = FormatStatement(schema, format);
	/* before it is run, nothing in it is secret */
	SPIPlanPtr plan = PrepareWatched(watch, arguments->n, arguments->types, 0);
	int guc_nest_level = NewGUCNestLevel();
	volatile uint64 nrows = 0;

	HidePlans();
	PG_TRY();
	{
		nrows = ExecuteWatched(watch, plan, arguments, read_only, expected);
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		HideSecrets(error);
		ReThrowError(error);
	}
	PG_END_TRY();
	AtEOXact_GUC(true, guc_nest_level);
	SPI_freeplan(plan);
	return nrows;
}

/*
 * Has no plan of what runs on secrets, the owner's triggers among it, be shown
 * with them: plans have parameters instead of constants, and neither those nor
 * the plans are printed.
 */
static void
HidePlans(void)
{
	static const char *const settings[][2] = {
		{"plan_cache_mode", "force_generic_plan"}, {"debug_print_parse", "off"},
		{"debug_print_rewritten", "off"},		   {"debug_print_plan", "off"},
		{"auto_explain.log_min_duration", "-1"},
	};

	for (size_t i = 0; i < lengthof(settings); i++)
	{
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			(void) set_config_option(settings[i][0], settings[i][1], PGC_SUSET,
									 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
									 false);
	}
}

/*
 * Leaves in an error nothing that may show a value.
 */
static void
HideSecrets(ErrorData *error)
{
	error->detail = NULL;
	error->detail_log = NULL;
	error->context = NULL;
	error->internalquery = NULL;
	error->internalpos = 0;
	error->cursorpos = 0;
	if (MayBeTold(error->sqlerrcode))
		return;
	error->message =
		pstrdup("what is on table \"gig_subscription_secret\" has failed");
	error->detail = pstrdup(
		"The message of the error is left out, as it may show a secret.");
	error->hint = NULL;
}

/*
 * Tells whether an error's message is one that shows no value: PostgreSQL's
 * own, or one that somebody has worded for whoever gets it.
 */
static bool
MayBeTold(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_TO_CATEGORY(ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION):
		case ERRCODE_TO_CATEGORY(ERRCODE_READ_ONLY_SQL_TRANSACTION):
		case ERRCODE_TO_CATEGORY(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION):
		case ERRCODE_TO_CATEGORY(ERRCODE_T_R_SERIALIZATION_FAILURE):
		case ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES):
		case ERRCODE_TO_CATEGORY(ERRCODE_PROGRAM_LIMIT_EXCEEDED):
		case ERRCODE_TO_CATEGORY(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE):
		case ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION):
		case ERRCODE_TO_CATEGORY(ERRCODE_RAISE_EXCEPTION):
			return true;
		default:
			return sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE ||
				   sqlerrcode == ERRCODE_IO_ERROR;
	}
}

static void
ThrowUnknown(FunctionCallInfo fcinfo, int argno)
{
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
					errmsg("subscription \"%s\" does not exist",
						   PG_ARGISNULL(argno)
							   ? ""
							   : TextDatumGetCString(PG_GETARG_DATUM(argno)))));
}

static Datum
NameOf(const TriggerData *trigger, HeapTuple row)
{
	TupleDesc tupdesc = RelationGetDescr(trigger->tg_relation);
	int attnum = SPI_fnumber(tupdesc, "name");
	bool isnull;
	Datum name;

	if (attnum <= 0 || SPI_gettypeid(tupdesc, attnum) != TEXTOID)
		ThrowColumnError("name", RelationGetRelationName(trigger->tg_relation),
						 TEXTOID);
	name = SPI_getbinval(row, tupdesc, attnum, &isnull);
	if (isnull)
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("column \"%s\" of table \"%s\" is null", "name",
							   RelationGetRelationName(trigger->tg_relation))));
	return name;
}
