# Receives Argyle's webhooks with Sinatra and pg.
#
#   PGDATABASE=gigs PGUSER=receiver PORT=8080 ruby receiver.rb

require 'json'
require 'pg'
require 'sinatra'

PATH = '/webhooks/argyle'.freeze
LIMIT = 8 * 1024 * 1024
INGEST = "SELECT outcome, event_id, sqlstate, message
  FROM try_ingest_gig_event($1::bytea, convert_from($2::bytea, 'LATIN1'))".freeze
STATUS = { '28000' => 401, '54000' => 413 }.freeze
# Serialization failure, deadlock, lost connection, shutdown.
REPEAT = [PG::TRSerializationFailure, PG::TRDeadlockDetected, PG::ConnectionBad, PG::UnableToSend,
          PG::AdminShutdown, PG::CrashShutdown].freeze

# A connection is nil before it is used, and after an error.
POOL = Queue.new([nil] * 10)

# exec_params returns after the commit.  To repeat it is safe: what was committed is a
# duplicate then.
def ingest(body, signature)
  connection = POOL.pop
  (1..4).each do |attempt|
    connection ||= PG.connect
    parameters = [body, signature].map { |bytes| { value: bytes, format: 1 } } # binary
    return connection.exec_params(INGEST, parameters).first
  rescue PG::Error => e
    connection = connection&.finish # which returns nil
    raise if attempt == 4 || !REPEAT.include?(e.class)
  end
ensure
  POOL << connection
end

# Otherwise Rack parses the body of a form before the route can read it.
Rack::Request.define_method(:POST) { {} }

set environment: :production, server: :puma, logging: false, quiet: true
set bind: ENV.fetch('HOST', '127.0.0.1'), port: ENV.fetch('PORT', '8080')
before { content_type :json }

post PATH do
  body = request.body&.read(LIMIT + 1) || ''
  halt 413, { message: 'body is too large' }.to_json if body.bytesize > LIMIT
  row = ingest(body, request.get_header('HTTP_X_ARGYLE_SIGNATURE'))
  if row['outcome'] == 'rejected'
    halt STATUS.fetch(row['sqlstate'], 400), row.slice('outcome', 'message').to_json
  end
  { outcome: row['outcome'], event_id: row['event_id']&.to_i }.to_json
rescue PG::Error => e
  warn "cannot ingest webhook: #{e.is_a?(PG::ServerError) ? e.class : e.message}"
  halt 503, { 'Retry-After' => '5' }, { message: 'try again later' }.to_json
end

not_found do
  halt 404, { message: 'not found' }.to_json if request.path_info != PATH
  halt 405, { 'Allow' => 'POST' }, { message: 'method not allowed' }.to_json
end
