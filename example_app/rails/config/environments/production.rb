Rails.application.configure do
  config.cache_classes = true
  config.eager_load = true
  config.log_level = :info
  config.action_mailer.delivery_method = :file
  config.action_mailer.file_settings = { location: Rails.root.join("tmp/mails") }
end
