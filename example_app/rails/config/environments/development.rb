Rails.application.configure do
  config.cache_classes = false
  config.eager_load = false
  config.action_mailer.delivery_method = :file
  config.action_mailer.file_settings = { location: Rails.root.join("tmp/mails") }
end
