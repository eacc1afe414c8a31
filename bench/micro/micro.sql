-- What micro.c times; :module is where it has been built.

CREATE FUNCTION bench_hmac(bodies bytea[], signatures text[], secret text, rounds integer)
RETURNS double precision AS :'module' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION bench_hmac_jsonb(bodies bytea[], signatures text[], secret text, rounds integer)
RETURNS double precision AS :'module' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION bench_verify_parse(bodies bytea[], signatures text[], secret text, rounds integer)
RETURNS double precision AS :'module' LANGUAGE C VOLATILE STRICT;
