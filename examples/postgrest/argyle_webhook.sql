CREATE FUNCTION api.argyle_webhook(json) RETURNS json
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  headers json := nullif(current_setting('request.headers', true), '');
  result record;
BEGIN
  SELECT * INTO result
  FROM public.try_ingest_gig_event(convert_to($1::text, 'UTF8'), headers ->> 'x-argyle-signature');

  IF result.outcome <> 'rejected' THEN
    RETURN json_build_object('outcome', result.outcome, 'event_id', result.event_id);
  END IF;
  PERFORM set_config('response.status',
    CASE result.sqlstate WHEN '28000' THEN '401' WHEN '54000' THEN '413' ELSE '400' END, true);
  RETURN json_build_object('outcome', result.outcome, 'message', result.message);
END
$$;

REVOKE EXECUTE ON FUNCTION api.argyle_webhook(json) FROM PUBLIC;
ALTER FUNCTION api.argyle_webhook(json) OWNER TO receiver;
GRANT EXECUTE ON FUNCTION api.argyle_webhook(json) TO anon;
