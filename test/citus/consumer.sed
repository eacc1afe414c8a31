# An SQL function cannot write with its parameters
/^CREATE FUNCTION pg_temp\.log(/,/^\$\$;/ {
	s/LANGUAGE sql AS \$\$$/LANGUAGE plpgsql AS $$ DECLARE logged bigint; BEGIN/
	s/RETURNING event_id$/RETURNING event_id INTO logged; RETURN logged; END/
}
