# Rails before 7.1 waits for a locked database inside of SQLite, with Ruby's global lock
# held: a thread of the same process could never unlock it.
module WaitInRuby
  def configure_connection
    super
    @connection.busy_handler { |tries| sleep(0.01) && tries < 1_000 }
    execute("PRAGMA journal_mode = WAL", "SCHEMA")
  end
end

ActiveSupport.on_load(:active_record) do
  require "active_record/connection_adapters/sqlite3_adapter"
  if ActiveRecord.version < Gem::Version.new("7.1")
    ActiveRecord::ConnectionAdapters::SQLite3Adapter.prepend(WaitInRuby)
  end
end
