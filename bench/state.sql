-- The end state, in one line that two variants share if they have done the same.
SELECT concat_ws(' ',
	(SELECT count(*) || ':' || coalesce(md5(string_agg(a::text, ',' ORDER BY a.account_id)), '-') FROM bench_account AS a),
	(SELECT count(*) || ':' || coalesce(md5(string_agg(md5(l::text), ',' ORDER BY md5(l::text))), '-') FROM bench_log AS l)
)
