# What Rails does by itself since 7.1: wait for a locked database in Ruby. SQLite waits with
# Ruby's global lock held, and another thread of the process could never unlock it. And what
# it does since 8.0: a transaction that will write says so, or its first write may come too
# late to wait.
module WaitInRuby
  def begin_db_transaction
    log("begin immediate transaction", "TRANSACTION") { @connection.transaction(:immediate) }
  end

  private

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
