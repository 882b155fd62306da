# What Rails does by itself since 8.0, with the gem's version 2: wait for a locked database in
# Ruby. SQLite waits with Ruby's global lock held, and another thread of the process could
# never unlock it.
module WaitInRuby
  private

  def configure_connection
    super
    (@raw_connection || @connection).busy_handler { |tries| sleep(0.01) && tries < 1_000 }
  end
end

# What Rails has since 7.1: a log in which readers do not wait. And what config/database.yml asks
# for: a transaction that will write says so, or its first write may come too late to wait.
module WriteAhead
  def begin_db_transaction
    log("begin immediate transaction", "TRANSACTION") { @connection.transaction(:immediate) }
  end

  private

  def configure_connection
    super
    execute("PRAGMA journal_mode = WAL", "SCHEMA")
  end
end

ActiveSupport.on_load(:active_record) do
  require "active_record/connection_adapters/sqlite3_adapter"
  { "8.0" => WaitInRuby, "7.1" => WriteAhead }.each do |since, change|
    next if ActiveRecord.version >= Gem::Version.new(since)

    ActiveRecord::ConnectionAdapters::SQLite3Adapter.prepend(change)
  end
end
