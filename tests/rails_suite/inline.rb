# frozen_string_literal: true

# For Rails' test/cases: a job is performed at once, in this process. It goes all the way into
# a message and back; what is left out is the broker and the worker.

require "#{ENV.fetch("LINEPOOL_SDK")}/linepool"
require "#{ENV.fetch("LINEPOOL_SDK")}/linepool_active_job"

module Linepool
  class InlineClient
    CHILD = Child.new({})

    def send_tasks(tasks)
      tasks.map do |name, options|
        message = Message.new(name, queue: "default", **options)
        perform(Job.new(CHILD, message.id, payload(message)))
        message.id
      end
    end

    private

    # As the worker passes it on.
    def payload(message)
      args, kwargs = JSON.parse(message.body)
      headers = JSON.parse(JSON.generate(message.headers))
      { "task" => headers["task"], "args" => args, "kwargs" => kwargs,
        "meta" => { "queue" => message.queue, "headers" => headers } }
    end

    def perform(job)
      outer = JobRun.current
      JobRun.new(job).call
    rescue Ignore # it was enqueued again
    ensure
      Thread.current[:linepool_job_run] = outer
    end
  end
end

# exceptions_test names it, and its gem may not be there.
ActiveJob::QueueAdapters.const_set(:SneakersAdapter, Class.new)

Linepool.client = Linepool::InlineClient.new
ActiveJob::Base.queue_adapter = :celery_linepool
