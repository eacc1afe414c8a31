/*-------------------------------------------------------------------------
 *
 * plan.h
 *	  Saved SPI plans, one of each kind a backend.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_PLAN_H
#define GIGS_WEBHOOKS_PLAN_H

#include "executor/spi.h"

#include "schema.h"

#define MAX_PLAN_ARGS 24

/* A statement on our tables; static, one for every place that runs one. */
typedef struct SavedPlan
{
	/* writes the text; says the types of the parameters */
	void (*describe)(const GigSchema *schema, StringInfo query, Oid *argtypes,
					 int *nargs);
	SPIPlanPtr plan;
	uint64 generation; /* of the schema that it was prepared for */
	int running;	   /* how often it is being run just now */
} SavedPlan;

extern uint64 RunPlan(const GigSchema *schema, SavedPlan *saved, Datum *values,
					  const char *nulls, int expected);
extern Datum MakeArray(Oid type, Datum *values, bool *nulls, int length);

#endif /* GIGS_WEBHOOKS_PLAN_H */
