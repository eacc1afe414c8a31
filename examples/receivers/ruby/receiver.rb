# Receives Argyle's webhooks with Sinatra and pg.
#
#   gem install sinatra puma pg
#   PGDATABASE=gigs PGUSER=receiver PORT=8080 ruby receiver.rb

require 'json'
require 'pg'
require 'sinatra'

PATH = '/webhooks/argyle'.freeze
LIMIT = 8 * 1024 * 1024
INGEST = 'SELECT outcome, event_id, sqlstate, message FROM try_ingest_gig_event($1::bytea, $2::text)'.freeze
STATUS = { '28000' => 401, '54000' => 413 }.freeze
# Serialization failure, deadlock, lost connection, shutdown.
REPEAT = [PG::TRSerializationFailure, PG::TRDeadlockDetected, PG::ConnectionBad, PG::UnableToSend,
          PG::AdminShutdown, PG::CrashShutdown].freeze

# A connection is nil until it is used, and after an error.  Without DATABASE_URL, the
# PG* variables say where to.
POOL = Queue.new
10.times { POOL << nil }

# exec_params returns after the commit.  To repeat it is safe: what was committed
# is a duplicate then.  Format 1 passes the body's bytes as they are.
def ingest(body, signature)
  attempt = 1
  begin
    connection = POOL.pop
    begin
      connection = PG.connect(*ENV['DATABASE_URL']) if connection.nil? || connection.finished?
      connection.exec_params(INGEST, [{ value: body, type: 17, format: 1 }, signature]).first
    rescue PG::Error
      connection&.finish
      connection = nil
      raise
    ensure
      POOL << connection
    end
  rescue *REPEAT
    raise if attempt == 4

    sleep 0.05 * attempt
    attempt += 1
    retry
  end
end

def answer(status, body, headers = {})
  halt status, { 'Content-Type' => 'application/json' }.merge(headers), JSON.generate(body)
end

# Otherwise Sinatra parses the body of a form before the route can read it.
class Rack::Request
  def form_data? = false
  def parseable_data? = false
end

set :environment, :production
set :server, :puma
set :bind, ENV.fetch('HOST', '127.0.0.1')
set :port, ENV.fetch('PORT', '8080')
set :logging, false
set :quiet, true

post PATH do
  body = request.body&.read(LIMIT + 1) || ''
  answer 413, message: 'body is too large' if body.bytesize > LIMIT
  # Bytes that are not UTF-8 are no text for the database.
  signature = request.get_header('HTTP_X_ARGYLE_SIGNATURE')&.dup&.force_encoding('UTF-8')&.scrub('?')
  begin
    row = ingest(body, signature)
  rescue PG::Error => e
    warn "cannot ingest webhook: #{e.message.lines.first}"
    answer 503, { message: 'try again later' }, 'Retry-After' => '5'
  end
  if row['outcome'] == 'rejected'
    answer STATUS.fetch(row['sqlstate'], 400), outcome: 'rejected', message: row['message']
  end
  answer 200, outcome: row['outcome'], event_id: row['event_id']&.to_i
end

%i[get put patch delete options].each do |verb|
  send(verb, PATH) { answer 405, { message: 'method not allowed' }, 'Allow' => 'POST' }
end

not_found { answer 404, message: 'not found' }
