/*-------------------------------------------------------------------------
 *
 * database.h
 *	  Connections to the database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_RECEIVER_DATABASE_H
#define GIGS_RECEIVER_DATABASE_H

#include <stdbool.h>
#include <stdint.h>

#include <libpq-fe.h>

/* A connection that is opened again when it is lost. */
typedef struct Database
{
	PGconn *connection;
	int64_t pause;	   /* the last one, in microseconds; 0 once it has worked */
	char failure[256]; /* why it could not be opened the last time */
} Database;

extern void InitDatabases(void);
extern void StopDatabases(void);
extern bool DatabasesAreStopping(void);
extern bool OpenDatabase(Database *database);
extern void CloseDatabase(Database *database);
extern void RejectDatabase(Database *database, const char *message);
extern void LoseDatabase(Database *database, const PGresult *result);
extern void AcceptDatabase(Database *database);
extern void PauseDatabase(Database *database);
extern PGresult *FinishQuery(Database *database, int64_t deadline);
extern bool WaitForEvent(Database *database, int event, int64_t timeout);

#endif /* GIGS_RECEIVER_DATABASE_H */
