Rails.application.configure do
  config.cache_classes = true
  config.eager_load = true
  # No line for each request or job: only some contenders would write one.
  config.log_level = :warn
end
