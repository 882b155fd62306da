require_relative "boot"

require "rails"
require "active_job/railtie"
require "active_record/railtie"
require "action_controller/railtie"
require "action_mailer/railtie"
require "action_view/railtie"

Bundler.require(*Rails.groups)
require_relative "../vendor/linepool_active_job"

module Shop
  class Application < Rails::Application
    config.load_defaults Rails::VERSION::STRING.to_f
    config.active_job.queue_adapter = :celery_linepool
    config.time_zone = "Europe/Berlin"
    config.action_mailer.default_options = { from: "billing@shop.example" }
  end
end
