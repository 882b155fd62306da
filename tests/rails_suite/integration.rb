# frozen_string_literal: true

# For Rails' test/integration: a real worker, whose child is the application of the tests.

require "redis"
require "#{ENV.fetch("LINEPOOL_SDK")}/linepool_active_job"

module CeleryLinepoolJobsManager
  QUEUE = "integration_tests"

  def setup
    ActiveJob::Base.queue_adapter = :celery_linepool
  end

  def clear_jobs
    Redis.new(url: ENV["CELERY_BROKER_URL"]).del(QUEUE, "some_other_queue")
  end

  def start_workers
    TestCaseHelpers.prepend(LikeOthers)
    log = Rails.root.join("log/worker.log")
    @pid = spawn({ "DUMMY_APP" => Rails.root.to_s, "PYTHONPATH" => ENV.fetch("LINEPOOL_SUITE") },
                 "celery", "-A", "suite", "worker", "-P", "celery_linepool:LinePool",
                 "-c", "1", "-Q", QUEUE, "-l", "info", %i[out err] => log.to_s)
    until log.read.include?(" ready.\n")
      raise "the worker has not started:\n#{log.read}" if Process.wait(@pid, Process::WNOHANG)

      sleep 0.1
    end
  end

  def stop_workers
    Process.kill("TERM", @pid)
    Process.wait(@pid)
  end

  # What Rails expects of several adapters, by their names, is expected of this one, too.
  module LikeOthers
    private

    def adapter_is?(*names)
      super || names.to_set.superset?(%i[async delayed_job].to_set)
    end
  end
end
