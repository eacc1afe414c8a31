/*-------------------------------------------------------------------------
 *
 * direct.h
 *	  Our tables without the planner and the executor, where they are
 *	  ordinary tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_DIRECT_H
#define GIGS_WEBHOOKS_DIRECT_H

#include "executor/tuptable.h"

#include "schema.h"

typedef struct GigDirect GigDirect;

extern void InitDirect(void);

/* These want to be called in the owner's name. */
extern GigDirect *BeginDirect(const GigSchema *schema);
extern void RefreshDirect(GigDirect *direct);
extern TupleTableSlot *FindRow(GigDirect *direct, GigTable table,
							   const void *key);
extern TupleTableSlot *LockRow(GigDirect *direct, GigTable table,
							   const void *key, const ItemPointerData *tid);
extern void InsertRow(GigDirect *direct, GigTable table, const void *row,
					  uint32 present);
extern void InsertRows(GigDirect *direct);
extern void UpdateRow(GigDirect *direct, GigTable table,
					  const ItemPointerData *tid, const void *row,
					  uint32 present);
extern void EndDirect(GigDirect *direct);

#endif /* GIGS_WEBHOOKS_DIRECT_H */
