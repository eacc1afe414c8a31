// Receives Argyle's webhooks with net/http and pgx.
//
//	go mod init receiver && go mod tidy && go build
//	PGDATABASE=gigs PGUSER=receiver PORT=8080 ./receiver
package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4/pgxpool"
)

const limit = 8 << 20
const ingestQuery = `SELECT outcome::text, event_id, coalesce(sqlstate, ''), coalesce(message, '')
	FROM try_ingest_gig_event($1::bytea, $2::text)`

var statusOf = map[string]int{"28000": 401, "54000": 413}

// Serialization failure, deadlock, lost connection, shutdown.
var repeatable = regexp.MustCompile("^(40001|40P01|08|57P)")
var pool *pgxpool.Pool

type row struct {
	outcome, sqlstate, message string
	eventID                    *int64
}

// Scan returns after the commit. To repeat it is safe: what was committed is a
// duplicate then.
func ingest(ctx context.Context, body []byte, signature *string) (r row, err error) {
	for attempt := 1; attempt <= 4; attempt++ {
		var failure *pgconn.PgError

		err = pool.QueryRow(ctx, ingestQuery, body, signature).Scan(&r.outcome, &r.eventID, &r.sqlstate, &r.message)
		if err == nil || errors.As(err, &failure) && !repeatable.MatchString(failure.Code) {
			return
		}
		time.Sleep(time.Duration(attempt) * 50 * time.Millisecond)
	}
	return
}

func answer(w http.ResponseWriter, status int, body map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

func receive(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		answer(w, 405, map[string]any{"message": "method not allowed"})
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		answer(w, 413, map[string]any{"message": "body is too large"})
		return
	}
	var signature *string
	if values := r.Header.Values("X-Argyle-Signature"); len(values) > 0 {
		text := strings.ToValidUTF8(values[0], "?") // other bytes are no text for the database
		signature = &text
	}
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	result, err := ingest(ctx, body, signature)
	switch {
	case err != nil:
		log.Printf("cannot ingest webhook: %v", err)
		w.Header().Set("Retry-After", "5")
		answer(w, 503, map[string]any{"message": "try again later"})
	case result.outcome == "rejected":
		status, known := statusOf[result.sqlstate]
		if !known {
			status = 400
		}
		answer(w, status, map[string]any{"outcome": result.outcome, "message": result.message})
	default:
		answer(w, 200, map[string]any{"outcome": result.outcome, "event_id": result.eventID})
	}
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func main() {
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL")) // and the PG* variables
	if err != nil {
		log.Fatal(err)
	}
	config.LazyConnect = true // the database may be down
	config.MaxConns = 10
	if pool, err = pgxpool.ConnectConfig(context.Background(), config); err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/webhooks/argyle", receive)
	log.Fatal(http.ListenAndServe(env("HOST", "127.0.0.1")+":"+env("PORT", "8080"), nil))
}
