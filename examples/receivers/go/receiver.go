// Receives Argyle's webhooks with net/http and pgx. The PG* variables name the database.
package main

import (
	"database/sql"
	"errors"
	"flag"
	"io"
	"log"
	"net/http"

	"github.com/jackc/pgconn"
	_ "github.com/jackc/pgx/v4/stdlib"
)

const ingestQuery = `SELECT CASE WHEN outcome <> 'rejected' THEN 200
		WHEN sqlstate = '28000' THEN 401 WHEN sqlstate = '54000' THEN 413 ELSE 400 END,
	json_strip_nulls(json_build_object('outcome', outcome, 'event_id', event_id, 'message', message))
	FROM try_ingest_gig_event($1::bytea, nullif(convert_from($2::bytea, 'LATIN1'), ''))`

// Serialization failure, deadlock, shutdown.
var repeatable = map[string]bool{"40001": true, "40P01": true, "57P01": true, "57P03": true}
var pool *sql.DB

// ingest returns after the commit. What was committed before a repetition is a duplicate.
func ingest(body, signature []byte) (status int, answer []byte, err error) {
	for attempt := 1; attempt <= 4; attempt++ {
		var failure *pgconn.PgError
		err = pool.QueryRow(ingestQuery, body, signature).Scan(&status, &answer)
		if errors.As(err, &failure) {
			err = errors.New("SQLSTATE " + failure.Code) // the message may quote the body
		}
		if err == nil || failure != nil && !repeatable[failure.Code] {
			break
		}
	}
	return status, answer, err
}

func receive(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 8<<20))
	if err != nil {
		http.Error(w, "body is too large", http.StatusRequestEntityTooLarge)
		return
	}
	status, answer, err := ingest(body, []byte(r.Header.Get("X-Argyle-Signature")))
	if err != nil {
		log.Printf("cannot ingest webhook: %v", err)
		w.Header().Set("Retry-After", "5")
		http.Error(w, "try again later", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(answer)
}

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "address")
	flag.Parse()
	var err error
	if pool, err = sql.Open("pgx", ""); err != nil {
		log.Fatal(err)
	}
	pool.SetMaxOpenConns(10)
	pool.SetMaxIdleConns(10)
	http.HandleFunc("/webhooks/argyle", receive)
	log.Fatal(http.ListenAndServe(*listen, nil))
}
