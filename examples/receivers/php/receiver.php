<?php
// Receives Argyle's webhooks with PDO, in PHP-FPM behind your web server.  To try it:
//
//   PGDATABASE=gigs PGUSER=receiver PHP_CLI_SERVER_WORKERS=4 php -S 127.0.0.1:8080 receiver.php

const LIMIT = 8 * 1024 * 1024;
const INGEST = 'SELECT outcome, event_id, sqlstate, message FROM try_ingest_gig_event(?::bytea, ?::text)';
const STATUS = ['28000' => 401, '54000' => 413];
// Serialization failure, deadlock, lost connection, shutdown.
const REPEAT = '/^(40001|40P01|08|57P|HY000)/';

ini_set('display_errors', '0');

// PHP keeps a persistent connection for the process.  The PG* variables say where to.
function connect(): PDO
{
    return new PDO('pgsql:' . getenv('DATABASE_DSN'), options: [
        PDO::ATTR_PERSISTENT => true,
        PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION,
        PDO::PGSQL_ATTR_DISABLE_PREPARES => true,
    ]);
}

// execute() returns after the commit.  To repeat it is safe: what was committed is a
// duplicate then.  PARAM_LOB passes the body's bytes as they are.
function ingest(string $body, ?string $signature): array
{
    for ($attempt = 1; ; $attempt++) {
        try {
            $statement = connect()->prepare(INGEST);
            $statement->bindValue(1, $body, PDO::PARAM_LOB);
            $statement->bindValue(2, $signature);
            $statement->execute();
            return $statement->fetch(PDO::FETCH_ASSOC);
        } catch (PDOException $error) {
            if ($attempt === 4 || !preg_match(REPEAT, (string) ($error->errorInfo[0] ?? '08'))) {
                throw $error;
            }
            usleep(50000 * $attempt);
        }
    }
}

function answer(int $status, array $body, string ...$headers): never
{
    http_response_code($status);
    array_map('header', ['Content-Type: application/json', ...$headers]);
    echo json_encode($body);
    exit;
}

if (parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH) !== '/webhooks/argyle') {
    answer(404, ['message' => 'not found']);
}
if ($_SERVER['REQUEST_METHOD'] !== 'POST') {
    answer(405, ['message' => 'method not allowed'], 'Allow: POST');
}
$body = file_get_contents('php://input', length: LIMIT + 1);
if (strlen($body) > LIMIT || (int) ($_SERVER['CONTENT_LENGTH'] ?? 0) > LIMIT) {
    answer(413, ['message' => 'body is too large']);
}
$signature = $_SERVER['HTTP_X_ARGYLE_SIGNATURE'] ?? null;
if ($signature !== null && !preg_match('//u', $signature)) {
    $signature = 'not UTF-8'; // which is no text for the database
}
try {
    $row = ingest($body, $signature);
} catch (PDOException $error) {
    error_log('cannot ingest webhook: ' . strtok($error->getMessage(), "\n"));
    answer(503, ['message' => 'try again later'], 'Retry-After: 5');
}
if ($row['outcome'] === 'rejected') {
    answer(STATUS[$row['sqlstate']] ?? 400, ['outcome' => 'rejected', 'message' => $row['message']]);
}
answer(200, ['outcome' => $row['outcome'], 'event_id' => $row['event_id']]);
