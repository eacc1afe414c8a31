/*-------------------------------------------------------------------------
 *
 * settings.h
 *	  The extension's settings, as postgresql.conf has them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_SETTINGS_H
#define GIGS_WEBHOOKS_SETTINGS_H

extern bool gig_direct_writes;
extern int gig_dedupe_window; /* seconds */
extern int gig_max_body_size; /* bytes */
extern int gig_stalled_after; /* seconds */

#endif /* GIGS_WEBHOOKS_SETTINGS_H */
