/*-------------------------------------------------------------------------
 *
 * early.c
 *	  Has AddressSanitizer set up before the server's libraries are.
 *
 * Its runtime sets itself up with the first malloc(), and on the way fails to
 * find a symbol, for which the C library looks up a translated message.  With
 * PostgreSQL the first one comes out of bindtextdomain(), called by the
 * constructor of a library, which holds the lock that this needs: the lock
 * breaks, and the server hangs at its own first bindtextdomain().  So this
 * library is preloaded too, and linked such that its constructor is the first.
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
