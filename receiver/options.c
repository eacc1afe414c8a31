/*-------------------------------------------------------------------------
 *
 * options.c
 *	  Options: of the command line, the environment, the configuration file.
 *
 * A table describes them.  The command line goes before the environment, and
 * that before the file.
 *
 *-------------------------------------------------------------------------
 */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <libpq-fe.h>

#include "options.h"

#define MAX_LINE 4096

typedef enum OptionType
{
	OPTION_TEXT,
	OPTION_NUMBER,
	OPTION_SECONDS, /* "10s", "2min" */
	OPTION_SIZE,	/* "8MB" */
	OPTION_FORMAT
} OptionType;

typedef struct Option
{
	const char *name;
	const char *argument;
	OptionType type;
	size_t offset; /* in Options */
	const char *initial;
	int64_t min;
	int64_t max;
	const char *help;
} Option;

typedef struct Unit
{
	OptionType type;
	const char *name;
	int64_t factor;
} Unit;

#define MEMBER(name) offsetof(Options, name)

/* clang-format off */
static const Option table[] = {
	{"database", "CONNINFO", OPTION_TEXT, MEMBER(database), "", 0, 0,
	 "connection string of the database"},
	{"listen", "HOST:PORT", OPTION_TEXT, MEMBER(listen), "127.0.0.1:8080", 0, 0,
	 "address to receive webhooks on"},
	{"path", "PATH", OPTION_TEXT, MEMBER(path), "/webhooks/argyle", 0, 0,
	 "path that webhooks are posted to"},
	{"admin", "HOST:PORT", OPTION_TEXT, MEMBER(admin), "", 0, 0,
	 "address of /live, /ready and /metrics"},
	{"notify", "CHANNEL", OPTION_TEXT, MEMBER(notify), "", 0, 0,
	 "NOTIFY this channel after events"},
	{"tls-certificate", "FILE", OPTION_TEXT, MEMBER(tls_certificate), "", 0, 0,
	 "certificate chain (PEM), to receive by HTTPS"},
	{"tls-key", "FILE", OPTION_TEXT, MEMBER(tls_key), "", 0, 0,
	 "private key of the certificate (PEM)"},
	{"max-body-size", "SIZE", OPTION_SIZE, MEMBER(max_body_size), "8MB", 1, 256 << 20,
	 "largest body"},
	{"max-header-size", "SIZE", OPTION_SIZE, MEMBER(max_header_size), "4kB", 1 << 10, 1 << 20,
	 "memory for the header of a request"},
	{"max-waiting", "SIZE", OPTION_SIZE, MEMBER(max_waiting), "64MB", 1, INT64_C(16) << 30,
	 "memory for bodies that have not been answered"},
	{"max-connections", "N", OPTION_NUMBER, MEMBER(max_connections), "10240", 1, 1000000,
	 "HTTP connections at a time"},
	{"request-timeout", "TIME", OPTION_SECONDS, MEMBER(request_timeout), "30s", 1, 3600,
	 "time for a connection to send a request"},
	{"answer-timeout", "TIME", OPTION_SECONDS, MEMBER(answer_timeout), "10s", 1, 3600,
	 "time for the database to ingest a webhook"},
	{"sessions", "N", OPTION_NUMBER, MEMBER(sessions), "2", 1, 8,
	 "database sessions that ingest"},
	{"log-format", "lines|json", OPTION_FORMAT, MEMBER(log_format), "lines", 0, 0,
	 "format of messages on standard error"},
};

static const Unit units[] = {
	{OPTION_SIZE, "B", 1},
	{OPTION_SIZE, "kB", 1 << 10},
	{OPTION_SIZE, "MB", 1 << 20},
	{OPTION_SIZE, "GB", 1 << 30},
	{OPTION_SECONDS, "s", 1},
	{OPTION_SECONDS, "min", 60},
};
/* clang-format on */

#define OPTIONS (sizeof(table) / sizeof(table[0]))
#define UNITS (sizeof(units) / sizeof(units[0]))

#define OPTION_CONFIG 1000
#define OPTION_HELP 1001
#define OPTION_VERSION 1002

Options options;

static void ReadCommandLine(int argc, char *argv[], const char **values,
							const char **config);
static void ReadEnvironment(const char **values, const char **config);
static void ReadFile(const char *path, const char **values);
static void ReadLine(const char *path, int number, char *line,
					 const char **values);
static int FindOption(const char *name, size_t len);
static void SetOption(const Option *option, const char *value);
static bool IsConninfo(const char *value);
static bool ReadNumber(const Option *option, const char *value, int64_t *number);
static void PrintHelp(void);
static void Fail(const char *format, ...)
	__attribute__((format(printf, 1, 2), noreturn));

/*
 * Sets the options.  Exits with 2 when one is wrong, and with 0 after --help and
 * --version.
 */
void
ReadOptions(int argc, char *argv[])
{
	static const char *values[OPTIONS];
	const char *config = NULL;

	ReadCommandLine(argc, argv, values, &config);
	ReadEnvironment(values, &config);
	if (config != NULL)
		ReadFile(config, values);
	for (size_t i = 0; i < OPTIONS; i++)
		SetOption(&table[i], values[i] != NULL ? values[i] : table[i].initial);
	if ((*options.tls_certificate == '\0') != (*options.tls_key == '\0'))
		Fail("\"tls-certificate\" and \"tls-key\" belong together");
	if (!IsConninfo(options.database))
		Fail("invalid value for \"database\": not a connection string or URI");
	if (*options.path != '/')
		Fail("\"path\" must begin with \"/\"");
}

static void
ReadCommandLine(int argc, char *argv[], const char **values, const char **config)
{
	struct option longopts[OPTIONS + 4] = {
		{"config", required_argument, NULL, OPTION_CONFIG},
		{"help", no_argument, NULL, OPTION_HELP},
		{"version", no_argument, NULL, OPTION_VERSION},
	};
	int c;

	for (size_t i = 0; i < OPTIONS; i++)
		longopts[3 + i] =
			(struct option){table[i].name, required_argument, NULL, (int) i};

	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1)
	{
		if (c == OPTION_CONFIG)
			*config = optarg;
		else if (c == OPTION_HELP)
		{
			PrintHelp();
			exit(0);
		}
		else if (c == OPTION_VERSION)
		{
			printf("%s %s\n", program, GIGS_RECEIVER_VERSION);
			exit(0);
		}
		else if (c == '?')
			Fail("try \"%s --help\"", program);
		else
			values[c] = optarg;
	}
	if (optind < argc)
		Fail("unexpected argument \"%s\"", argv[optind]);
}

static void
ReadEnvironment(const char **values, const char **config)
{
	if (*config == NULL)
		*config = getenv("GIGS_RECEIVER_CONFIG");
	for (size_t i = 0; i < OPTIONS; i++)
	{
		char variable[64] = "GIGS_RECEIVER_";
		size_t len = strlen(variable);

		for (const char *c = table[i].name; *c != '\0'; c++)
			variable[len++] =
				(char) (*c == '-' ? '_' : toupper((unsigned char) *c));
		if (values[i] == NULL)
			values[i] = getenv(variable);
	}
}

/*
 * Reads lines of the form "name = value".  "#" begins a comment line.
 */
static void
ReadFile(const char *path, const char **values)
{
	FILE *file = fopen(path, "r");
	char line[MAX_LINE];

	if (file == NULL)
		Fail("could not open configuration file \"%s\": %s", path,
			 strerror(errno));
	for (int number = 1; fgets(line, sizeof(line), file) != NULL; number++)
	{
		if (strlen(line) == sizeof(line) - 1)
			Fail("%s:%d: line is too long", path, number);
		ReadLine(path, number, line, values);
	}
	if (ferror(file))
		Fail("could not read configuration file \"%s\"", path);
	fclose(file);
}

static void
ReadLine(const char *path, int number, char *line, const char **values)
{
	char *name = line + strspn(line, " \t\r\n");
	char *value = strchr(name, '=');
	char *end;
	int option;

	if (*name == '\0' || *name == '#')
		return;
	if (value == NULL)
		Fail("%s:%d: expected \"name = value\"", path, number);
	end = value;
	while (end > name && isspace((unsigned char) end[-1]))
		end--;
	option = FindOption(name, end - name);
	if (option < 0)
		Fail("%s:%d: unknown option \"%.*s\"", path, number, (int) (end - name),
			 name);
	value++;
	value += strspn(value, " \t");
	end = value + strlen(value);
	while (end > value && isspace((unsigned char) end[-1]))
		end--;
	if (values[option] == NULL)
		values[option] = Format("%.*s", (int) (end - value), value);
}

static int
FindOption(const char *name, size_t len)
{
	for (size_t i = 0; i < OPTIONS; i++)
	{
		if (strlen(table[i].name) == len && memcmp(table[i].name, name, len) == 0)
			return (int) i;
	}
	return -1;
}

static void
SetOption(const Option *option, const char *value)
{
	void *member = (char *) &options + option->offset;
	int64_t number;

	switch (option->type)
	{
		case OPTION_TEXT:
			*(const char **) member = value;
			return;
		case OPTION_FORMAT:
			number = strcmp(value, "json") == 0 ? LOG_JSON : LOG_LINES;
			if (number == LOG_LINES && strcmp(value, "lines") != 0)
				Fail("invalid value for \"%s\": \"%s\"", option->name, value);
			break;
		default:
			if (!ReadNumber(option, value, &number))
				Fail("invalid value for \"%s\": \"%s\"", option->name, value);
			if (number < option->min || number > option->max)
				Fail("value for \"%s\" is out of range: \"%s\"", option->name,
					 value);
	}
	*(int64_t *) member = number;
}

/*
 * Tells whether libpq accepts a connection string, URI or name of a database.
 * What it would say when it connects could quote a part of a password.
 */
static bool
IsConninfo(const char *value)
{
	PQconninfoOption *parsed;

	if (strchr(value, '=') == NULL && strstr(value, "://") == NULL)
		return true;
	parsed = PQconninfoParse(value, NULL);
	PQconninfoFree(parsed);
	return parsed != NULL;
}

static bool
ReadNumber(const Option *option, const char *value, int64_t *number)
{
	char *end;
	long long n;

	errno = 0;
	n = strtoll(value, &end, 10);
	if (end == value || errno != 0 || n < 0 || n > INT32_MAX)
		return false;
	*number = n;
	if (*end == '\0')
		return true;
	end += strspn(end, " ");
	for (size_t i = 0; i < UNITS; i++)
	{
		if (units[i].type == option->type && strcmp(units[i].name, end) == 0)
		{
			*number *= units[i].factor;
			return true;
		}
	}
	return false;
}

static void
PrintHelp(void)
{
	printf("%s receives Argyle's webhooks and ingests them into PostgreSQL.\n\n"
		   "Usage: %s [OPTION]...\n\n",
		   program, program);
	for (size_t i = 0; i < OPTIONS; i++)
	{
		char option[64];

		snprintf(option, sizeof(option), "--%s=%s", table[i].name,
				 table[i].argument);
		printf("  %-28s %s", option, table[i].help);
		if (*table[i].initial != '\0')
			printf(" (%s)", table[i].initial);
		putchar('\n');
	}
	printf("  %-28s %s\n", "--config=FILE", "read options from a file");
	printf("  %-28s %s\n", "--help", "print this and exit");
	printf("  %-28s %s\n\n", "--version", "print the version and exit");
	printf(
		"The environment may set them as well: GIGS_RECEIVER_LISTEN is --listen.\n");
}

static void
Fail(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "%s: ", program);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	putc('\n', stderr);
	exit(2);
}
