Rails.application.routes.draw { post "/", to: "works#create" }
