<?php
// Receives Argyle's webhooks with PDO, in PHP-FPM behind your web server.  To try it:
//
//   PGDATABASE=gigs PGUSER=receiver PHP_CLI_SERVER_WORKERS=4 php -S 127.0.0.1:8080 receiver.php

const LIMIT = 8 * 1024 * 1024;
const INGEST = "SELECT outcome, event_id, sqlstate, message
    FROM try_ingest_gig_event(?::bytea, convert_from(?::bytea, 'LATIN1'))";
const STATUS = ['28000' => 401, '54000' => 413];
// Serialization failure, deadlock, lost connection, shutdown.
const REPEAT = '/^(40001|40P01|08|57P|HY000)/';
// PHP keeps a persistent connection for the process.
const OPTIONS = [PDO::ATTR_PERSISTENT => true, PDO::PGSQL_ATTR_DISABLE_PREPARES => true];

// execute() returns after the commit.  To repeat it is safe: what was committed is a
// duplicate then.
function ingest(string $body, ?string $signature): array
{
    for ($attempt = 1; ; $attempt++) {
        try {
            $statement = (new PDO('pgsql:', options: OPTIONS))->prepare(INGEST);
            $statement->bindValue(1, $body, PDO::PARAM_LOB); // passes the bytes as they are
            $statement->bindValue(2, $signature, PDO::PARAM_LOB);
            $statement->execute();
            return $statement->fetch(PDO::FETCH_ASSOC);
        } catch (PDOException $error) {
            if ($attempt === 4 || !preg_match(REPEAT, $error->errorInfo[0] ?? '08')) {
                error_log('cannot ingest webhook: SQLSTATE ' . ($error->errorInfo[0] ?? '08006'));
                header('Retry-After: 5');
                answer(503, ['message' => 'try again later']);
            }
        }
    }
}

function answer(int $status, array $body): never
{
    http_response_code($status);
    header('Content-Type: application/json');
    exit(json_encode($body));
}

ini_set('display_errors', '0');
if (parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH) !== '/webhooks/argyle') {
    answer(404, ['message' => 'not found']);
}
if ($_SERVER['REQUEST_METHOD'] !== 'POST') {
    header('Allow: POST');
    answer(405, ['message' => 'method not allowed']);
}
$body = file_get_contents('php://input', length: LIMIT + 1);
if (strlen($body) > LIMIT || (int) ($_SERVER['CONTENT_LENGTH'] ?? 0) > LIMIT) {
    answer(413, ['message' => 'body is too large']);
}
$row = ingest($body, $_SERVER['HTTP_X_ARGYLE_SIGNATURE'] ?? null);
if ($row['outcome'] === 'rejected') {
    answer(STATUS[$row['sqlstate']] ?? 400, ['outcome' => 'rejected', 'message' => $row['message']]);
}
answer(200, ['outcome' => $row['outcome'], 'event_id' => $row['event_id']]);
