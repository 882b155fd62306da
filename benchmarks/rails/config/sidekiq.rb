# As `sidekiq -r .` boots it, and the job besides.
require "rails"
require "sidekiq/rails"
require_relative "environment"

class WorkJob
  include Sidekiq::Worker

  def perform(*arguments)
    Work.call(*arguments)
  end
end
