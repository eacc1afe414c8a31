/*-------------------------------------------------------------------------
 *
 * early.c
 *	  Initializes AddressSanitizer before the server's libraries.
 *
 * AddressSanitizer initializes itself at the first malloc(), and then looks up a
 * symbol that does not exist, so that the C library translates a message.  With
 * PostgreSQL, the first malloc() is that of bindtextdomain(), called by a
 * library's constructor: the translation takes the lock that bindtextdomain()
 * holds, and the server hangs.  So this library is preloaded as well, and linked
 * such that its constructor runs first.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>

static void *volatile first;

__attribute__((constructor)) static void
AllocateFirst(void)
{
	first = malloc(1);
	free(first);
}
